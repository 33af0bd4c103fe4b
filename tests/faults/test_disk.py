"""Disks that are full, refuse, forget or vanish under a training run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from documented import as_documented
from faulty import RECIPE, ends_like, training
from tiny_run import only_run, state_of
from zygote import Injection, Zygote

# What happens, and the step that a resumed run goes on from.
FAULTS: dict[str, tuple[Injection, int]] = {
    "full disk while a checkpoint is written": (("full_disk", "checkpoint.pt", 4), 6),
    "full disk while best.pt is written": (("full_disk", "best.pt", 1), 6),
    "full disk while metrics.jsonl is written": (("full_disk_for_metrics", 8), 6),
    "full disk while results.json is written": (("full_disk", "results.json", 1), 12),
    "a disk that forgets": (("forgetful_disk", 4), 6),
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
@pytest.mark.parametrize("name", FAULTS)
def test_what_was_written_before_is_kept(zygote: Zygote, whole: Path, tmp_path: Path, name: str) -> None:
    fault, step = FAULTS[name]
    as_documented(name, zygote.run(training(tmp_path, *RECIPE), fault))
    run = only_run(tmp_path)
    assert state_of(run)["step"] == step
    assert not list(run.glob(".*.tmp"))
    if name in ("full disk while a checkpoint is written", "full disk while metrics.jsonl is written"):
        ends_like(zygote, tmp_path, run, whole, step)


def test_a_full_disk_before_the_first_checkpoint(zygote: Zygote, tmp_path: Path) -> None:
    ended = zygote.run(training(tmp_path, *RECIPE), ("full_disk", "checkpoint.pt", 1))
    as_documented("full disk before the first checkpoint", ended)


@pytest.mark.parametrize("how", ["a file", "refused"])
def test_a_folder_for_runs_that_cannot_be_written(zygote: Zygote, tmp_path: Path, how: str) -> None:
    if how == "refused":
        ended = zygote.run(training(tmp_path), ("no_permission",))
    else:
        (tmp_path / "runs").write_text("in the way")
        ended = zygote.run(training(tmp_path))
    as_documented("a folder for runs that cannot be written", ended)
    assert str(tmp_path / "runs") in ended.err


@pytest.mark.skipif(os.geteuid() == 0, reason="no permission stops root")
def test_a_folder_without_permission(zygote: Zygote, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(mode=0o500)
    as_documented("a folder for runs that cannot be written", zygote.run(training(tmp_path)))


def test_a_run_folder_that_is_deleted(zygote: Zygote, tmp_path: Path) -> None:
    ended = zygote.run(training(tmp_path, *RECIPE), ("folder_deleted", 5))
    as_documented("the run folder is deleted during training", ended)
    assert list((tmp_path / "runs" / "train").iterdir()) == [], "nothing may be made again"
