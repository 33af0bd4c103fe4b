"""Requests to stop: Ctrl-C, and the signals by which schedulers announce the end of a job."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

INTERRUPTED = 130  # what shells report for Ctrl-C
REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: start the same job again later
# SIGUSR1 is what schedulers can be told to send some time before the end, SIGHUP says that the terminal was closed.
# Windows lacks both.
NOTICES = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
SIGHUP = getattr(signal, "SIGHUP", None)


class Preempted(KeyboardInterrupt):
    """One of `NOTICES` ended the program, not a user: a scheduler may start it again."""


def exit_code(stop: KeyboardInterrupt) -> int:
    """What the program leaves with: `REQUEUE` where the job is to be started again, else `INTERRUPTED`.

    Not 128 + number: a process that a signal ended before it could save anything looks like that.
    """
    return REQUEUE if isinstance(stop, Preempted) else INTERRUPTED


@contextmanager
def interrupts_unwrapped() -> Iterator[None]:
    """A `KeyboardInterrupt` that code in between has turned into another exception leaves as itself.

    Python does that where one arrives while a class is being built, so in the middle of any import.

    Raises:
        KeyboardInterrupt: the one that is the cause of what was raised inside.
    """
    try:
        yield
    except Exception as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, KeyboardInterrupt):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from None


class StopRequest:
    """A context in which the first of SIGINT and `NOTICES` sets `requested` and `number`, that of the signal.

    After that only Ctrl-C interrupts at once: schedulers send several signals, and each would spoil the saving that the
    first began. A `KeyboardInterrupt` leaves the context as `Preempted` where a scheduler asked.
    Outside the main thread, where Python allows no handlers, it never sets anything.
    """

    def __init__(self) -> None:
        self.requested = False
        self.number = 0
        self._previous: dict[int, Any] = {}

    def interruption(self) -> KeyboardInterrupt:
        """The exception to leave with, once everything is saved."""
        return Preempted() if self.number in NOTICES else KeyboardInterrupt()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Inside, signals act as they did before this context.

        Raises:
            KeyboardInterrupt: at the beginning, where one has come already.
        """
        if self.requested:
            raise self.interruption()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        try:
            yield
        finally:
            for number in self._previous:
                signal.signal(number, self._handle)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *NOTICES):
                if number == SIGHUP and signal.getsignal(number) is signal.SIG_IGN:  # started by nohup
                    continue
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if kind is KeyboardInterrupt and self.number in NOTICES:
            raise self.interruption() from None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self.number = True, number
        elif number == signal.SIGINT:
            self.number = number
            raise KeyboardInterrupt


@contextmanager
def deferred() -> Iterator[None]:
    """What interrupts inside is raised at the end, for code that cannot be cut short: libraries that load themselves
    from C++ end the whole process where Python raises something. A second Ctrl-C interrupts at once.

    Raises:
        KeyboardInterrupt: at the end.
    """
    with StopRequest() as stop:
        yield
    if stop.requested:
        raise stop.interruption()


@contextmanager
def notices_interrupt() -> Iterator[None]:
    """Inside, the signals of `NOTICES` raise `Preempted`, as Ctrl-C raises `KeyboardInterrupt`.

    Those that the process was started to ignore stay ignored. Does nothing outside the main thread.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        raise Preempted

    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in NOTICES:
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
