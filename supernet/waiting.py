"""How long the training loop waits for its images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")

HIGH = 10.0  # percent of the time; less is not worth a word
MATTERS = 5.0  # seconds waited; a share of less is noise, or the start of the workers in a short run


@runtime_checkable
class GivesAdvice(Protocol):
    """Data that can say how to be faster."""

    def speed_advice(self) -> str:
        """What to change in the configuration, in one line."""
        ...


class WaitMeter:
    """Splits the time of a loop into waiting for the next batch and everything else, by the host's clock.

    On a GPU the host may run ahead of the device; what it waits then costs no time yet, so that the share is an upper
    bound. Nothing here waits for the device. `clock` gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._paused = 0.0
        self._recent, self._epoch = [0.0, 0.0], [0.0, 0.0]  # seconds waited, and in all
        self._advised = False

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; the time that each takes to arrive counts as waiting, that until the next as work."""
        arriving = iter(batches)
        while True:
            begin = self._clock()
            try:
                batch = next(arriving)
            except StopIteration:
                self._add(waited=self._clock() - begin, worked=0.0)
                return
            arrived = self._clock()
            self._paused = 0.0
            yield batch
            self._add(waited=arrived - begin, worked=self._clock() - arrived - self._paused)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside counts neither as waiting nor as work: evaluations, checkpoints."""
        begin = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - begin

    def read(self) -> float:
        """Percent of the time since the last reading that was spent waiting; 0 where no step is complete."""
        return _percent(self._take(self._recent))

    def advice(self, data: object) -> str | None:
        """What to do about the waiting since the last call, at the end of an epoch; None if it is little or was said.

        Asks `data` where it has something to say (`GivesAdvice`).
        """
        waited, total = self._take(self._epoch)
        share = _percent((waited, total))
        if self._advised or share <= HIGH or waited < MATTERS or not isinstance(data, GivesAdvice):
            return None
        self._advised = True
        return f"training waited for images {share:.0f}% of the time: {data.speed_advice()}"

    def _add(self, waited: float, worked: float) -> None:
        for sums in (self._recent, self._epoch):
            sums[0] += waited
            sums[1] += waited + worked

    def _take(self, sums: list[float]) -> tuple[float, float]:
        waited, total = sums
        sums[:] = [0.0, 0.0]
        return waited, total


def _percent(times: tuple[float, float]) -> float:
    waited, total = times
    return 100 * waited / total if total > 0 else 0.0
