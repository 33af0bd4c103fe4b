"""The guard stops what has fallen apart, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from supernet.collapse import CollapseGuard


def first_alarm(history: list[float], num_classes: int = 10) -> int | None:
    guard = CollapseGuard(num_classes)
    return next((i for i, top1 in enumerate(history) if guard.collapsed(top1)), None)


def test_a_fall_to_chance_is_noticed_at_its_second_evaluation() -> None:
    assert first_alarm([30, 60, 80, 10, 10.5, 10]) == 4


def test_two_classes_collapse_too() -> None:
    assert first_alarm([80, 97, 98, 50, 50, 50], num_classes=2) == 4
    assert first_alarm([60, 55, 50, 51, 50], num_classes=2) is None


@pytest.mark.parametrize(
    "history",
    [
        [10, 10, 10, 10, 10, 10],  # nothing learned yet
        [12, 19, 10, 9, 10, 30],  # hardly more than chance
        [60, 80, 10, 78, 11, 80],  # single bad evaluations
        [60, 80, 45, 42, 41],  # much worse, but not at chance
        [30, 32, 10, 10, 10],  # not yet a quarter of the way
    ],
)
def test_others_go_on(history: list[float]) -> None:
    assert first_alarm(history) is None


def test_a_noisy_healthy_run_goes_on() -> None:
    rng = np.random.default_rng(0)
    rising = 90 * (1 - np.exp(-np.arange(200) / 30)) + 10
    assert first_alarm(list(np.clip(rising + rng.normal(0, 8, 200), 0, 100))) is None


def test_what_it_knows_survives_a_restart() -> None:
    guard = CollapseGuard(10)
    for top1 in (50.0, 80.0, 10.0):
        assert not guard.collapsed(top1)
    again = CollapseGuard(10)
    again.load_state_dict(guard.state_dict())
    assert again.collapsed(10.0)
    assert "80.00% to 10.00%" in again.message(10.0, 7, "best.pt")
