"""Random budgets on random spaces: what is inside, what is drawn, what is repaired, and what is said otherwise."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
from families import Case, cases, codes_of, counting_by_hand, refusal, rows_of, small_spaces
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from search.constraint import Constraint
from search.gradient.knapsack import best_row
from supernet.cost import Factor, macs_of
from supernet.space import Space, Window

MEASURES = ("macs", "params", "memory_mb", "size_mb")
seeds = st.integers(0, 2**32)


def values_by_hand(space: Space, codes: tuple[int, ...]) -> dict[str, float]:
    """Every cost of a subnet, from its plan."""
    plan = space.plan(space.decode(codes))
    megabytes = {"memory_mb": 4 * plan.activations / 1e6, "size_mb": plan.bytes / 1e6}
    return {"macs": plan.macs, "params": plan.params, **megabytes}


def inside(values: dict[str, float], windows: dict[str, Window]) -> bool:
    return all(low <= values[name] <= high for name, (low, high) in windows.items())


def all_codes(space: Space) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(len(gene.options)) for gene in space.genes)))


@st.composite
def windows(draw: st.DrawFn, space: Space, names: tuple[str, ...]) -> dict[str, Window]:
    """One or two windows between the costs of random subnets; some of them are empty of subnets."""
    found = {}
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
        ends = sorted(values_by_hand(space, draw(codes_of(space)))[name] for _ in range(2))
        scale, shift = draw(st.sampled_from((1.0, 0.9, 1.1))), draw(st.sampled_from((0, 0, 1)))
        low, high = ends[0] * scale + shift, max(ends[1] * scale, ends[0] * scale + shift)
        found[name] = (draw(st.sampled_from((low, -math.inf))), draw(st.sampled_from((high, math.inf))))
    return found


@given(small_spaces(), st.data(), seeds)
def test_draws_in_a_window_are_inside_or_there_are_none(space: Space, data: st.DataObject, seed: int) -> None:
    bounds = data.draw(windows(space, ("macs", "params")))
    possible = any(inside(values_by_hand(space, codes), bounds) for codes in all_codes(space))
    rng = np.random.default_rng(seed)
    refused = refusal(space.sample, rng, 5, **bounds)
    assert (refused is None) == possible
    if refused is not None:
        assert "reachable" in refused
        return
    drawn = space.sample(rng, 5, **bounds)
    assert len(drawn) == 5
    assert all(inside(values_by_hand(space, space.encode(arch)), bounds) for arch in drawn)


@given(cases(), st.data(), seeds)
def test_draws_in_large_spaces_are_inside(case: Case, data: st.DataObject, seed: int) -> None:
    """Around a subnet that there is, so that something must be found."""
    space, codes = case
    macs = values_by_hand(space, codes)["macs"]
    spread = data.draw(st.sampled_from((0.0, 0.01, 0.2)))
    low, high = macs * (1 - spread), macs * (1 + spread)
    drawn = space.sample(np.random.default_rng(seed), 3, macs=(low, high))
    assert all(low <= space.plan(arch).macs <= high for arch in drawn)


LIMITS = st.sampled_from(("10%", "50%", "99.5%", "150%", 0.3, 0.9, 1, 1.0, None)) | st.integers(1, 10**6)


@st.composite
def limits_on(draw: st.DrawFn, space: Space) -> dict[str, Any]:
    """Limits on costs as people write them; many are what some subnet has, so that others have more or less."""
    found: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from(MEASURES), min_size=1, max_size=2, unique=True)):
        costs = codes_of(space).map(lambda codes, name=name: values_by_hand(space, codes)[name] or None)
        one = st.sampled_from((LIMITS, costs, costs, costs)).flatmap(lambda limits: limits)
        found[name] = draw(st.sampled_from((one, one, st.tuples(one, one))).flatmap(lambda limits: limits))
    return found


def window_by_hand(name: str, limit: Any, largest: float) -> Window:
    """What a limit means, see `search.constraint.Constraint`."""
    low, high = limit if isinstance(limit, tuple) else (None, limit)
    ends = []
    for end, none in ((low, -math.inf), (high, math.inf)):
        if isinstance(end, str) and end.endswith("%"):
            ends.append(float(end[:-1]) / 100 * largest)
            continue
        value = none if end is None else float(end)
        share = name in ("macs", "params") and end is not None and value <= 1
        ends.append(value * largest if share else value)
    return ends[0], ends[1]


@given(small_spaces(), st.data(), seeds)
def test_budgets(space: Space, data: st.DataObject, seed: int) -> None:
    """Feasible is what is inside, draws are so, and an impossible budget is named."""
    largest = values_by_hand(space, space.encode(space.largest()))
    assume(largest["macs"] > 10)  # so that a tenth of it is more than one, below which numbers are shares
    limits = data.draw(limits_on(space))
    every = all_codes(space)
    meant = {name: window_by_hand(name, limit, largest[name]) for name, limit in limits.items()}
    refused = refusal(Constraint(**limits).on, space)
    assert (refused is None) == all(low <= high for low, high in meant.values()), refused
    if refused is not None:
        assert "the window is empty" in refused, "the only mistake in these limits"
        return
    budget = Constraint(**limits).on(space)
    fits = np.array([inside(values_by_hand(space, codes), meant) for codes in every])
    assert ((budget.violations(np.array(every)) == 0) == fits).all()
    refused = refusal(budget.check_reachable)
    assert (refused is None) == fits.any()
    if refused is None:
        drawn = budget.sample(np.random.default_rng(seed), 3)
        assert all(inside(values_by_hand(space, space.encode(arch)), meant) for arch in drawn)


@st.composite
def contested(draw: st.DrawFn) -> tuple[Space, dict[str, Window]]:
    """A space and one or two bounds, each of which some of its subnets keep and some do not."""
    space = draw(small_spaces().filter(lambda space: rows_of(space) > 1))
    each = [values_by_hand(space, codes) for codes in all_codes(space)]
    costs = {name: sorted({values[name] for values in each}) for name in MEASURES}
    differ = [name for name in MEASURES if len(costs[name]) > 1]
    assume(differ)
    found = {}
    for name in draw(st.lists(st.sampled_from(differ), min_size=1, max_size=2, unique=True)):
        values, last = costs[name], len(costs[name]) - 1
        i = draw(st.integers(0, last - 1))
        j = draw(st.integers(i, last if i else last - 1))
        found[name] = draw(st.sampled_from(((-math.inf, values[i]), (values[i + 1], math.inf), (values[i], values[j]))))
    return space, found


@given(contested(), seeds)
def test_repair_finds_what_there_is(case: tuple[Space, dict[str, Window]], seed: int) -> None:
    """Every subnet of a small space is repaired, and compared with a list of those that are inside.

    Under one bound on a sum over layers repair always finds a subnet if there is one. Under several, or a bound on
    the peak of memory, where no single change may help, it may give up; but never where one change is enough.
    """
    space, bounds = case
    budget = replace(Constraint().on(space), windows=bounds)
    every = np.array(all_codes(space))
    fits = np.array([inside(values_by_hand(space, tuple(codes)), bounds) for codes in every.tolist()])
    archs = [space.decode(codes) for codes in every.tolist()]
    complete = len(bounds) == 1 and "memory_mb" not in bounds and math.inf in map(abs, *bounds.values())
    for i, after in enumerate(budget.repair_all(archs, np.random.default_rng(seed))):
        if fits[i]:
            assert after == archs[i], "it was inside"
        elif after is not None:
            assert inside(values_by_hand(space, space.encode(after)), bounds)
            assert space.decode(space.encode(after)) == after
        else:
            assert not (complete and fits.any()), bounds
            assert not one_change_away(space, every, fits, i), bounds


def one_change_away(space: Space, every: NDArray[np.int64], fits: NDArray[np.bool_], row: int) -> bool:
    """Whether another option of one gene leads inside, whatever the genes are that do not count before."""
    codes = every[row]
    counts = counting_by_hand(space, tuple(codes.tolist()))
    for i, gene in enumerate(space.genes):
        others = [j for j in range(len(codes)) if counts[j] and j != i]
        same = (every[:, others] == codes[others]).all(axis=1)
        if counts[i] and any(fits[same & (every[:, i] == option)].all() for option in range(len(gene.options))):
            return True
    return False


@given(small_spaces(), st.data(), seeds)
def test_the_best_row_in_a_window_is_the_best_of_all(space: Space, data: st.DataObject, seed: int) -> None:
    """Decoding architecture parameters under a bound on MACs, against looking at every row.

    Where costs are rounded, up to a bin for each layer of the window may be left unused.
    """
    rng = np.random.default_rng(seed)
    tables = [rng.standard_normal(len(gene.options)) for gene in space.genes]
    every = all_codes(space)
    macs = np.array([values_by_hand(space, codes)["macs"] for codes in every])
    low, high = data.draw(windows(space, ("macs",)))["macs"]
    found = best_row(space, [Factor((i,), table) for i, table in enumerate(tables)], macs_of(space), (low, high))
    assert found is not None
    scores = np.array([sum(table[code] for table, code in zip(tables, codes, strict=True)) for codes in every])
    unused = found.width * (len(space.units) + len(space.genes))
    certain = (low + unused <= macs) & (macs <= high - unused)
    if found.row is None:
        assert not certain.any()
        return
    chosen = every.index(tuple(found.row.tolist()))
    assert low <= macs[chosen] <= high
    assert not certain.any() or scores[chosen] >= scores[certain].max() - 1e-9
    assert found.width or math.isclose(scores[chosen], scores[certain].max(), abs_tol=1e-9)
