"""Worker processes that load images: how many, what signals mean to them, and seeds for the libraries they call."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from supernet.data.base import check_int
from supernet.interrupt import NOTICES

STOP_SIGNALS = (signal.SIGINT, *NOTICES)


def worker_count(num_workers: int | None) -> int:
    """The number of worker processes; None means one per core that we may use, at most eight."""
    if num_workers is not None:
        return check_int("data.num_workers", num_workers, minimum=0)
    allowed = getattr(os, "sched_getaffinity", None)
    return min(8, len(allowed(0)) if allowed else os.cpu_count() or 1)


def leave_signals_to_main(worker: int) -> None:
    """Let Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP stop the main process only (a DataLoader's `worker_init_fn`).

    Terminals and job schedulers signal the whole process group, and the main process still needs its images to
    finish the step. A SIGTERM that the main process itself sends is obeyed: torch and multiprocessing end workers
    that way at exit. A worker whose main process has died ends within about a second. Does nothing in a process
    that is no worker.
    """
    main = multiprocessing.parent_process()
    if main is None:
        return
    if not hasattr(signal, "sigtimedwait"):  # macOS, Windows: nothing tells who sent a signal
        for number in STOP_SIGNALS:
            if number != signal.SIGTERM:
                signal.signal(number, signal.SIG_IGN)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    threading.Thread(target=_obey_main, args=(main.pid, os.getppid()), daemon=True).start()


def _obey_main(main: int | None, parent: int) -> None:
    """`parent` is `main` too, or the server that forks the workers and ends with it."""
    while os.getppid() == parent:
        received = signal.sigtimedwait(STOP_SIGNALS, 1.0)
        if received is not None and received.si_pid == main:
            break
    os._exit(0)


@contextmanager
def stop_signals_held() -> Iterator[None]:
    """Deliver `STOP_SIGNALS` only when this context ends; processes started inside begin with them held back.

    Otherwise a signal could end a worker before `leave_signals_to_main` runs in it.
    """
    if not hasattr(signal, "pthread_sigmask"):  # not a POSIX system
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def deaths_noticed_later() -> Iterator[None]:
    """Take back what torch does about ended child processes when loaders are started inside.

    Its handler of SIGCHLD raises an exception wherever the main process is then: in the middle of a checkpoint, say, or
    where exceptions are ignored. Without it a worker's end is noticed when its images are asked for.
    """
    number = getattr(signal, "SIGCHLD", None)
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(number)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL if before is None else before)


@contextmanager
def seeded_libraries(*key: int) -> Iterator[None]:
    """Seed the global CPU generators of torch, `random` and NumPy by the integers in `key`; put them back at the end.

    For transforms of torchvision and timm, which accept no generator.
    """
    rng = torch.random.default_generator  # torch.manual_seed would reach the GPU's too
    before = rng.get_state(), random.getstate(), np.random.get_state()
    words = np.random.SeedSequence(key).generate_state(6)
    # As `generator` does. Equal seeds would give `random` and NumPy the same numbers.
    rng.manual_seed(int.from_bytes(words[:2].tobytes(), "little"))
    random.seed(int.from_bytes(words[2:4].tobytes(), "little"))
    np.random.seed(words[4:6])
    try:
        yield
    finally:
        rng.set_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])
