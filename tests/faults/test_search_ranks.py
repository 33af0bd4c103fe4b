"""A search in two processes, one of which dies or stands still."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
from documented import as_documented
from searching import copied, ends_like, only_search, searching, trials
from zygote import Ended, Injection, Running, Zygote


def started(zygote: Zygote, run: Path, fault: Injection, *overrides: str) -> tuple[Running, Running]:
    """Both processes; the fault happens to the second one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = searching(run, *overrides)
    return zygote.start(argv, ("one_of", 0, 2, port)), zygote.start(argv, ("one_of", 1, 2, port), fault)


def check(first: Ended, run: Path, zygote: Zygote, whole_search: Path, fault: str) -> None:
    """What the first process says, and that one process alone can go on."""
    as_documented(fault, first, "Search")
    assert not [line for line in first.err.splitlines() if "gloo" in line.lower()]
    known = len(trials(only_search(run)))
    assert 0 < known < 8
    ends_like(zygote, run, whole_search, known)


def test_a_process_that_dies(zygote: Zygote, whole: Path, whole_search: Path, tmp_path: Path) -> None:
    run = copied(whole, tmp_path)
    first, second = started(zygote, run, ("kill_in_evaluation", 3))
    assert second.ended().code == 137
    check(first.ended(), run, zygote, whole_search, "a process of a search dies")


@pytest.mark.exhaustive
def test_a_process_that_stands_still(zygote: Zygote, whole: Path, whole_search: Path, tmp_path: Path) -> None:
    run = copied(whole, tmp_path)
    first, second = started(zygote, run, ("stuck_in_evaluation", 3), "timeout_s=3")
    ended = first.ended()
    os.kill(second.pid, signal.SIGKILL)
    assert second.ended().code == 137
    check(ended, run, zygote, whole_search, "a process of a search stands still")
