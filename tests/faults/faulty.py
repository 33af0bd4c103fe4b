"""The training run that the faults happen to, how it goes on, and what it must come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_run import assert_same_training, command, resume_command
from zygote import Zygote

from supernet.log import read_metrics
from supernet.runs import read_json

# 12 steps; checkpoints at 3, 4, 6, 8, 9 and 12, evaluations (and best.pt) at 8 and 12.
RECIPE = ("train.save_every=3", "train.eval_every=2", "train.ema_decay=0.9", "train.mixup=0.2", "train.test=false")
RECIPE += ("sampler=uniform", "train.eval_random=0", "train.calibration_images=16")  # quick ones


def training(folder: Path, *overrides: str) -> list[str]:
    """The command line of a new run under `folder`."""
    return command(folder, *overrides)[1:]


def resuming(folder: Path, run: Path, *overrides: str) -> list[str]:
    """The command line that continues `run`."""
    return [*resume_command(folder, run)[1:], *overrides]


def metrics(run: Path) -> list[dict[str, Any]]:
    """What a run has recorded, but for times."""
    times = ("time", "wait")
    return [
        {key: value for key, value in row.items() if key not in times} for row in read_metrics(run / "metrics.jsonl")
    ]


def ends_like(zygote: Zygote, folder: Path, run: Path, whole: Path, step: int) -> None:
    """Continue `run`, which must go on from `step`, to its end: nothing tells it from `whole`, or is left over."""
    ended = zygote.run(resuming(folder, run))
    assert (ended.code, ended.err) == (0, ""), ended.text
    assert f"at step {step} of 12" in ended.out, ended.text
    same_end(run, whole)


def same_end(run: Path, whole: Path) -> None:
    """Two finished runs agree in weights, statistics, optimizer, scores and records."""
    assert_same_training(run, whole)
    assert metrics(run) == metrics(whole)
    assert read_json(run / "results.json")["subnets"] == read_json(whole / "results.json")["subnets"]
    assert not list(run.glob(".*.tmp"))
