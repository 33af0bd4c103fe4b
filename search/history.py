"""Append-only record of trials. Resuming a search is asking again and answering from here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from search.algorithm import Trial
from supernet.distributed import ALONE, Ranks
from supernet.errors import UserError
from supernet.runs import plain
from supernet.space import Arch, Space

FORMAT = "supernet-trials"
DECIDES_SCORES = ("space", "weights", "calibration_images", "data")
EQUAL_SCORES = (*DECIDES_SCORES, "eval_dtype")  # to the last digit

Costs = Callable[[Arch], Mapping[str, float]]
Known = dict[Arch, tuple[Trial, str]]


def is_complete(trial: Trial) -> bool:
    """Whether all images were seen. Of a trial that was stopped early, "top1" is what it had reached for certain."""
    return "stopped_after" not in trial.metrics


class History:
    """The trials of one search in a file of JSON lines, the first of which states the setup.

    Every trial is on the disk before `append` returns. A last line cut short by a kill is dropped. Among several
    processes the first alone touches the file, and tells the others what it holds.

    Args:
        setup: whatever decides the results (plain data); a file made under another one is refused.

    Attributes:
        trials: by subnet, in the order in which they were added.
        sources: of the trials whose scores were taken from an earlier search, the name of that search's folder.

    Raises:
        UserError: if the file is damaged, or was made under another setup (names what differs).
    """

    def __init__(self, path: Path, space: Space, setup: Mapping[str, Any], ranks: Ranks = ALONE) -> None:
        self.path, self._writes = path, ranks.first
        self.trials: dict[Arch, Trial] = {}
        self.sources: dict[Arch, str] = {}
        lines: list[str] = ranks.broadcast(self._open(plain(setup)) if ranks.first else [])
        for number, line in enumerate(lines, start=2):
            self._add(*_parse(path, line, number, space))

    def append(self, trial: Trial, source: str | None = None) -> None:
        """Add a trial; `source` names the search that its score was taken from."""
        self._write({**trial.to_json(), **({} if source is None else {"source": source})})
        self._add(trial, source)

    def _open(self, setup: Mapping[str, Any]) -> list[str]:
        """The lines of trials in the file, which is made if need be."""
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        lines = whole.decode(errors="replace").splitlines()
        if lines:
            self._check(lines[0], setup)
        else:
            self._write({"format": FORMAT, "version": 1, "setup": setup})
        return lines[1:]

    def _add(self, trial: Trial, source: str | None) -> None:
        self.trials[trial.arch] = trial
        if source is not None:
            self.sources[trial.arch] = source

    def _write(self, data: Mapping[str, Any]) -> None:
        if not self._writes:
            return
        with self.path.open("ab") as file:
            file.write(json.dumps(plain(data), allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _check(self, line: str, setup: Mapping[str, Any]) -> None:
        saved = _setup(line)
        if saved is None:
            raise UserError(f"{self.path} is not a record of trials")
        before, now = _flat(saved), _flat(setup)
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            key, others = changed[0], len(changed) - 1
            raise UserError(
                f"{self.path.parent} was searched with another setup: {key} was {_short(before.get(key))}, "
                f"now it is {_short(now.get(key))}{f' ({others} more differ)' if others else ''}; "
                "repeat the first command's settings, or start a new search without resume="
            )


def read_trials(path: Path, space: Space, setup: Mapping[str, Any], costs: Costs) -> list[Trial]:
    """The trials of a finished or interrupted search, with costs computed anew; the file is left as it is.

    Its algorithm, budget and seed may differ from those in `setup`, not what decides scores.

    Raises:
        UserError: if the file is missing or damaged, or its scores are of other weights, data or calibration.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: name the folder of a search")
    lines = _whole_lines(path)
    saved = _setup(lines[0]) if lines else None
    if saved is None:
        raise UserError(f"{path} is not a record of trials")
    if changed := [key for key in DECIDES_SCORES if saved.get(key) != plain(setup.get(key))]:
        raise UserError(f"{path} holds scores of other {' and '.join(changed)}: search anew, without from=")
    trials = [_parse(path, line, number, space)[0] for number, line in enumerate(lines[1:], start=2)]
    return [replace(trial, metrics={**trial.metrics, **costs(trial.arch)}) for trial in trials]


def known_trials(
    root: Path, own: Path, space: Space, setup: Mapping[str, Any], costs: Costs, ranks: Ranks = ALONE
) -> Known:
    """Scores that earlier searches of the same supernet hold: complete trials by subnet, with their folders' names.

    Looks through the records of trials in the folders of `root` but `own`. Those count whose setup has the same space,
    weights, calibration images, data and precision as `setup`; algorithm, budget and seed may differ, because no score
    depends on them. Of two scores of one subnet the older search's is taken. Costs are not taken from there but
    computed anew. Files and lines that cannot be read are passed over. The first of several processes reads for all.
    """
    found = ranks.broadcast(_known(root, own, space, setup) if ranks.first else [])
    known: Known = {}
    for data, source in found:
        trial = Trial.from_json(data, space)
        known.setdefault(trial.arch, (Trial(trial.arch, {**trial.metrics, **costs(trial.arch)}), source))
    return known


def _known(root: Path, own: Path, space: Space, setup: Mapping[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Trials as JSON, scores only, oldest search first."""
    wanted = {key: plain(setup.get(key)) for key in EQUAL_SCORES}
    found = []
    for path in sorted(root.glob("*/*.jsonl")):
        lines = [] if path.parent.resolve() == own.resolve() else _whole_lines(path)
        saved = _setup(lines[0]) if lines else None
        if saved is None or {key: saved.get(key) for key in EQUAL_SCORES} != wanted:
            continue
        for line in lines[1:]:
            try:
                trial = Trial.from_json(json.loads(line), space)
                scores = {name: trial.metrics[name] for name in ("top1", "loss")}
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            if is_complete(trial):
                found.append((Trial(trial.arch, scores).to_json(), path.parent.name))
    return found


def _parse(path: Path, line: str, number: int, space: Space) -> tuple[Trial, str | None]:
    """The trial in a line, and the search that its score was taken from."""
    try:
        data = json.loads(line)
        return Trial.from_json(data, space), data.get("source")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}, line {number}: damaged, or of another space ({error})") from None


def _whole_lines(path: Path) -> list[str]:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1].decode(errors="replace").splitlines()


def _setup(line: str) -> dict[str, Any] | None:
    """The setup in the first line of a record of trials; None where it is none."""
    try:
        meta = json.loads(line)
    except ValueError:
        return None
    is_ours = isinstance(meta, dict) and meta.get("format") == FORMAT and isinstance(meta.get("setup"), dict)
    return meta["setup"] if is_ours else None


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
