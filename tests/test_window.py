"""Sampling inside a cost window, and listing small spaces."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from nets import space_of
from scipy.stats import chisquare
from tiny import big_space, tiny_space
from tiny_vit import tiny_vit

from supernet import sampling
from supernet.cost import Additive, Factor, Peak, cost, macs_of, memory_of, params_of, size_of
from supernet.errors import UserError
from supernet.sampling import WindowTable, window_table
from supernet.space import Space
from supernet.sweep import extremes, sweep
from supernet.window import enumerate_archs, rows_in_window, sample_in_window


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
    archs = space.sample(np.random.default_rng(0), 1000, macs=window_)
    assert len(archs) == 1000
    assert all(low <= space.plan(arch).macs <= high for arch in archs)
    assert len(set(archs)) > 10


def test_windows_on_both_costs_hold_together() -> None:
    space = big_space()
    archs = space.sample(np.random.default_rng(0), 200, macs=(400e6, 420e6), params=(12e6, 13e6))
    plans = [space.plan(arch) for arch in archs]
    assert all(400e6 <= plan.macs <= 420e6 and 12e6 <= plan.params <= 13e6 for plan in plans)


def rows_of(space: Space) -> np.ndarray:
    limits = tuple(len(gene.options) for gene in space.genes)
    return np.indices(limits).reshape(len(limits), -1).T


def table_free(space: Space, measure: Additive) -> Additive:
    """The same measure in floating point, as latencies are."""
    return Additive(space, [Factor(f.reads, f.table * 1e-7) for f in measure.factors], offset=3.25)


@pytest.mark.parametrize("kind", ["macs", "params", "size", "float"])
@pytest.mark.parametrize("additions", [2**26, 3000], ids=["fine", "coarse"])
@pytest.mark.parametrize("share", [(0.3, 0.4), (0.0, 0.1), (0.97, 1.0), (0.5, 0.5)], ids=str)
def test_tables_draw_every_row_inside_equally_often(
    monkeypatch: pytest.MonkeyPatch, kind: str, additions: int, share: tuple[float, float]
) -> None:
    """Against the list of all 6,144 rows; also where the bins are so coarse that most draws are rejected.

    These are 32 tests at once, so each may fail by chance in 3 of 100,000 cases only.
    """
    monkeypatch.setattr(sampling, "ADDITIONS", additions)
    space = tiny_space(choose="block")
    macs = macs_of(space)
    measures = {"macs": macs, "params": params_of(space), "size": size_of(space), "float": table_free(space, macs)}
    measure, rows = measures[kind], rows_of(space)
    values = measure.batch(rows)
    low, high = np.quantile(values, share, method="nearest").tolist()
    inside = (values >= low) & (values <= high)
    steps = sweep(space, measure.factors)
    assert steps is not None
    table = WindowTable(measure, steps, low, high)
    assert inside.sum() <= table.rows <= len(rows)
    drawn = table.draw(np.random.default_rng(0), 200_000)
    numbers = np.ravel_multi_index(tuple(drawn.T), tuple(len(gene.options) for gene in space.genes))
    counts = np.bincount(numbers, minlength=len(rows))[inside]
    groups = np.array_split(counts, max(1, min(len(counts), counts.sum() // 20)))
    expected = np.array([len(group) for group in groups]) * counts.sum() / len(counts)
    assert chisquare([group.sum() for group in groups], expected).pvalue > 3e-5


def test_whole_numbers_with_a_common_divisor_are_not_rounded() -> None:
    """MACs of the tiny space: every row that the table offers is inside."""
    space = tiny_space(choose="block")
    table = window_table(macs_of(space), 300_000, 300_500)
    values = macs_of(space).batch(rows_of(space))
    assert table is not None
    assert table.rows == ((values >= 300_000) & (values <= 300_500)).sum()


def test_tables_agree_with_rejection_on_a_large_space() -> None:
    """The mean option of every gene, within five standard errors of the difference."""
    space = big_space()
    windows = {"macs": (400e6, 440e6)}
    limits = np.array([len(gene.options) for gene in space.genes])
    rng = np.random.default_rng(1)
    plain = rng.integers(0, limits, size=(1_000_000, len(limits)))
    macs = macs_of(space).batch(plain)
    rejected = plain[(macs >= 400e6) & (macs <= 440e6)]
    drawn = rows_in_window(space, rng, 20_000, windows)
    error = np.sqrt(rejected.var(axis=0) / len(rejected) + drawn.var(axis=0) / len(drawn))
    assert len(rejected) > 1000
    assert (np.abs(drawn.mean(axis=0) - rejected.mean(axis=0)) <= 5 * error).all()


def test_a_window_of_one_value() -> None:
    space = per_block_space()
    values = Counter(space.plan(arch).macs for arch in enumerate_archs(space))
    for value in (min(values), sorted(values)[len(values) // 2], max(values)):
        archs = sample_in_window(space, np.random.default_rng(0), 50, {"macs": (value, value)})
        assert {space.plan(arch).macs for arch in archs} == {value}


def test_the_smallest_subnet_alone_of_a_large_space() -> None:
    space = big_space()
    archs = space.sample(np.random.default_rng(0), 20, macs=(203_389_568, 203_389_568))
    assert {space.plan(arch).macs for arch in archs} == {203_389_568}


@pytest.mark.parametrize("name", ["ofa_mbv3", "autoformer_tiny", "ofa_resnet50", "mobilenetv2_slimmable"])
def test_windows_of_all_families(name: str) -> None:
    space = space_of(name)
    for measure in (macs_of(space), params_of(space)):
        least, most = extremes(space, measure)
        window = (least + 0.4 * (most - least), least + 0.5 * (most - least))
        rows = rows_in_window(space, np.random.default_rng(0), 500, {"it": window}, {"it": measure})
        values = measure.batch(rows)
        assert window[0] <= values.min() <= values.max() <= window[1]


def test_measures_that_are_no_sums_only_reject() -> None:
    space = big_space()
    windows = {"macs": (0, 500e6), "memory_mb": (0, 6.0)}
    measures = {"macs": macs_of(space), "memory_mb": memory_of(space)}
    rows = rows_in_window(space, np.random.default_rng(0), 300, windows, measures)
    assert measures["macs"].batch(rows).max() <= 500e6
    assert measures["memory_mb"].batch(rows).max() <= 6.0
    rows = rows_in_window(space, np.random.default_rng(0), 300, {"memory_mb": (0, 6.0)}, measures)
    assert measures["memory_mb"].batch(rows).max() <= 6.0


@pytest.mark.parametrize("space", [tiny_space(choose="block"), tiny_space(shortcut="always"), tiny_vit()])
def test_extremes_are_those_of_the_list(space: Space) -> None:
    """Also where they are not those of the smallest and the largest subnet: costs with random signs."""
    rows, rng = rows_of(space), np.random.default_rng(0)
    factors = macs_of(space).factors
    noise = [Factor(f.reads, rng.integers(-1000, 1000, f.table.shape)) for f in factors]
    measures = [macs_of(space), params_of(space), size_of(space), memory_of(space)]
    for measure in (*measures, Additive(space, noise, offset=7), Peak(space, noise)):
        values = measure.batch(rows)
        assert extremes(space, measure) == (values.min(), values.max())


def test_factors_in_any_order_are_swept_narrowly() -> None:
    space = big_space()
    shuffled = list(macs_of(space).factors)
    np.random.default_rng(0).shuffle(shuffled)
    steps = sweep(space, shuffled)
    assert steps is not None
    assert max(step.combinations for step in steps) < 5000
    assert extremes(space, Additive(space, shuffled)) == (203_389_568, 1_939_335_808)


def test_a_thousand_subnets_in_no_time() -> None:
    """200 to 300 MMACs hold 0.08% of the uniform draws; set-up included."""
    space = space_of("alphanet")
    cost.batch(space, np.zeros((1, len(space.genes)), dtype=int))  # tabulate once, outside the clock
    start = time.perf_counter()
    archs = space.sample(np.random.default_rng(0), 1000, macs=(200e6, 300e6))
    assert time.perf_counter() - start < 1
    assert len(set(archs)) > 950


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
