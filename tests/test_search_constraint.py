"""Budgets: reading, feasibility, reachability and repair."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tiny import big_space, tiny_space

from search.constraint import Budget, Constraint, number, range_of
from supernet.construct import construct
from supernet.cost import cost
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
    assert construct(config, "constraint").on(SPACE).macs == pytest.approx(expected)


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
    macs, params = np.array([[plan.macs, plan.params] for plan in plans]).T
    np.testing.assert_array_equal(budget.violations(macs, params), excess)


def test_no_constraint_allows_everything() -> None:
    budget = Constraint().on(SPACE)
    budget.check_reachable()
    assert not budget.excess(list(enumerate_archs(SPACE))).any()
    assert budget.describe() == "none"


@pytest.mark.parametrize(
    ("macs", "nearest"), [(LEAST - 1, LEAST), ([None, LEAST - 1], LEAST), ([MOST + 1, None], MOST)]
)
def test_an_impossible_budget_names_range_and_nearest_value(macs: Any, nearest: int) -> None:
    with pytest.raises(UserError, match=rf"{LEAST:,}.*{MOST:,}.*nearest possible is {nearest:,}"):
        Constraint(macs=macs).on(SPACE).check_reachable()


def test_a_gap_between_reachable_values_is_noticed() -> None:
    values = sorted({SPACE.plan(arch).macs for arch in enumerate_archs(SPACE)})
    gap = max(range(len(values) - 1), key=lambda i: values[i + 1] - values[i])
    low, high = values[gap] + 1, values[gap + 1] - 1
    with pytest.raises(UserError, match="no subnet of space 'tiny'"):
        Constraint(macs=[low, high]).on(SPACE).check_reachable()
    Constraint(macs=[low - 1, high]).on(SPACE).check_reachable()


def test_bounds_that_exclude_each_other_are_noticed() -> None:
    with pytest.raises(UserError, match="no subnet"):
        Constraint(macs=[0.99, None], params=[None, range_of(Constraint().on(SPACE))["params"][0]]).on(SPACE).check_reachable()


@pytest.mark.parametrize(
    "constraint",
    [Constraint(macs="300M"), Constraint(macs=["600M", "650M"], params="13M")],
    ids=["bound", "windows"],
)
def test_repair_moves_subnets_into_the_budget(constraint: Constraint) -> None:
    space = big_space()
    budget: Budget = constraint.on(space)
    rng = np.random.default_rng(0)
    repaired = [budget.repair(arch, rng) for arch in space.sample(rng, 60)]
    inside = [arch for arch in repaired if arch is not None]
    assert len(inside) > 45
    assert not budget.excess(inside).any()
    assert len(set(inside)) > 40
    feasible = inside[0]
    assert budget.repair(feasible, rng) == feasible


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
