"""The training and search programs, with marks that say from outside what they are doing: see `benchmarks.soak`.

`python -m benchmarks.soak_marks <marks file> <train or search> [overrides]` runs the same program as `train.py` or
`search.py`. The marks are a few numbers in a file that both processes map into memory, so they cost next to nothing and
nothing is lost when the process is killed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# "start": everything else, such as imports inside the program, reading the data, restoring; "end": after the results.
PHASES = ("start", "step", "evaluate", "checkpoint", "history", "finalists", "export", "report", "end")
PHASE, DONE, FIRST = range(3)  # the phase now; what was done last; what was first found done (-1: nothing yet)
ENTRIES = 3  # from here on: how often each phase was entered
STEP, APPEND = "supernet.trainer:Trainer.train_step", "search.history:History._write"

# What belongs to a phase: "module:function" or "module:Class.function".
TRAIN = {
    STEP: "step",
    "supernet.trainer:Trainer._evaluate": "evaluate",
    "supernet.checkpoint:write_atomic": "checkpoint",
    "supernet.trainer:Trainer._finish": "report",
}
SEARCH = {
    "search.evaluator:SupernetEvaluator.__call__": "evaluate",
    APPEND: "history",
    "search.study:rescore": "finalists",
    "search.finish:export": "export",
    "search.study:write_report": "report",
}
PROGRAMS = {"train": ("supernet.job", TRAIN), "search": ("search.runner", SEARCH)}


def open_marks(path: Path, new: bool = False) -> NDArray[np.int64]:
    """The marks in a file, `new` ones all zero but for "nothing yet"."""
    shape = (ENTRIES + len(PHASES),)
    marks: Any = np.memmap(path, np.int64, "w+" if new else "r+", shape=shape)
    if new:
        marks[FIRST] = -1
    return marks


def main(argv: list[str]) -> None:
    """Run the program that `argv` names."""
    marks, kind = open_marks(Path(argv[1])), argv[2]
    sys.argv = [f"{kind}.py", *argv[3:]]
    from supernet.cli import entry
    from supernet.interrupt import deferred

    def program(config: dict[str, Any]) -> float:
        _enter(marks, "start")
        module, places = PROGRAMS[kind]
        with deferred():  # as `supernet.cli` imports programs
            importlib.import_module(module)
        for place, phase in places.items():
            _mark(marks, place, phase)
        result: float = importlib.import_module(module).main(config)
        _enter(marks, "end")
        return result

    entry(kind, program)


def _enter(marks: NDArray[np.int64], phase: str) -> None:
    number = PHASES.index(phase)
    marks[PHASE] = number
    marks[ENTRIES + number] += 1


def _mark(marks: NDArray[np.int64], place: str, phase: str) -> None:
    """Replace a function by one that enters its phase, and goes back to the phase before when it returns."""
    module, _, name = place.partition(":")
    owner: Any = importlib.import_module(module)
    if "." in name:
        holder, _, name = name.partition(".")
        owner = getattr(owner, holder)
    original: Callable[..., Any] = getattr(owner, name)

    def marked(*args: Any, **kwargs: Any) -> Any:
        before = marks[PHASE]
        done = _done(place, args)
        if done is not None and marks[FIRST] < 0:
            marks[FIRST] = done
        _enter(marks, phase)
        result = original(*args, **kwargs)
        marks[PHASE] = before
        if done is not None:
            marks[DONE] = done + 1
        return result

    setattr(owner, name, marked)


def _done(place: str, args: tuple[Any, ...]) -> int | None:
    """How many steps a run, or how many trials a search has done, where one more is about to be done."""
    if place == STEP:
        return int(args[0].step)
    return len(args[0].trials) if place == APPEND and "arch" in args[1] else None


if __name__ == "__main__":
    main(sys.argv)
