"""Sampling inside a cost window, and listing small spaces."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare
from tiny import big_space, tiny_space

from supernet import window
from supernet.cost import cost
from supernet.errors import UserError
from supernet.space import Space
from supernet.window import enumerate_archs, sample_in_window


def per_block_space() -> Space:
    return tiny_space(choose="block", resolution=(8,), head={"width": [16]})


def conditional(space: Space, low: float, high: float) -> dict[object, float]:
    """The exact probabilities: all gene rows, counted genes or not, equally likely."""
    limits = [len(gene.options) for gene in space.genes]
    weights: Counter[object] = Counter()
    for codes in np.ndindex(*limits):
        weights[space.decode(codes)] += 1
    inside = {arch: n for arch, n in weights.items() if low <= space.plan(arch).macs <= high}
    total = sum(inside.values())
    return {arch: n / total for arch, n in inside.items()}


@pytest.mark.parametrize("space", [tiny_space(), per_block_space()], ids=["stage", "block"])
def test_enumeration_holds_every_subnet_once(space: Space) -> None:
    archs = list(enumerate_archs(space))
    assert len(archs) == len(set(archs)) == space.size()


@pytest.mark.parametrize("seed", [0, 1])
def test_wide_windows_are_sampled_exactly(seed: int) -> None:
    space = per_block_space()
    all_macs = sorted(space.plan(arch).macs for arch in enumerate_archs(space))
    low, high = all_macs[len(all_macs) // 3], all_macs[2 * len(all_macs) // 3]
    expected = conditional(space, low, high)
    drawn = Counter(sample_in_window(space, np.random.default_rng(seed), 20_000, {"macs": (low, high)}))
    assert set(drawn) <= set(expected)
    archs = list(expected)
    result = chisquare([drawn[a] for a in archs], [20_000 * expected[a] for a in archs])
    assert result.pvalue > 1e-3


def test_no_window_is_uniform_over_genes() -> None:
    space = per_block_space()
    expected = conditional(space, 0, np.inf)
    drawn = Counter(sample_in_window(space, np.random.default_rng(3), 20_000, {}))
    archs = list(expected)
    assert chisquare([drawn[a] for a in archs], [20_000 * expected[a] for a in archs]).pvalue > 1e-3


WINDOWS = [(200e6, 300e6), (203e6, 206e6), (290e6, 292e6), (700e6, 701e6), (1.85e9, 1.95e9)]


@pytest.mark.parametrize("window_", WINDOWS, ids=str)
def test_narrow_windows_of_a_large_space(window_: tuple[float, float]) -> None:
    space = big_space()
    low, high = window_
    cost.batch(space, np.zeros((1, len(space.genes)), dtype=int))  # tabulate once, outside the clock
    start = time.perf_counter()
    archs = space.sample(np.random.default_rng(0), 1000, macs=window_)
    assert time.perf_counter() - start < 10  # about half a second; a blind loop would take hours
    assert len(archs) == 1000
    assert all(low <= space.plan(arch).macs <= high for arch in archs)
    assert len(set(archs)) > 10


def test_windows_on_both_costs_hold_together() -> None:
    space = big_space()
    archs = space.sample(np.random.default_rng(0), 200, macs=(400e6, 420e6), params=(12e6, 13e6))
    plans = [space.plan(arch) for arch in archs]
    assert all(400e6 <= plan.macs <= 420e6 and 12e6 <= plan.params <= 13e6 for plan in plans)


def test_the_tilted_draw_is_close_to_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both can be drawn, the mean option of every gene differs little, and much from a plain draw's."""
    space = big_space()
    limits = np.array([len(gene.options) for gene in space.genes])

    def means() -> np.ndarray:
        archs = sample_in_window(space, np.random.default_rng(0), 1000, {"macs": (400e6, 420e6)})
        return np.array([space.encode(a) for a in archs]).mean(axis=0) / np.maximum(limits - 1, 1)

    exact = means()
    monkeypatch.setattr(window, "ENOUGH", 1.0)
    tilted = means()
    free = (limits > 1) * 0.5
    assert np.abs(tilted - exact).mean() < 0.07
    assert np.abs(tilted - exact).mean() < 0.5 * np.abs(free - exact).mean()


def test_the_same_seed_draws_the_same() -> None:
    space = big_space()
    first, again = (space.sample(np.random.default_rng(5), 20, macs=(250e6, 260e6)) for _ in range(2))
    assert first == again


@pytest.mark.parametrize("window_", [(1e6, 2e6), (5e9, 6e9), (203_389_569, 203_390_000)])
def test_an_impossible_window_says_what_is_reachable(window_: tuple[float, float]) -> None:
    space = big_space()
    with pytest.raises(UserError, match="203,389,568 to 1,939,335,808; nearest seen") as caught:
        space.sample(np.random.default_rng(0), 10, macs=window_)
    nearest = 1_939_335_808 if window_[0] > 1e9 else 203_389_568
    assert f"nearest seen: {nearest:,}" in str(caught.value)


def test_an_empty_window_and_an_unknown_cost_are_refused() -> None:
    space = tiny_space()
    with pytest.raises(UserError, match=r"macs window \[200, 100\] is empty"):
        space.sample(np.random.default_rng(0), 1, macs=(200, 100))
    with pytest.raises(ValueError, match="latency"):
        sample_in_window(space, np.random.default_rng(0), 1, {"latency": (0, 1)})
