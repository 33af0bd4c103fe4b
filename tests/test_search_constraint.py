"""Budgets: reading, feasibility, reachability and repair."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tiny import big_space, tiny_space

from search.constraint import Budget, Constraint, number, range_of
from supernet.construct import construct
from supernet.cost import Additive, Factor, cost, macs_of
from supernet.errors import UserError
from supernet.window import enumerate_archs

SPACE = tiny_space()
LEAST, MOST = range_of(Constraint().on(SPACE))["macs"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, (-math.inf, MOST / 2)),
        (1, (-math.inf, MOST)),
        ("50%", (-math.inf, MOST / 2)),
        (200_000, (-math.inf, 2e5)),
        (2e5, (-math.inf, 2e5)),
        ("200k", (-math.inf, 2e5)),
        ("0.2M", (-math.inf, 2e5)),
        ("1.5G", (-math.inf, 1.5e9)),
        ([0.25, "0.2M"], (MOST / 4, 2e5)),
        ([None, 0.5], (-math.inf, MOST / 2)),
        (["100K", None], (1e5, math.inf)),
        ([None, None], None),
        (None, None),
    ],
)
def test_values_are_read_as_written(value: Any, expected: Any) -> None:
    config = {"_target_": "search.constraint.Constraint", "macs": value}
    windows = construct(config, "constraint").on(SPACE).windows
    assert windows.get("macs") == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("value", ["much", "", 0, -1, "-5M", float("inf"), float("nan"), True, [0.6, 0.5], [1, 2, 3]])
def test_values_that_mean_nothing_name_their_key(value: Any) -> None:
    with pytest.raises(UserError, match=r"constraint\.params"):
        Constraint(params=value).on(SPACE)


def test_violations_match_a_plain_check_over_the_whole_space() -> None:
    budget = Constraint(macs=[0.3, 0.6], params="6K").on(SPACE)
    archs = list(enumerate_archs(SPACE))
    plans = [SPACE.plan(arch) for arch in archs]
    expected = [0.3 * MOST <= plan.macs <= 0.6 * MOST and plan.params <= 6000 for plan in plans]
    excess = budget.excess(archs)
    assert excess.shape == (len(archs),)
    assert (excess >= 0).all()
    assert [not value for value in excess] == expected
    assert 0 < sum(expected) < len(archs)
    np.testing.assert_array_equal(budget.violations(np.array([SPACE.encode(arch) for arch in archs])), excess)


def test_no_constraint_allows_everything() -> None:
    budget = Constraint().on(SPACE)
    budget.check_reachable()
    assert not budget.excess(list(enumerate_archs(SPACE))).any()
    assert budget.describe() == "none"


@pytest.mark.parametrize(
    ("macs", "nearest"), [(LEAST - 1, LEAST), ([None, LEAST - 1], LEAST), ([MOST + 1, None], MOST)]
)
def test_an_impossible_budget_names_range_and_nearest_value(macs: Any, nearest: int) -> None:
    with pytest.raises(UserError, match=rf"{LEAST:,}.*{MOST:,}.*nearest possible is .*{nearest:,}"):
        Constraint(macs=macs).on(SPACE).check_reachable()


def test_a_gap_between_reachable_values_is_noticed() -> None:
    values = sorted({SPACE.plan(arch).macs for arch in enumerate_archs(SPACE)})
    gap = max(range(len(values) - 1), key=lambda i: values[i + 1] - values[i])
    low, high = values[gap] + 1, values[gap + 1] - 1
    with pytest.raises(UserError, match="no subnet of space 'tiny'"):
        Constraint(macs=[low, high]).on(SPACE).check_reachable()
    Constraint(macs=[low - 1, high]).on(SPACE).check_reachable()


def test_bounds_that_exclude_each_other_are_named_with_what_they_leave() -> None:
    least = range_of(Constraint().on(SPACE))["params"][0]
    with pytest.raises(UserError, match=r"both constraint\.macs .* and constraint\.params .*nearest found") as caught:
        Constraint(macs=[0.99, None], params=[None, least]).on(SPACE).check_reachable()
    inside = [plan.params for arch in enumerate_archs(SPACE) if (plan := SPACE.plan(arch)).macs >= 0.99 * MOST]
    other = [plan.macs for arch in enumerate_archs(SPACE) if (plan := SPACE.plan(arch)).params <= least]
    assert f"({min(inside):,}) params" in str(caught.value)
    assert f"({max(other):,}) MACs" in str(caught.value)


def test_excluding_bounds_of_a_large_space() -> None:
    with pytest.raises(UserError, match=r"both constraint\.macs \(<= 210M\) and constraint\.params \(>= 20M\)"):
        Constraint(macs="210M", params=["20M", None]).on(big_space()).check_reachable()


def test_size_memory_and_latency_are_measures_too() -> None:
    latency = Additive(SPACE, [Factor(f.reads, f.table * 1e-6) for f in macs_of(SPACE).factors], offset=0.5)
    constraint = Constraint(latency_ms=0.7, memory_mb="80%", size_mb=[0.01, 0.03])
    budget = constraint.on(SPACE, latency)
    assert list(budget.windows) == ["latency_ms", "memory_mb", "size_mb"]
    assert budget.windows["latency_ms"] == (-math.inf, 0.7)
    assert budget.windows["memory_mb"][1] == pytest.approx(0.8 * budget.costs(SPACE.largest())["memory_mb"])
    assert budget.windows["size_mb"] == (0.01, 0.03)
    plans = [SPACE.plan(arch) for arch in enumerate_archs(SPACE)]
    expected = [
        0.5 + plan.macs * 1e-6 <= 0.7
        and 4 * plan.activations / 1e6 <= budget.windows["memory_mb"][1]
        and 0.01 <= plan.bytes / 1e6 <= 0.03
        for plan in plans
    ]
    assert 0 < sum(expected) < len(plans)
    assert [not value for value in budget.excess(list(enumerate_archs(SPACE)))] == expected
    budget.check_reachable()
    drawn = budget.sample(np.random.default_rng(0), 50)
    assert not budget.excess(drawn).any()
    assert budget.describe() == "latency <= 0.7 ms, memory <= " + f"{budget.windows['memory_mb'][1]:.4g} MB" + (
        ", size 0.01 MB to 0.03 MB"
    )
    assert set(budget.costs(SPACE.largest())) == {"macs", "params", "latency_ms", "memory_mb", "size_mb"}


def test_latency_needs_a_model() -> None:
    with pytest.raises(UserError, match=r"constraint\.latency_ms=20.*latency=<file>") as caught:
        Constraint(latency_ms=20).on(SPACE)
    assert "python search.py mode=latency" in str(caught.value)


@pytest.mark.parametrize("value", ["2M", True, "fast", 0])
def test_milliseconds_have_no_thousands(value: Any) -> None:
    latency = macs_of(SPACE)
    with pytest.raises(UserError, match=r"constraint\.latency_ms"):
        Constraint(latency_ms=value).on(SPACE, latency)


def test_too_little_memory_names_the_least() -> None:
    least, most = range_of(Constraint().on(SPACE))["memory_mb"]
    with pytest.raises(UserError, match=rf"{least:,}.*{most:,}.*nearest possible is .*{least:,}"):
        Constraint(memory_mb=least / 2).on(SPACE).check_reachable()
    Constraint(memory_mb=least).on(SPACE).check_reachable()  # the value that the message gives


@pytest.mark.parametrize(
    "constraint",
    [Constraint(macs="300M"), Constraint(macs=["600M", "650M"], params="13M"), Constraint(macs="300M", memory_mb=4)],
    ids=["bound", "windows", "peak"],
)
def test_repair_moves_subnets_into_the_budget(constraint: Constraint) -> None:
    space = big_space()
    budget: Budget = constraint.on(space)
    rng = np.random.default_rng(0)
    archs = space.sample(rng, 60)
    inside = [arch for arch in (budget.repair(arch, rng) for arch in archs) if arch is not None]
    assert len(inside) >= 55
    assert not budget.excess(inside).any()
    assert len(set(inside)) > 50
    feasible = inside[0]
    assert budget.repair(feasible, rng) == feasible
    at_once = budget.repair_all([feasible, *archs], rng)
    assert at_once[0] == feasible
    assert not budget.excess([arch for arch in at_once if arch is not None]).any()
    assert sum(arch is not None for arch in at_once) >= 56


def test_repair_changes_little_where_little_is_needed() -> None:
    """A subnet just above the bound stays nearly as it is."""
    space = big_space()
    budget = Constraint(macs="600M").on(space)
    rng = np.random.default_rng(0)
    archs = space.sample(rng, 30, macs=(600e6 + 1, 610e6))
    near = [(arch, budget.repair(arch, rng)) for arch in archs]
    for arch, repaired in near:
        assert repaired is not None
        changed = sum(a != b for a, b in zip(space.encode(arch), space.encode(repaired), strict=True))
        assert changed <= 4


def test_repair_gives_up_where_nothing_fits() -> None:
    budget = Constraint(macs=[LEAST - 2, LEAST - 1]).on(SPACE)
    assert budget.repair(SPACE.largest(), np.random.default_rng(0)) is None


def test_ranges_are_those_of_the_extreme_subnets() -> None:
    costs = cost.batch(SPACE, np.array([SPACE.encode(arch) for arch in enumerate_archs(SPACE)]))
    for name, values in zip(("macs", "params"), costs, strict=True):
        assert range_of(Constraint().on(SPACE))[name] == (values.min(), values.max())


def test_numbers_are_short() -> None:
    assert [number(v) for v in (999, 39488, 203_389_568, 1_939_335_808)] == [
        "999",
        "39.49K",
        "203.4M",
        "1.939G",
    ]
