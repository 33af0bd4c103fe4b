"""A training in two processes, one of which dies, stands still, or is asked to stop."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from documented import as_documented
from faulty import RECIPE, training
from shared_training import differences, free_ports
from tiny_run import only_run, state_of
from zygote import Injection, Running, Zygote

SHARED = (*RECIPE, "train.batch_size=255", "train.sync_batch_norm=true", "train.dropout=0")


def started(zygote: Zygote, folder: Path, *faults: Injection, overrides: tuple[str, ...] = ()) -> list[Running]:
    """Both processes; the faults happen to the second one."""
    (port,) = free_ports(1)
    argv = training(folder, *SHARED, *overrides)
    return [zygote.start(argv, ("one_of", rank, 2, port), *(faults if rank else ())) for rank in range(2)]


def goes_on(zygote: Zygote, folder: Path, step: int) -> None:
    """In one process: what it comes to is what a run in one process comes to, up to the order of sums."""
    run = only_run(folder)
    assert state_of(run)["step"] == step
    ended = zygote.run([*training(folder)[:3], f"resume={run}"])
    assert (ended.code, ended.err) == (0, ""), ended.text
    assert f"at step {step} of 12" in ended.out
    whole = zygote.run(training(folder / "whole", *SHARED))
    assert whole.code == 0, whole.text
    expected = state_of(only_run(folder / "whole"))
    for key in ("model", "ema", "optimizer", "step"):
        assert differences(state_of(run)[key], expected[key]) <= 1e-4, key


def test_a_process_that_dies(zygote: Zygote, tmp_path: Path) -> None:
    first, second = started(zygote, tmp_path, ("kill_in_step", 8))
    assert second.ended().code == 137
    ended = first.ended()
    as_documented("a process of a training dies", ended)
    goes_on(zygote, tmp_path, 6)


@pytest.mark.exhaustive
def test_a_process_that_stands_still(zygote: Zygote, tmp_path: Path) -> None:
    first, second = started(zygote, tmp_path, ("stand_still_in_step", 8), overrides=("timeout_s=3",))
    ended = first.ended()
    os.kill(second.pid, signal.SIGKILL)
    assert second.ended().code == 137
    as_documented("a process of a training stands still", ended)
    goes_on(zygote, tmp_path, 6)


def test_a_signal_to_one_process(zygote: Zygote, tmp_path: Path) -> None:
    """Stops both at the same step, which is saved."""
    first, second = (running.ended() for running in started(zygote, tmp_path, ("signals_in_step", 5, "SIGTERM")))
    as_documented("SIGTERM to one process of a training", first)
    assert (second.code, second.out, second.err) == (75, "", "")
    assert state_of(only_run(tmp_path))["step"] in (5, 6)
