"""Learning-rate schedules: closed forms and shapes. Original numbers: see test_golden_alphanet.py."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supernet.schedule import Cosine, ExponentialTail, Polynomial, Schedule, warmup


def curve(schedule: Schedule, steps_per_epoch: int, epochs: int) -> list[float]:
    total = steps_per_epoch * epochs
    return [schedule(step, steps_per_epoch, total) for step in range(total + 1)]


def test_warmup_is_linear() -> None:
    assert [warmup(t, 4, 0.2) for t in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert warmup(0, 0, 0.2) == 1.0


def test_cosine_by_hand() -> None:
    values = curve(Cosine(), 1, 4)
    assert values == pytest.approx([1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0.0])
    assert curve(Cosine(final=0.1), 1, 2) == pytest.approx([1.0, 0.55, 0.1])


def test_exponential_by_hand() -> None:
    """0.97 every 2.4 epochs until 5% are left: BigNAS."""
    values = curve(ExponentialTail(), 10, 360)
    assert values[24] == pytest.approx(0.97)
    assert values[240] == pytest.approx(0.97**10)
    first_flat = math.ceil(24 * math.log(0.05) / math.log(0.97))
    assert values[first_flat - 1] > 0.05
    assert set(values[first_flat:]) == {0.05}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_never_rises_after_the_warmup_and_stays_in_range(data: Any) -> None:
    warm = data.draw(st.floats(0, 5))
    start, low = data.draw(st.floats(0, 1)), data.draw(st.floats(0, 0.9))
    steps = data.draw(st.integers(1, 20))
    decay, every = data.draw(st.floats(0.5, 1.0)), data.draw(st.floats(0.1, 3))
    schedules: list[Schedule] = [
        Cosine(warm, start, low),
        ExponentialTail(decay, every, low, warm, start),
        Polynomial(every, warm, start, low),
    ]
    for schedule in schedules:
        values = curve(schedule, steps, 12)
        after = values[math.ceil(warm * steps) :]
        assert all(a >= b for a, b in pairwise(after))
        assert all(0 <= value <= 1 for value in values)
        assert min(after) >= low


def test_resuming_needs_no_state() -> None:
    for schedule in (Cosine(2), ExponentialTail(warmup_epochs=2), Polynomial(2, 2)):
        values = curve(schedule, 7, 9)
        assert [schedule(step, 7, 63) for step in range(63, -1, -1)] == values[::-1]


def test_warmup_starts_low_and_ends_continuously() -> None:
    for schedule in (Cosine(5, 0.001), ExponentialTail(warmup_epochs=5), Polynomial(1, 5)):
        values = curve(schedule, 100, 100)
        assert values[0] == pytest.approx(0.001)
        assert max(abs(a - b) for a, b in pairwise(values)) < 0.01


@pytest.mark.parametrize(
    "bad",
    [
        {"warmup_epochs": -1},
        {"warmup_start": 1.5},
        {"final": -0.1},
        {"floor": 2.0},
        {"decay": 0.0},
        {"decay_epochs": 0.0},
    ],
)
def test_bad_settings_are_refused(bad: dict[str, float]) -> None:
    (name, value) = next(iter(bad.items()))
    kind: Any = Cosine if name in ("warmup_epochs", "warmup_start", "final") else ExponentialTail
    with pytest.raises(ValueError, match=str(value)):
        kind(**bad)


def test_polynomial_of_power_one_is_a_straight_line() -> None:
    assert curve(Polynomial(final=0.2), 5, 2) == pytest.approx([1 - 0.08 * step for step in range(11)])
    assert Polynomial(power=2.0)(5, 1, 10) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="power=0"):
        Polynomial(power=0)
