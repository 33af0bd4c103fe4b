"""Random budgets on random spaces: what is inside, what is drawn, what is repaired, and what is said otherwise."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from families import Case, cases, codes_of, refusal, small_spaces
from hypothesis import given
from hypothesis import strategies as st

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
LIMITED = st.fixed_dictionaries({}, optional={name: LIMITS | st.tuples(LIMITS, LIMITS) for name in MEASURES})


@given(small_spaces(), LIMITED, seeds)
def test_budgets(space: Space, limits: dict[str, Any], seed: int) -> None:
    """Feasible is what is inside; repair ends inside, changes nothing that is, and an impossible budget is named."""
    constraint = Constraint(**limits)
    refused = refusal(constraint.on, space)
    if refused is not None:
        assert "the window is empty" in refused, "the only mistake in these limits"
        return
    budget = constraint.on(space)
    rng = np.random.default_rng(seed)
    every = all_codes(space)
    fits = np.array([inside(values_by_hand(space, codes), dict(budget.windows)) for codes in every])
    assert ((budget.violations(np.array(every)) == 0) == fits).all()
    refused = refusal(budget.check_reachable)
    assert (refused is None) == fits.any()
    if refused is None:
        assert all(budget.feasible(arch) for arch in budget.sample(rng, 3))
    chosen = rng.integers(len(every), size=4)
    archs = [space.decode(every[i]) for i in chosen]
    for i, before, after in zip(chosen, archs, budget.repair_all(archs, rng), strict=True):
        assert after == before if fits[i] else after is None or budget.feasible(after)
        assert after is None or space.decode(space.encode(after)) == after


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
