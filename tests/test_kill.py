"""A run that is killed with SIGKILL and resumed ends with the weights of a run that nobody killed."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_run import assert_same_training, command, only_run, resume_command, start, state_of, tiny_config

from supernet.job import main

RECIPE = ("train.epochs=12", "train.save_every=3", "train.ema_decay=0.9", "train.mixup=0.2", "train.dropout=0.2")

# Runs train.py's entry, and ends its own process by a signal: while checkpoint number `count` is being written,
# after half of its bytes ("bytes") or with all of them in the temporary file but not yet under the final name
# ("rename"); a moment after it, from another thread ("interrupt"); or `delay` seconds after the start of step
# `count`, from another thread, wherever training is then ("kill").
KILLER = """
import os, signal, sys, threading
from supernet import checkpoint, runs, trainer
from supernet.cli import entry

place, count, delay = sys.argv.pop(), int(sys.argv.pop()), float(sys.argv.pop())
written = 0

def die(number=signal.SIGKILL):
    os.kill(os.getpid(), number)

class Half:
    def __init__(self, file, size):
        self.file, self.left = file, size // 2

    def write(self, data):
        data = bytes(data)
        done = self.file.write(data[:self.left])
        self.left -= done
        if not self.left:
            self.file.flush()
            die()
        return done

    def flush(self):
        self.file.flush()

def counted(path, write, *ready, original=runs.write_atomic):
    global written
    if path.name != "checkpoint.pt":
        return original(path, write, *ready)
    written += 1
    if written == count and place == "bytes":
        size = path.stat().st_size
        return original(path, lambda file: write(Half(file, size)), *ready)
    if written == count and place == "rename":
        os.replace = lambda *names: die()
    original(path, write, *ready)
    if written == count and place == "interrupt":
        threading.Timer(delay, die, [signal.SIGINT]).start()

def step(self, batch, original=trainer.Trainer.train_step):
    if self.step == count - 1 and place == "kill":
        threading.Timer(delay, die).start()
    return original(self, batch)

checkpoint.write_atomic = counted
trainer.Trainer.train_step = step
entry("train", "supernet.job:main")
"""


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Layers this small only lose by sharing their work; one case does, because sums then round otherwise."""
    before = torch.get_num_threads()
    number: int = getattr(request, "param", 1)
    torch.set_num_threads(number)
    yield number
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def wholes() -> dict[int, Path]:
    """Uninterrupted runs by the number of their threads."""
    return {}


@pytest.fixture
def whole(wholes: dict[int, Path], threads: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run: 48 steps."""
    if threads not in wholes:
        folder = tmp_path_factory.mktemp("whole")
        main(tiny_config(folder, *RECIPE))
        wholes[threads] = only_run(folder)
    return wholes[threads]


def ended(folder: Path, place: str, count: int, delay: float = 0.03) -> tuple[int, str]:
    """Run until the signal comes; returns the exit code and what was printed on stderr."""
    script = folder / "killer.py"
    script.write_text(KILLER)
    process = start(*command(folder, *RECIPE, script=script), str(delay), str(count), place)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


def resumed(folder: Path, run: Path) -> str:
    """Continue the run to its end; returns what it printed."""
    process = start(*resume_command(folder, run))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert not list(run.glob(".*.tmp"))
    return out


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.exhaustive)], indirect=True)
def test_a_run_killed_anywhere_and_resumed_ends_like_one_that_was_not(tmp_path: Path, whole: Path) -> None:
    """At another moment each time the tests run; the seed in the message repeats it."""
    seed = int.from_bytes(os.urandom(4))
    chance = random.Random(seed)
    at, delay = chance.randint(4, 40), chance.uniform(0, 0.03)
    where = f"seed {seed}: {delay:.3f} s into step {at}"
    assert ended(tmp_path, "kill", at, delay) == (-signal.SIGKILL, ""), where
    run = only_run(tmp_path)
    step = state_of(run)["step"]  # the last checkpoint is whole
    assert 3 <= step < 48, where
    assert f"at step {step} of 48" in resumed(tmp_path, run), where
    try:
        assert_same_training(run, whole)
    except AssertionError as error:
        raise AssertionError(f"{where}: {error}") from error


@pytest.mark.exhaustive  # tests/faults do the same in forked processes
@pytest.mark.parametrize("place", ["bytes", "rename", "interrupt"])
def test_a_run_ended_around_a_checkpoint_and_resumed_ends_alike(tmp_path: Path, whole: Path, place: str) -> None:
    code = 130 if place == "interrupt" else -signal.SIGKILL
    assert ended(tmp_path, place, count=6) == (code, "")
    run = only_run(tmp_path)
    step = state_of(run)["step"]
    if place in ("bytes", "rename"):
        assert step == 9  # the sixth, after steps 3, 4, 6, 8 and 9, was to be that of step 12
        (leftover,) = run.glob(".checkpoint.pt*.tmp")
        size = (run / "checkpoint.pt").stat().st_size
        assert leftover.stat().st_size == (size // 2 if place == "bytes" else size)
    else:
        assert 12 <= step < 48
    assert f"at step {step} of 48" in resumed(tmp_path, run)
    assert_same_training(run, whole)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="nothing tells when handlers are there")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_while_modules_are_loaded(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """As soon as the program has set its handlers, within a moment of its start, nothing prints a traceback."""
    process = start(*command(tmp_path, *RECIPE))
    caught = 0
    while not caught and process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
        caught = int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (code, "", "")


def test_nobody_reads_the_output_any_more(tmp_path: Path) -> None:
    """As in `python train.py | head -1`: no traceback, the code that shells report for a closed pipe."""
    process = start(*command(tmp_path, *RECIPE))
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout as out:
        out.readline()
    with process.stderr as err:
        assert err.read() == ""
    assert process.wait(timeout=60) == 141
