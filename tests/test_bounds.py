"""Terms that hold a budget while probabilities are learned."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from search.gradient.bounds.dual import DualAscent
from search.gradient.bounds.fixed import Fixed
from search.gradient.bounds.lagrangian import AugmentedLagrangian
from search.gradient.bounds.none import NoBound
from supernet.checkpoint import load, save
from supernet.construct import construct
from supernet.errors import UserError
from supernet.runs import config_dir

UP = {"macs": (-math.inf, 40.0)}
ALL: list[Any] = [DualAscent, AugmentedLagrangian, Fixed, NoBound]
LEARNED: list[Any] = [DualAscent, AugmentedLagrangian]


def at(value: float, name: str = "macs") -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64, requires_grad=True)}


def slope(bound: Any, value: float) -> float:
    """The derivative of the term by the cost."""
    expected = at(value)
    (gradient,) = torch.autograd.grad(bound.term(expected), expected["macs"])
    return gradient.item()


def ten_choices(bound: Any, steps: int = 2500) -> tuple[list[float], list[float]]:
    """Costs and multipliers of the last 500 steps; ten choices of four options, of which dearer ones are better."""
    generator = torch.Generator().manual_seed(0)
    cost, use = torch.rand(2, 10, 4, generator=generator, dtype=torch.float64).cumsum(2)  # 19.6 to 81.8 together
    cost, use = 4 * cost, 0.2 * use
    logits = torch.zeros(10, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.02)
    costs, multipliers = [], []
    for _ in range(steps):
        p = logits.softmax(1)
        loss = -(p * use).sum() + 0.02 * (p * p.log()).sum() + bound.term({"macs": (p * cost).sum()})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after = {"macs": (logits.detach().softmax(1) * cost).sum()}
        bound.observe(after)
        costs.append(after["macs"].item())
        multipliers.append(min(bound.report().values(), default=0.0))
    return costs[-500:], multipliers


@pytest.mark.parametrize("bound", LEARNED)
@pytest.mark.parametrize("target", [30.0, 40.0])
def test_the_cost_settles_at_the_bound(bound: Any, target: float) -> None:
    costs, multipliers = ten_choices(bound({"macs": (-math.inf, target)}))
    assert all(abs(cost / target - 1) < 0.01 for cost in costs)
    assert min(multipliers) >= 0
    assert multipliers[-1] > 0


def test_a_lower_end_holds_too() -> None:
    """The mirrored problem: without the bound the cost would fall."""
    bound = DualAscent({"macs": (30.0, math.inf)})
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.02)
    cost = torch.tensor([10.0, 50.0], dtype=torch.float64)
    for _ in range(3000):
        p = logits.softmax(0)
        loss = 0.5 * p[1] + 0.2 * (p * p.log()).sum() + bound.term({"macs": p @ cost})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bound.observe({"macs": logits.detach().softmax(0) @ cost})
    assert (logits.detach().softmax(0) @ cost).item() == pytest.approx(30, rel=0.01)
    assert bound.report()["multiplier_macs_low"] > 0


def test_a_fixed_weight_misses_the_bound() -> None:
    costs, _ = ten_choices(Fixed(UP, weight=0.1, form="ratio"), steps=1000)
    assert costs[-1] > 60


def test_a_bound_that_does_not_bind_costs_nothing() -> None:
    free, _ = ten_choices(NoBound({}), steps=600)
    for bound in LEARNED:
        costs, multipliers = ten_choices(bound({"macs": (5.0, 100.0)}), steps=600)
        assert costs == free
        assert max(multipliers) == 0


def test_dual_ascent_by_hand() -> None:
    bound = DualAscent({"macs": (20.0, 40.0)}, rate=0.5)
    assert slope(bound, 60.0) == 0
    bound.observe(at(60.0))  # 50% above
    assert bound.report() == {"multiplier_macs": 0.25, "multiplier_macs_low": 0.0}
    assert bound.term(at(60.0)).item() == pytest.approx(0.25 * 0.5)
    assert slope(bound, 60.0) == pytest.approx(0.25 / 40)
    bound.observe(at(5.0))  # far below: the upper price falls to 0, not further; the lower one rises
    assert bound.report() == {"multiplier_macs": 0.0, "multiplier_macs_low": 0.375}
    assert slope(bound, 5.0) == pytest.approx(-0.375 / 20)


def test_augmented_lagrangian_by_hand() -> None:
    bound = AugmentedLagrangian(UP, rho=2.0, rate=0.5)
    assert bound.term(at(60.0)).item() == pytest.approx(2 / 2 * 0.5**2)
    assert slope(bound, 60.0) == pytest.approx(2 * 0.5 / 40)
    assert slope(bound, 30.0) == 0
    bound.observe(at(60.0))  # λ = 0.25: the hinge opens at 1/8 below the bound
    assert slope(bound, 36.0) == pytest.approx((2 * -0.1 + 0.25) / 40)
    assert slope(bound, 34.0) == 0


@pytest.mark.parametrize(
    ("form", "above", "below"),
    [("ratio", 0.1 * 0.5, 0.1 * -0.25), ("hinge", 0.1 * 0.5, 0.0), ("log", 0.1 * math.log(1.5), 0.1 * math.log(0.75))],
)
def test_forms_of_the_fixed_weight(form: Any, above: float, below: float) -> None:
    bound = Fixed(UP, weight=0.1, form=form)
    assert bound.term(at(60.0)).item() == pytest.approx(above)
    assert bound.term(at(30.0)).item() == pytest.approx(below)


def test_a_hinge_has_two_ends() -> None:
    bound = Fixed({"macs": (20.0, 40.0)}, weight=1.0)
    assert [bound.term(at(cost)).item() for cost in (10.0, 20.0, 30.0, 40.0, 60.0)] == [0.5, 0, 0, 0, 0.5]


@pytest.mark.parametrize("bound", ALL)
def test_no_window_is_a_zero_that_can_be_added(bound: Any) -> None:
    no_sum, no_end = {"memory_mb": (0.0, 5.0)}, {"macs": (0, math.inf)}
    for windows, expected in (({}, at(3.0)), ({}, {}), (no_sum, at(3.0)), (no_end, at(3.0))):
        made = bound(windows)
        term = made.term(expected)
        assert term.shape == ()
        assert term.item() == 0
        made.observe(expected)
        assert not any(made.report().values())


@pytest.mark.parametrize("bound", ALL)
def test_several_measures_add_up(bound: Any) -> None:
    windows = {"macs": (-math.inf, 40.0), "params": (-math.inf, 10.0), "memory_mb": (-math.inf, 1.0)}
    joint, first, second = bound(windows), bound(UP), bound({"params": (-math.inf, 10.0)})
    expected = {**at(60.0), **at(30.0, "params")}
    for made in (joint, first, second):
        made.observe({name: value for name, value in expected.items() if made is joint or name in ("macs", "params")})
    total = first.term(at(60.0)) + second.term(at(30.0, "params"))
    assert joint.term(expected).item() == pytest.approx(total.item())


@pytest.mark.parametrize("bound", ALL)
def test_the_state_survives_a_file(bound: Any, tmp_path: Any) -> None:
    windows = {"macs": (20.0, 40.0), "params": (-math.inf, 10.0)}
    made, other = bound(windows), bound(windows)
    expected = {**at(57.3), **at(3.1, "params")}
    for _ in range(3):
        made.observe(expected)
    save(tmp_path / "state.pt", {"bound": made.state_dict()})
    made.observe(expected)  # must not change what was saved
    other.load_state_dict(load(tmp_path / "state.pt")["bound"])
    other.observe(expected)
    assert other.report() == made.report()
    assert torch.equal(other.term(expected), made.term(expected))


def test_the_state_of_other_windows_is_refused() -> None:
    with pytest.raises(ValueError, match="has 1 ends, this one 0"):
        DualAscent({}).load_state_dict(DualAscent(UP).state_dict())


@pytest.mark.parametrize("name", ["dual", "lagrangian", "fixed", "none"])
def test_configs_make_bounds(name: str) -> None:
    section = yaml.safe_load((config_dir() / "algorithm" / "bound" / f"{name}.yaml").read_text())
    made = construct(section, "algorithm.bound", windows=UP)
    assert made.term(at(60.0)).item() >= 0


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        ("dual.DualAscent", {"rate": 0.0}, "rate=0.0: must be positive"),
        ("lagrangian.AugmentedLagrangian", {"rho": -1.0}, "rho=-1.0: must be positive"),
        ("fixed.Fixed", {"weight": 0.0}, "weight=0.0: must be positive"),
        ("fixed.Fixed", {"form": "square"}, "form=square: expected one of 'ratio', 'hinge', 'log'"),
        ("fixed.Fixed", {"form": "ratio"}, "form=ratio: needs upper bounds only, and macs has a lower end"),
    ],
)
def test_mistakes_are_one_clear_line(target: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        construct(
            {"_target_": f"search.gradient.bounds.{target}", **settings},
            "algorithm.bound",
            windows={"macs": (20.0, 40.0)},
        )
