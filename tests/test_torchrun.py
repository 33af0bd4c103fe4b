"""`torchrun ... train.py`: restarts, several machines, and what is printed. Slow: each test starts four programs."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from shared_training import differences, free_ports
from tiny_run import command, only_run, start, state_of, tiny_config

from supernet.job import main
from supernet.runs import read_json

pytestmark = pytest.mark.exhaustive

RUN = ("train.epochs=3", "train.batch_size=255", "train.sync_batch_norm=true", "train.dropout=0", "train.save_every=2")
RUN = (*RUN, "train.ema_decay=0.9", "train.mixup=0.2", "timeout_s=10", "resume=auto")

# Runs train.py's entry. At a step of the first attempt, process 1 ends by a signal (or holds still), or all get one.
FAILING = """
import os, signal, sys, time
from supernet import trainer
from supernet.cli import entry

place, step = sys.argv.pop(), int(sys.argv.pop())

def failing(self, batch, original=trainer.Trainer.train_step):
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if self.step == step and first and os.environ["RANK"] == "1":
        if place == "hang":
            time.sleep(1000)
        os.kill(os.getpid(), getattr(signal, place))
    return original(self, batch)

trainer.Trainer.train_step = failing
entry("train", "supernet.job:main")
"""


def torchrun(*given: str, processes: int = 2) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), *given]


def ended(*processes: subprocess.Popen[str], seconds: float = 120) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of programs that run at the same time."""
    watch = threading.Timer(seconds, lambda: [process.terminate() for process in processes])  # torchrun ends its own
    watch.start()
    with ThreadPoolExecutor() as readers:
        printed = list(readers.map(lambda process: process.communicate(), processes))
    watch.cancel()
    return [(process.returncode, out, err) for process, (out, err) in zip(processes, printed, strict=True)]


def errors(err: str) -> list[str]:
    """The lines that our programs print; torchrun reports failures at length after them."""
    return [line for line in err.splitlines() if line.startswith("error:")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in one process."""
    folder = tmp_path_factory.mktemp("whole")
    main(tiny_config(folder, *RUN[:-1]))
    return only_run(folder)


def assert_close(run: Path, whole: Path) -> None:
    for key in ("model", "ema", "optimizer", "step"):
        assert differences(state_of(run)[key], state_of(whole)[key]) <= 1e-4, key
    one, other = (read_json(folder / "results.json") for folder in (run, whole))
    assert differences(one["subnets"], other["subnets"]) == 0


def failing(folder: Path, place: str, *options: str) -> tuple[int, str, str]:
    script = folder / "failing.py"
    script.write_text(FAILING)
    argv = command(folder, *RUN, script=script)[1:]
    return ended(start(*torchrun("--standalone", *options), *argv, "7", place))[0]


def test_a_rank_killed_in_the_middle_restarts_and_finishes_with_the_same_weights(tmp_path: Path, whole: Path) -> None:
    code, out, err = failing(tmp_path, "SIGKILL", "--max-restarts", "1")
    assert code == 0, err
    assert "Traceback" not in err
    assert all(re.search(r"rank 1 \(process \d+ on \S+\) of 2 processes does not answer", e) for e in errors(err))
    run = only_run(tmp_path)
    assert f"resumed {run} at step 6 of 12" in out
    assert_close(run, whole)


def test_a_rank_that_hangs_is_named_in_time(tmp_path: Path) -> None:
    code, _, err = failing(tmp_path, "hang", "--max-restarts", "0")
    assert code != 0
    (line,) = errors(err)
    assert re.search(r"rank 1 \(process \d+ on \S+\) of 2 processes does not answer: .* timeout_s=10", line)
    assert state_of(only_run(tmp_path))["step"] == 6


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR1"])
def test_a_signal_to_any_rank_stops_all_at_the_same_step(tmp_path: Path, whole: Path, number: str) -> None:
    code, out, err = failing(tmp_path, number, "--max-restarts", "0")
    assert code != 0
    assert errors(err) == []
    run = only_run(tmp_path)
    step = state_of(run)["step"]
    assert step in (8, 9)
    assert f"step {step} of 12 is saved" in out
    ((code, out, err),) = ended(start(*torchrun("--standalone"), *command(tmp_path, *RUN)[1:]))
    assert code == 0, err
    assert f"resumed {run} at step {step} of 12" in out
    assert_close(run, whole)


def test_two_machines(tmp_path: Path, whole: Path) -> None:
    """Two agents with a process each, as on two machines; the command of the documentation."""
    (port,) = free_ports(1)
    nodes = ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "job7")
    argv = [*torchrun(*nodes, processes=1), *command(tmp_path, *RUN)[1:]]
    results = ended(start(*argv), start(*argv))
    assert [code for code, _, _ in results] == [0, 0], results
    assert sorted("resumed" in out or "run folder" in out for _, out, _ in results) == [False, True]
    assert_close(only_run(tmp_path), whole)


def test_mistakes_are_said_once(tmp_path: Path) -> None:
    argv = command(tmp_path, "train.batch_size=1")[1:]
    ((code, _, err),) = ended(start(*torchrun("--standalone"), *argv))
    assert code != 0
    (line,) = errors(err)
    assert "train.batch_size=1: too few images for 2 processes" in line
    assert not (tmp_path / "runs").exists()
