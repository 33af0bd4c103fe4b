"""A training run that is killed at any place goes on and ends like one that was not."""

from __future__ import annotations

from pathlib import Path

import pytest
from documented import as_documented
from faulty import RECIPE, ends_like, resuming, same_end, training
from tiny_run import only_run, state_of
from zygote import Injection, Zygote

# What happens, and the step that a resumed run goes on from.
KILLS: dict[str, tuple[Injection, int]] = {
    "SIGKILL in a training step": (("kill_in_step", 8), 6),
    "SIGKILL while a checkpoint is written": (("kill_in_write", "checkpoint.pt", 5, "bytes"), 8),
    "SIGKILL while a checkpoint is read back": (("kill_in_write", "checkpoint.pt", 5, "check"), 8),
    "SIGKILL while checkpoints change their names": (("kill_in_write", "checkpoint.pt", 5, "shift"), 8),
    "SIGKILL between write and rename": (("kill_in_write", "checkpoint.pt", 5, "rename"), 8),
    "SIGKILL while best.pt is written": (("kill_in_write", "best.pt", 1, "bytes"), 6),
    "SIGKILL while metrics.jsonl is written": (("kill_in_metrics", 8), 6),
    "SIGKILL while results.json is written": (("kill_in_write", "results.json", 1, "bytes"), 12),
}
OFTEN = ("SIGKILL while a checkpoint is written", "SIGKILL while checkpoints change their names")
OFTEN += ("SIGKILL while metrics.jsonl is written",)


@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.exhaustive) for name in KILLS]
)
def test_killed_and_resumed(zygote: Zygote, whole: Path, tmp_path: Path, name: str) -> None:
    fault, step = KILLS[name]
    as_documented(name, zygote.run(training(tmp_path, *RECIPE), fault))
    run = only_run(tmp_path)
    assert state_of(run)["step"] == step
    assert not (run / "results.json").exists()
    ends_like(zygote, tmp_path, run, whole, step)


def test_killed_before_there_is_a_configuration(zygote: Zygote, whole: Path, tmp_path: Path) -> None:
    fault = ("kill_in_write", "config.json", 1, "bytes")
    as_documented("SIGKILL while config.json is written", zygote.run(training(tmp_path, *RECIPE), fault))
    run = only_run(tmp_path)
    refused = zygote.run(resuming(tmp_path, run))
    assert (refused.code, refused.err) == (2, f"error: resume={run}: no run is there (config.json is missing)\n")
    again = zygote.run(training(tmp_path, *RECIPE))
    assert again.code == 0, again.text
    (run,) = (folder for folder in run.parent.iterdir() if folder != run)
    same_end(run, whole)
