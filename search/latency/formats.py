"""Latencies measured elsewhere: Once-for-All's tables of blocks, and a CSV of whole subnets."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.latency.features import SIDE
from search.latency.measure import FIT, Sample
from supernet.construct import shown
from supernet.cost import Additive, Factor
from supernet.errors import UserError
from supernet.space import Space, load_space
from supernet.specs import ConvSpec, HeadSpec, MBConvSpec

MS_COLUMNS = ("ms", "latency_ms", "latency")
LONGEST_MS = 1e9  # of one layer


def read_block_tables(source: Path, space: Space) -> tuple[Space, Additive]:
    """Once-for-All's tables, one YAML file per resolution: {layer: {mean: ms, ...}}.

    `source` is a file or a folder of them. Returns the space restricted to the resolutions that have a table, and the
    latency of its subnets: the sum of their layers' means, as the original adds them up.

    Raises:
        UserError: for files of another kind, a space without such layers, and layers that the tables lack (named).
    """
    import numpy as np

    files = sorted(source.glob("*.y*ml")) if source.is_dir() else [source]
    tables: dict[int, dict[str, float]] = {}
    for file in files:
        entries = _read_yaml(file)
        tables |= {int(found[1]): entries for key in entries if (found := re.match(r"Conv-input:(\d+)x", key))}
    kept = [side for side in tables if any(gene.key == SIDE and side in gene.options for gene in space.genes)]
    if not kept:
        raise UserError(
            f"source={source}: no table of a resolution of space {space.name!r}; there are those of {sorted(tables)}"
        )
    kept.sort()
    restricted = load_space({**space.description, SIDE: tuple(kept)})
    (side_gene,) = (i for i, gene in enumerate(restricted.genes) if gene.key == SIDE)
    factors = []
    for position, unit in enumerate(restricted.units):
        reads = tuple(dict.fromkeys((side_gene, *unit.reads)))  # equal layers have other means in other tables
        ms = np.zeros([len(restricted.genes[i].options) for i in reads])
        for codes, spec in restricted.specs(position):
            by_gene = dict(zip(unit.reads, codes, strict=True))
            for code, side in enumerate(kept):
                if spec is not None and by_gene.get(side_gene, code) == code:
                    place = tuple({**by_gene, side_gene: code}[i] for i in reads)
                    keys = block_keys(unit.name, spec)
                    ms[place] = sum(_look_up(tables[side], key, source, unit.name) for key in keys)
        factors.append(Factor(reads, ms))
    return restricted, Additive(restricted, factors)


def _look_up(table: Mapping[str, float], key: str, source: Path, unit: str) -> float:
    if key not in table:
        raise UserError(f"source={source}: no entry {key!r}, which {unit} needs")
    return table[key]


def block_keys(name: str, spec: Any) -> list[str]:
    """What Once-for-All's tables call a layer of the MobileNetV3 family.

    Raises:
        UserError: for layers of other families.
    """
    if isinstance(spec, ConvSpec):
        side = spec.size * spec.stride
        return [f"Conv-{_shape('input', side, spec.in_channels)}-{_shape('output', spec.size, spec.out_channels)}"]
    if isinstance(spec, MBConvSpec):
        depthwise, project = spec.depthwise, spec.project
        width = spec.expand.in_channels if spec.expand else depthwise.in_channels
        side = spec.expand.size if spec.expand else depthwise.size * depthwise.stride
        shapes = [
            _shape("input", side, width),
            _shape("output", project.size, project.out_channels),
        ]
        facts = {
            "expand": depthwise.out_channels,
            "kernel": depthwise.kernel,
            "stride": depthwise.stride,
            "idskip": int(spec.shortcut is not None and spec.shortcut.identity),
            "se": int(spec.se is not None),
            "hs": int(depthwise.act == "hswish"),
        }
        return ["-".join(["expanded_conv", *shapes, *(f"{key}:{value}" for key, value in facts.items())])]
    if isinstance(spec, HeadSpec) and spec.mix is not None:
        conv, mix = spec.conv, spec.mix
        return [
            f"Conv_1-{_shape('input', conv.size, conv.in_channels)}-{_shape('output', conv.size, conv.out_channels)}",
            f"AvgPool2D-{_shape('input', conv.size, conv.out_channels)}-{_shape('output', 1, conv.out_channels)}",
            f"Conv_2-{_shape('input', 1, mix.in_channels)}-{_shape('output', 1, mix.out_channels)}",
            f"Logits-{_shape('input', 1, spec.classifier.in_features)}-output:{spec.classifier.out_features}",
        ]
    raise UserError(f"{name}: block tables of Once-for-All know MobileNetV3's layers only, not {type(spec).__name__}")


def read_csv(source: Path, space: Space) -> list[Sample]:
    """Measured subnets of a CSV file with the columns `arch` (JSON) and `ms`.

    Raises:
        UserError: naming the line that cannot be read.
    """
    _check_file(source)
    try:
        with source.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"source={source}: cannot be read ({error})") from None
    samples = []
    for line, row in enumerate(rows, start=2):
        column = next((name for name in MS_COLUMNS if name in row), None)
        if column is None or "arch" not in row:
            raise UserError(f"source={source}: needs the columns arch and ms, has {', '.join(filter(None, row))}")
        try:
            ms = float(row[column])
            arch = space.from_json(json.loads(row["arch"]))
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"source={source}, line {line}: {error}") from None
        if not 0 < ms < float("inf"):
            raise UserError(f"source={source}, line {line}: {column}={row[column]} must be positive milliseconds")
        samples.append(Sample(arch, FIT, ms))
    return samples


def _check_file(path: Path) -> None:
    """Raise UserError for folders and for named pipes, which would be waited for."""
    if not path.is_file():
        raise UserError(f"source={path}: does not exist or is not a file")


def _read_yaml(file: Path) -> dict[str, float]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped,unused-ignore]

    _check_file(file)
    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
    # ValueError: text that is no text, or a number of thousands of digits
    except (OSError, YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise UserError(f"source={file}: cannot be read ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"source={file}: not a latency table")
    entries = {}
    for key, value in content.items():
        ms = value.get("mean") if isinstance(value, Mapping) else None
        if not isinstance(ms, int | float) or isinstance(ms, bool) or not 0 <= ms <= LONGEST_MS:
            raise UserError(f"source={file}: {shown(key)} has no mean from 0 to {LONGEST_MS:.0e} ms")
        entries[str(key)] = float(ms)
    return entries


def _shape(which: str, side: int, channels: int) -> str:
    return f"{which}:{side}x{side}x{channels}"
