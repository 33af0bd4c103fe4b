"""Signals by which users and schedulers stop a training run: it saves, says how to go on, and leaves with a code."""

from __future__ import annotations

from pathlib import Path

import pytest
from documented import as_documented
from faulty import RECIPE, ends_like, training
from tiny_run import only_run, state_of
from zygote import Zygote

# What arrives in step 5, and the step that is saved.
SIGNALS: dict[str, tuple[tuple[str, ...], int]] = {
    "SIGTERM": (("SIGTERM",), 5),
    "SIGUSR1": (("SIGUSR1",), 5),
    "SIGUSR1, then SIGTERM while it saves": (("SIGUSR1", "SIGTERM"), 5),
    "SIGHUP, when the terminal is closed": (("SIGHUP",), 5),
    "Ctrl-C": (("SIGINT",), 5),
    "Ctrl-C twice": (("SIGINT", "SIGINT"), 4),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_in_a_step(zygote: Zygote, whole: Path, tmp_path: Path, name: str) -> None:
    names, step = SIGNALS[name]
    ended = zygote.run(training(tmp_path, *RECIPE), ("signals_in_step", 5, *names))
    as_documented(name, ended)
    run = only_run(tmp_path)
    assert f"python train.py resume={run}" in ended.out
    assert state_of(run)["step"] == step
    if name == "SIGUSR1":  # the others save in the same way
        ends_like(zygote, tmp_path, run, whole, step)


def test_a_signal_before_the_first_step(zygote: Zygote, tmp_path: Path) -> None:
    ended = zygote.run(training(tmp_path, *RECIPE), ("signal_before", "data", "SIGTERM"))
    as_documented("SIGTERM before the first step", ended)
    assert not (tmp_path / "runs").exists()


def test_a_signal_after_the_last_step(zygote: Zygote, whole: Path, tmp_path: Path) -> None:
    ended = zygote.run(training(tmp_path, *RECIPE), ("signal_before", "scores", "SIGTERM"))
    as_documented("SIGTERM in the final evaluation", ended)
    ends_like(zygote, tmp_path, only_run(tmp_path), whole, 12)
