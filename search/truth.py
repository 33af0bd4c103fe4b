"""Known accuracies of subnets, from a JSON or CSV file."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from supernet.construct import shown
from supernet.errors import UserError
from supernet.runs import read_json
from supernet.space import Arch, Space

COLUMNS = ("top1", "alone", "accuracy", "acc")  # "alone": benchmarks/standalone.py
LEAST = 3  # subnets


def read_truth(path: Path, space: Space) -> dict[Arch, list[float]]:
    """Accuracies (more is better) by subnet; several where several seeds are known.

    Rows hold `arch` (in CSV: as JSON text) and one of `COLUMNS`, a number or a list of numbers. JSON is a list of
    rows, or an object with one under "rows". Rows of the same canonical subnet are taken as further seeds.

    Raises:
        UserError: if the file or a row cannot be read, or there are fewer than three subnets; names the row.
    """
    if not path.is_file():  # a named pipe would be waited for
        raise UserError(f"{path} does not exist or is not a file")
    rows = _csv(path) if path.suffix.lower() == ".csv" else _json(path)
    found: dict[Arch, list[float]] = {}
    for number, row in enumerate(rows):
        where = f"{path}, row {number}"
        if not isinstance(row, Mapping) or "arch" not in row:
            raise UserError(f"{where}: every row needs an arch")
        column = next((name for name in COLUMNS if row.get(name) is not None), None)
        if column is None:
            raise UserError(f"{where}: every row needs one of {', '.join(COLUMNS)}")
        try:
            arch = space.from_json(row["arch"])
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{where}: {error}") from None
        found.setdefault(arch, []).extend(_numbers(row[column], where))
    if len(found) < LEAST:
        raise UserError(f"{path} holds {len(found)} subnets: a ranking needs at least {LEAST}")
    if len({sum(values) / len(values) for values in found.values()}) == 1:
        raise UserError(f"{path}: all accuracies are equal, so there is no ranking to compare with")
    return found


def _numbers(value: Any, where: str) -> list[float]:
    try:
        numbers = [float(item) for item in (value if isinstance(value, list) else [value])]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if not numbers or not all(map(math.isfinite, numbers)):
        raise UserError(f"{where}: {shown(repr(value))} is not an accuracy")
    return numbers


def _json(path: Path) -> Sequence[Any]:
    content = read_json(path)
    rows = content.get("rows") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise UserError(f"{path}: give a list of rows with arch and top1")
    return rows


def _csv(path: Path) -> Sequence[Any]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [dict(row) for row in csv.DictReader(file)]
        for row in rows:
            row["arch"] = json.loads(row["arch"]) if row.get("arch") else None
            for name in COLUMNS:
                if (row.get(name) or "").startswith("["):
                    row[name] = json.loads(row[name])
                elif not row.get(name):
                    row[name] = None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, AttributeError, RecursionError, csv.Error) as error:
        raise UserError(f"{path} is damaged, or is not CSV with arch as JSON text: {error}") from None
    return rows
