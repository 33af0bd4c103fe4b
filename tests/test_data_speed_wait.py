"""The share of the time that training waits for its images."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from supernet.waiting import WaitMeter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Slow:
    def speed_advice(self) -> str:
        return "buy a faster disk"


def arriving(clock: Clock, seconds: float, count: int) -> Iterator[int]:
    for number in range(count):
        clock.now += seconds
        yield number
    clock.now += seconds  # finding out that there is nothing more


def test_waiting_and_work_are_told_apart() -> None:
    clock = Clock()
    meter = WaitMeter(clock)
    assert meter.read() == 0
    seen = []
    for number in meter.watch(arriving(clock, 1, 4)):
        seen.append(number)
        clock.now += 3
        with meter.paused():
            clock.now += 1000  # an evaluation
    assert seen == [0, 1, 2, 3]
    assert meter.read() == pytest.approx(100 * 5 / (5 + 12))
    assert meter.read() == 0


def test_a_reading_within_the_loop_covers_complete_steps() -> None:
    clock = Clock()
    meter = WaitMeter(clock)
    read = []
    for number in meter.watch(arriving(clock, 2, 3)):
        read.append(meter.read())
        clock.now += 2 if number == 0 else 6
    assert read == [pytest.approx(value) for value in (0, 50, 25)]
    assert meter.read() == pytest.approx(100 * 4 / 10)  # with the end of the epoch


def test_a_pause_counts_for_its_own_step_only() -> None:
    clock = Clock()
    meter = WaitMeter(clock)
    for number in meter.watch(arriving(clock, 1, 2)):
        clock.now += 4
        if number == 0:
            with meter.paused():
                clock.now += 7
    assert meter.read() == pytest.approx(100 * 3 / 11)


@pytest.mark.parametrize(
    ("wait", "work", "steps", "told"), [(2, 8, 10, True), (0.5, 9.5, 50, False), (0.02, 0.01, 10, False)]
)
def test_advice_is_given_once_and_only_where_it_matters(wait: float, work: float, steps: int, told: bool) -> None:
    """20% is much, 5% is not, and 0.2 seconds are never worth a word."""
    clock = Clock()
    meter = WaitMeter(clock)
    said = []
    for _ in range(2):
        for _ in meter.watch(arriving(clock, wait, steps)):
            clock.now += work
        said.append(meter.advice(Slow()))
    share = round(100 * (steps + 1) * wait / (steps * (wait + work) + wait))
    line = f"training waited for images {share}% of the time: buy a faster disk"
    assert said == [line if told else None, None]


def test_data_without_advice_gets_none() -> None:
    clock = Clock()
    meter = WaitMeter(clock)
    for _ in meter.watch(arriving(clock, 10, 5)):
        clock.now += 1
    assert meter.advice(object()) is None
