"""Signals and worker processes: the main process decides when to stop, and no worker outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_data_folder import write_class
from tiny_run import command, only_run, start, state_of

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds worker processes in /proc")

# Takes a batch of an epoch in two workers, prints their ids, and waits or ends with the epoch still open.
LOADER = """
import sys, time
from supernet.data import folder
shares = {"split_seed": 0, "val_fraction": 0.2, "search_fraction": 0.2, "test_fraction": 0.1}
data = folder.load(root=sys.argv[1], batch_size=2, eval_batch_size=5, seed=0, resolution=[16], size=16,
                   num_workers=2, **shares)
batches = data.train(0)
next(batches)
print(*(worker.pid for worker in data._train_loader._iterator._workers), flush=True)
if sys.argv[2] == "wait":
    for line in sys.stdin:
        next(batches)
        print("batch", flush=True)
elif sys.argv[2] == "crash":
    raise SystemError("deliberate")
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for hue, name in enumerate(("ant", "bee", "cat")):
        write_class(tmp_path / "images" / name, 10, 50 * hue)
    return tmp_path / "images"


def loader(images: Path, how: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A process of its own group that reads images, and the ids of its two workers."""
    process = start(sys.executable, "-c", LOADER, str(images), how, own_group=True)
    assert process.stdout is not None
    workers = [int(word) for word in process.stdout.readline().split()]
    assert len(workers) == 2, process.communicate()[1]
    return process, workers


def alive(pids: list[int]) -> list[int]:
    """Those that still run; one that ended but was not waited for (a zombie) does not count."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX":
            found.append(pid)
    return found


def wait_until_gone(pids: list[int], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while alive(pids):
        assert time.monotonic() < deadline, f"workers {alive(pids)} outlive the main process"
        time.sleep(0.05)


def test_workers_end_when_the_main_process_is_killed(images: Path) -> None:
    process, workers = loader(images, "wait")
    assert alive(workers) == workers
    process.kill()
    process.communicate()
    wait_until_gone(workers)


@pytest.mark.parametrize(("how", "code"), [("end", 0), ("crash", 1)])
def test_the_main_process_ends_promptly_with_an_epoch_still_open(images: Path, how: str, code: int) -> None:
    """At exit, Python and torch stop the workers by SIGTERM, which these must not ignore."""
    process, workers = loader(images, how)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert err.count("Traceback") == code
    assert not alive(workers)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_workers_go_on_when_someone_else_signals_them(images: Path, number: signal.Signals) -> None:
    process, workers = loader(images, "wait")
    assert process.stdin is not None
    assert process.stdout is not None
    for worker in workers:
        os.kill(worker, number)
    for _ in range(5):
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "batch\n"
    assert alive(workers) == workers
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")
    assert not alive(workers)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_the_whole_group_ends_training_with_a_checkpoint(
    tmp_path: Path, images: Path, number: signal.Signals
) -> None:
    """What Ctrl-C in a terminal and a job scheduler do."""
    data = ("data=folder", f"data.root={images}", "data.num_workers=2", "data.size=8", "data.cache_limit_mb=0")
    options = ("train.epochs=500", "train.batch_size=4", "train.eval_every=500", "train.calibration_images=8")
    process = start(*command(tmp_path, *data, *options), own_group=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/train/*/checkpoint.pt")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = children(process.pid)
    assert workers
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130 if number == signal.SIGINT else 75, "")
    step = state_of(only_run(tmp_path))["step"]
    assert 0 < step < 500 * 4
    assert f"step {step} of" in out
    wait_until_gone(workers)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
