"""What tells two finished runs or searches apart, for `benchmarks.soak`: nothing may."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from supernet import checkpoint
from supernet.log import read_metrics
from supernet.runs import read_json

CLOCKS = ("time", "wait", "seconds", "finished", "peak_memory_mb", "seconds_per_candidate")


def training_differences(run: Path, whole: Path) -> list[str]:
    """Of two training runs: all that their checkpoints hold, their records and their results, but for times."""
    found = []
    for name in ("checkpoint.pt", "best.pt"):
        one, other = (_state(folder / name) for folder in (run, whole))
        found += [f"{name}: {where}" for where in _differ(one, other, "state")]
    rows = [read_metrics(folder / "metrics.jsonl") for folder in (run, whole)]
    found += [f"metrics.jsonl: {where}" for where in _differ(rows[0], rows[1], "row")]
    results = [read_json(folder / "results.json") for folder in (run, whole)]
    return found + [f"results.json: {where}" for where in _differ(results[0], results[1], "results")] + _left_over(run)


def _state(file: Path) -> dict[str, Any]:
    """What a checkpoint holds, but for whether the run was resumed."""
    state = checkpoint.load(file)
    return {**state, "config": {key: value for key, value in state["config"].items() if key != "resume"}}


def search_differences(search: Path, whole: Path) -> list[str]:
    """Of two searches: trials, front, results and the exported files, but for times and their own names."""
    found = []
    trials = [_lines(folder / "trials.jsonl") for folder in (search, whole)]
    found += [f"trials.jsonl: {where}" for where in _differ(trials[0], trials[1], "trial")]
    for name in ("front.json", "results.json", "subnet/config.json", "subnet/arch.json"):
        one, other = (_without_name(read_json(folder / name), folder) for folder in (search, whole))
        found += [f"{name}: {where}" for where in _differ(one, other, "content")]
    for name in ("subnet/model.safetensors", "front.csv"):
        if (search / name).read_bytes() != (whole / name).read_bytes():
            found.append(f"{name}: other bytes")
    names = [sorted(path.name for path in (folder / "subnet").iterdir()) for folder in (search, whole)]
    return found + _differ_list(names[0], names[1], "subnet") + _left_over(search)


def _lines(file: Path) -> list[Any]:
    """Lines of JSON without the checksums, which are also over times."""
    return [{k: v for k, v in json.loads(line).items() if k != "crc32"} for line in file.read_text().splitlines()]


def _without_name(content: Any, folder: Path) -> Any:
    return json.loads(json.dumps(content).replace(str(folder), ""))


def _left_over(folder: Path) -> list[str]:
    patterns = (".*.tmp", ".*.partial", ".*.old")
    return [f"{path.name} is left over" for pattern in patterns for path in folder.rglob(pattern)]


def _differ_list(one: list[str], other: list[str], where: str) -> list[str]:
    return [] if one == other else [f"{where}: {one} against {other}"]


def _differ(one: Any, other: Any, where: str) -> Iterator[str]:
    """Where nested plain values and tensors differ, bit for bit; clocks are passed over."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield where
    elif isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            if key not in CLOCKS:
                yield from _differ(one.get(key, "nothing"), other.get(key, "nothing"), f"{where}[{key!r}]")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for i, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from _differ(left, right, f"{where}[{i}]")
    elif type(one) is not type(other) or one != other:
        yield where
