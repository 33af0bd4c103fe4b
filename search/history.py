"""Append-only record of trials. Resuming a search is asking again and answering from here."""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from search.algorithm import Trial
from supernet.distributed import ALONE, Ranks
from supernet.errors import UserError
from supernet.runs import plain
from supernet.space import Arch, Space

FORMAT = "supernet-trials"
VERSION = 2  # since then every line ends with its checksum
SEAL = re.compile(r'(.*), "crc32": (\d+)}')
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # what reading any text can raise
DECIDES_SCORES = ("space", "weights", "calibration_images", "data")
EQUAL_SCORES = (*DECIDES_SCORES, "eval_dtype")  # up to the rounding of `eval_batch`

Costs = Callable[[Arch], Mapping[str, float]]
Known = dict[Arch, tuple[Trial, str]]


def is_complete(trial: Trial) -> bool:
    """Whether all images were seen. Of a trial that was stopped early, "top1" is what it had reached for certain."""
    return "stopped_after" not in trial.metrics


class History:
    """The trials of one search in a file of JSON lines, the first of which states the setup.

    Every trial is on the disk before `append` returns, with a checksum. A last line cut short by a kill is dropped.
    Among several processes the first alone touches the file, and tells the others what it holds.

    Args:
        setup: whatever decides the results (plain data); a file made under another one is refused.

    Attributes:
        trials: by subnet, in the order in which they were added.
        sources: of the trials whose scores were taken from an earlier search, the name of that search's folder.

    Raises:
        UserError: if the file is damaged, or was made under another setup (names what differs).
        OSError: on a full disk and the like; what was appended before is kept.
    """

    def __init__(self, path: Path, space: Space, setup: Mapping[str, Any], ranks: Ranks = ALONE) -> None:
        self.path, self._writes = path, ranks.first
        self.trials: dict[Arch, Trial] = {}
        self.sources: dict[Arch, str] = {}
        lines: list[str] = ranks.once(lambda: self._open(plain(setup)))
        for trial, source in _parsed(path, lines, space):
            self._add(trial, source)

    def append(self, trial: Trial, source: str | None = None) -> None:
        """Add a trial; `source` names the search that its score was taken from."""
        self._write({**trial.to_json(), **({} if source is None else {"source": source})})
        self._add(trial, source)

    def _open(self, setup: Mapping[str, Any]) -> list[str]:
        """The lines of the file, which is made if need be."""
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        lines = whole.decode(errors="replace").splitlines()
        if lines:
            self._check(lines[0], setup)
        else:
            self._write({"format": FORMAT, "version": VERSION, "setup": setup})
        return lines

    def _add(self, trial: Trial, source: str | None) -> None:
        self.trials[trial.arch] = trial
        if source is not None:
            self.sources[trial.arch] = source

    def _write(self, data: Mapping[str, Any]) -> None:
        if not self._writes:
            return
        line = _sealed(plain(data)).encode() + b"\n"
        try:
            with self.path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            error.filename = str(self.path)  # of a full disk the system names none
            raise

    def _check(self, line: str, setup: Mapping[str, Any]) -> None:
        saved = _setup(line)
        if saved is None:
            raise UserError(f"{self.path} is not a record of trials, or its first line is damaged: start a new search")
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
    trials = [trial for trial, _ in _parsed(path, lines, space)]
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
                trial, _ = _trial(line, space, _is_sealed(lines[0]))
                scores = {name: trial.metrics[name] for name in ("top1", "loss")}
            except DAMAGED:
                continue
            if is_complete(trial):
                found.append((Trial(trial.arch, scores).to_json(), path.parent.name))
    return found


def _parsed(path: Path, lines: list[str], space: Space) -> Iterator[tuple[Trial, str | None]]:
    """The trials in the lines of a file, the first of which is no trial; each with where its score was taken from."""
    for number, line in enumerate(lines[1:], start=2):
        try:
            yield _trial(line, space, _is_sealed(lines[0]))
        except DAMAGED as error:
            raise UserError(
                f"{path}, line {number}: damaged, or of another space ({error}); to go on from what is before it, "
                "delete it and all lines after it"
            ) from None


def _trial(line: str, space: Space, sealed: bool) -> tuple[Trial, str | None]:
    """The trial in a line. Raises one of `DAMAGED` where there is none, or one that is not as it was written."""
    if sealed and not _is_sealed(line):
        raise ValueError("its checksum is missing")
    data = _unsealed(line)
    trial = Trial.from_json(data, space)
    if not all(type(value) in (int, float) and math.isfinite(value) for value in trial.metrics.values()):
        raise ValueError("its metrics are not all numbers")
    return trial, data.get("source")


def _sealed(data: Mapping[str, Any]) -> str:
    """JSON in one line, the last entry of which is the checksum of all before it."""
    text = json.dumps(data, allow_nan=False)
    return f'{text[:-1]}, "crc32": {zlib.crc32(text.encode())}}}'


def _is_sealed(line: str) -> bool:
    return SEAL.fullmatch(line) is not None


def _unsealed(line: str) -> Any:
    """The data of a line. Raises ValueError where it has a checksum, and a wrong one."""
    found = SEAL.fullmatch(line)
    if found is None:  # of an older version
        return json.loads(line)
    text = f"{found[1]}}}"
    if zlib.crc32(text.encode()) != int(found[2]):
        raise ValueError("its checksum is wrong")
    return json.loads(text)


def _whole_lines(path: Path) -> list[str]:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1].decode(errors="replace").splitlines()


def _setup(line: str) -> dict[str, Any] | None:
    """The setup in the first line of a record of trials; None where it is none, damaged, or of a newer version."""
    try:
        meta = _unsealed(line)
        is_ours = meta["format"] == FORMAT and isinstance(meta["setup"], dict)
        readable = meta["version"] == 1 or (meta["version"] == VERSION and _is_sealed(line))
    except DAMAGED:
        return None
    return meta["setup"] if is_ours and readable else None


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
