"""Append-only record of trials. Resuming a search is asking again and answering from here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.algorithm import Trial
from supernet.errors import UserError
from supernet.runs import plain
from supernet.space import Arch, Space

FORMAT = "supernet-trials"


class History:
    """The trials of one search in a file of JSON lines, the first of which states the setup.

    Every trial is on the disk before `append` returns. A last line cut short by a kill is dropped.

    Args:
        setup: whatever decides the results (plain data); a file made under another one is refused.

    Raises:
        UserError: if the file is damaged, or was made under another setup (names what differs).
    """

    def __init__(self, path: Path, space: Space, setup: Mapping[str, Any]) -> None:
        self.path = path
        self.trials: dict[Arch, Trial] = {}
        meta = {"format": FORMAT, "version": 1, "setup": plain(setup)}
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(path, len(whole))
        lines = whole.decode(errors="replace").splitlines()
        if lines:
            self._check(lines[0], meta["setup"])
            for number, line in enumerate(lines[1:], start=2):
                self._add(self._parse(line, number, space))
        else:
            self._write(meta)

    def append(self, trial: Trial) -> None:
        self._write(trial.to_json())
        self._add(trial)

    def _add(self, trial: Trial) -> None:
        self.trials[trial.arch] = trial

    def _write(self, data: Mapping[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(plain(data), allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _parse(self, line: str, number: int, space: Space) -> Trial:
        try:
            return Trial.from_json(json.loads(line), space)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path}, line {number}: damaged, or of another space ({error})") from None

    def _check(self, line: str, setup: Mapping[str, Any]) -> None:
        try:
            meta = json.loads(line)
        except ValueError:
            meta = None
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            raise UserError(f"{self.path} is not a record of trials")
        before, now = _flat(meta["setup"]), _flat(setup)
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            key, others = changed[0], len(changed) - 1
            raise UserError(
                f"{self.path.parent} was searched with another setup: {key} was {_short(before.get(key))}, "
                f"now it is {_short(now.get(key))}{f' ({others} more differ)' if others else ''}; "
                "repeat the first command's settings, or start a new search without resume="
            )


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
