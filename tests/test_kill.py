"""A run that is killed with SIGKILL and resumed ends with the weights of a run that nobody killed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_run import assert_same_training, command, only_run, start, state_of, tiny_config

from supernet.trainer import main

RECIPE = ("train.epochs=12", "train.save_every=3", "train.ema_decay=0.9", "train.mixup=0.2", "train.dropout=0.2")

# Runs train.py's entry, and ends its own process by a signal: while checkpoint number `count` is being written,
# after half of its bytes ("bytes") or with all of them in the temporary file but not yet under the final name
# ("rename"); or a moment after it, from another thread, wherever training is then ("kill", "interrupt").
KILLER = """
import os, signal, sys, threading
from supernet import checkpoint, runs
from supernet.cli import entry

place, count = sys.argv.pop(), int(sys.argv.pop())
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

def counted(path, write, original=runs.write_atomic):
    global written
    if path.name != "checkpoint.pt":
        return original(path, write)
    written += 1
    if written == count and place == "bytes":
        size = path.stat().st_size
        return original(path, lambda file: write(Half(file, size)))
    if written == count and place == "rename":
        os.replace = lambda *names: die()
    original(path, write)
    if written == count:
        number = signal.SIGINT if place == "interrupt" else signal.SIGKILL
        threading.Timer(0.03, die, [number]).start()

checkpoint.write_atomic = counted
entry("train", "supernet.trainer:main")
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Layers this small only lose by sharing their work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run: 48 steps."""
    folder = tmp_path_factory.mktemp("whole")
    main(tiny_config(folder, *RECIPE))
    return only_run(folder)


def ended(folder: Path, place: str, count: int) -> tuple[int, str]:
    """Run until the signal comes; returns the exit code and what was printed on stderr."""
    script = folder / "killer.py"
    script.write_text(KILLER)
    process = start(*command(folder, *RECIPE, script=script), str(count), place)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


@pytest.mark.parametrize("place", ["kill", "bytes", "rename", "interrupt"])
def test_a_killed_and_resumed_run_ends_like_one_that_was_not(tmp_path: Path, whole: Path, place: str) -> None:
    code = 130 if place == "interrupt" else -signal.SIGKILL
    assert ended(tmp_path, place, count=6) == (code, "")
    run = only_run(tmp_path)
    step = state_of(run)["step"]  # the checkpoint before the kill is whole
    assert 0 < step < 48
    leftovers = list(run.glob(".checkpoint.pt*.tmp"))
    if place in ("bytes", "rename"):
        assert step == 9  # the sixth, after steps 3, 4, 6, 8 and 9, was to be that of step 12
        (leftover,) = leftovers
        size = (run / "checkpoint.pt").stat().st_size
        assert leftover.stat().st_size == (size // 2 if place == "bytes" else size)

    process = start(*command(tmp_path, f"resume={run}"))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert f"at step {step} of 48" in out
    assert_same_training(run, whole)
    assert not list(run.glob(".*.tmp"))
