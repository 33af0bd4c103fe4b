"""Faults, built into a search before it begins. Each function changes one thing for good."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from injections import die, full_disk, kill_in_write, no_permission, one_of
from searching import train_on

from search import history, report, study
from search.evaluator import SupernetEvaluator
from supernet import export, runs

__all__ = ["full_disk", "kill_in_write", "no_permission", "one_of"]


def draw_nothing() -> None:
    """No figures: drawing takes longer than searching here."""
    study.plot_front = lambda *given: None
    report.plot_progress = lambda *given: None


def before(owner: Any, name: str, count: int, act: Callable[..., object]) -> None:
    """Call `act`, with the arguments, before the `count`-th call (from 1) of a function."""
    original, seen = getattr(owner, name), [0]

    def then(*given: Any, **named: Any) -> Any:
        seen[0] += 1
        if seen[0] == count:
            act(*given)
        return original(*given, **named)

    setattr(owner, name, then)


def kill_in_evaluation(count: int) -> None:
    """Die when the `count`-th subnet is to be scored."""
    before(SupernetEvaluator, "_scores", count, die)


def kill_in_append(count: int) -> None:
    """Die with half of the `count`-th line in trials.jsonl. The first line is no trial."""

    def act(self: history.History, data: Any) -> None:
        line = history._sealed(runs.plain(data)).encode()
        with self.path.open("ab") as file:
            file.write(line[: len(line) // 2])
        die()

    before(history.History, "_write", count, act)


def kill_in_export(place: str) -> None:
    """Die in the export: "weights", half written; "check", before the file is compared; "name", before it has one."""
    if place == "weights":
        kill_in_write("model.safetensors", 1, "bytes")
    else:
        before(export, {"check": "_verify", "name": "_replace"}[place], 1, die)


def signal_in_evaluation(count: int, name: str) -> None:
    """A signal arrives when the `count`-th subnet is to be scored."""
    before(SupernetEvaluator, "_scores", count, lambda *given: os.kill(os.getpid(), getattr(signal, name)))


def signal_at_the_start(name: str) -> None:
    """A signal arrives before the record of trials is begun."""
    before(history.History, "_write", 1, lambda *given: os.kill(os.getpid(), getattr(signal, name)))


def signal_in_export(name: str) -> None:
    """A signal arrives when an export is checked."""
    before(export, "_verify", 1, lambda *given: os.kill(os.getpid(), getattr(signal, name)))


def full_disk_for_trials(count: int) -> None:
    """The disk is full when the `count`-th line of trials.jsonl is half written."""
    sync, opened, seen = os.fsync, Path.open, [0]
    ours: set[int] = set()

    def open_counted(self: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        file = opened(self, mode, *rest, **more)
        if mode == "ab" and self.name == "trials.jsonl":
            seen[0] += 1
            if seen[0] == count:
                ours.add(file.fileno())
        return file

    def sync_full(handle: int) -> None:
        if handle in ours:
            os.ftruncate(handle, os.fstat(handle).st_size - 40)
            raise OSError(28, "No space left on device")
        sync(handle)

    Path.open = open_counted  # type: ignore[assignment,method-assign]
    os.fsync = sync_full  # type: ignore[assignment]


def format_fails(name: str) -> None:
    """The converter of a format leaves half a file and fails, as converters do on an operation they do not know."""

    def write(subnet: Any, path: Path, images: Any) -> float:
        path.write_bytes(b"half")
        raise NotImplementedError("no such operation:\nand a long explanation")

    export._WRITERS[name] = write


def weights_replaced(count: int, run: str) -> None:
    """Somebody trains on: the checkpoint is another one when the `count`-th subnet is to be scored."""

    before(SupernetEvaluator, "_scores", count, lambda *given: train_on(Path(run)))


def folder_deleted(count: int) -> None:
    """Somebody deletes the folder of the search when the `count`-th line of trials.jsonl is to be written."""
    before(history.History, "_write", count, lambda self, data: shutil.rmtree(self.path.parent))


def wait_in_evaluation(count: int, file: str) -> None:
    """Wait when the `count`-th subnet is to be scored until `file` exists; `file`.here says that it is waiting."""
    import time

    def act(*given: Any) -> None:
        Path(f"{file}.here").touch()
        deadline = time.monotonic() + 60
        while not Path(file).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    before(SupernetEvaluator, "_scores", count, act)


def stuck_in_evaluation(count: int) -> None:
    """Stand still when the `count`-th subnet is to be scored."""
    before(SupernetEvaluator, "_scores", count, lambda *given: os.kill(os.getpid(), signal.SIGSTOP))
