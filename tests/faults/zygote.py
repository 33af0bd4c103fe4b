"""Runs of `train.py` and `search.py` in forks of a process that has imported torch already.

Started as a program it is that process: for each line of JSON on its standard input it starts a run or waits for one.
It never computes anything itself, because a process in which autograd has used a GPU cannot be forked.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
PROGRAMS = {"train": "supernet.job:main", "search": "search.runner:main"}
Injection = Sequence[Any]  # the name of a function in `injections`, and its arguments


@dataclass(frozen=True)
class Ended:
    """What came of a run. Codes are those that a shell reports: 128 + number after a signal."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Everything, for messages."""
        return f"exit code {self.code}\n{self.out}\n{self.err}"


@dataclass(frozen=True)
class Running:
    """A run under way."""

    zygote: Zygote
    pid: int
    output: tuple[Path, Path]

    def ended(self) -> Ended:
        """Wait for its end."""
        code = self.zygote.ask({"wait": self.pid})
        out, err = (path.read_text() for path in self.output)
        return Ended(code, out, err)


class Zygote:
    """The process that has imported everything. `folder` is for what its children print."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        path = os.pathsep.join([str(TESTS.parent), str(TESTS), str(TESTS / "faults")])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": path}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, question: Mapping[str, Any]) -> Any:
        """Its answer to one line."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, argv: Sequence[str], *faults: Injection) -> Running:
        """Start a run with the command line `argv` and `faults` built in."""
        self.count += 1
        output = (self.folder / f"{self.count}.out", self.folder / f"{self.count}.err")
        question = {"argv": list(argv), "faults": faults, "output": [str(path) for path in output]}
        return Running(self, self.ask(question), output)

    def run(self, argv: Sequence[str], *faults: Injection) -> Ended:
        """A run from its start to its end."""
        return self.start(argv, *faults).ended()

    def close(self) -> None:
        """End it."""
        self.process.communicate(timeout=60)


def serve() -> list[Any] | None:
    """Answer until the input ends; returns None then, and in each child what to do."""
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            _, status = os.waitpid(question["wait"], 0)
            code = os.waitstatus_to_exitcode(status)
            print(128 - code if code < 0 else code, flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            return [question["argv"], question["faults"], question["output"]]
    return None


def become(argv: list[str], faults: list[list[Any]], output: list[str]) -> None:
    """What a child does: train or search, as the command line says."""
    from supernet.cli import entry

    program = Path(argv[0]).stem
    injections = importlib.import_module("search_injections" if program == "search" else "injections")

    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, which may have started these tests, ignores it
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for number, name in enumerate(output, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = argv
    injections.draw_nothing()
    for name, *arguments in faults:
        getattr(injections, name)(*arguments)
    entry(program, PROGRAMS[program])


if __name__ == "__main__":
    import atexit
    import tempfile
    import traceback
    import warnings

    import torch

    LIBRARIES = ("rich.console", "sklearn.datasets", "torchvision.transforms.v2.functional")
    OURS = ("job", "cli", "data.digits", "data.folder", "models.mbconv")
    for library in (*LIBRARIES, *(f"supernet.{name}" for name in OURS), "search.runner", "search.evolution"):
        importlib.import_module(library)
    warnings.simplefilter("ignore", DeprecationWarning)  # of forks in processes with threads
    torch.set_num_threads(1)
    tiny_run = importlib.import_module("tiny_run")
    with tempfile.TemporaryDirectory() as folder:
        tiny_run.tiny_config(Path(folder))  # parsers and libraries get ready
    job = serve()
    code = 0
    if job is not None:
        warnings.resetwarnings()
        try:
            become(*job)
        except SystemExit as left:
            code = int(left.code or 0)
        except BaseException:
            traceback.print_exc()
            code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)  # taking the interpreter down would take a second
