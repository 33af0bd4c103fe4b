"""Update rules: fixed points known in closed form, the order of steps, what moves and what stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from updates_toy import Drawn, Mlp, ToyProblem, mlp, scalars

from search.gradient.updates.base import Update
from search.gradient.updates.bilevel import FirstOrder, SecondOrder
from search.gradient.updates.rarts import Rarts
from search.gradient.updates.single import SingleLevel
from supernet import UserError
from supernet.construct import construct

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs" / "algorithm" / "update").glob("*.yaml"))
UPDATES = [FirstOrder(), SecondOrder(), SingleLevel("train"), SingleLevel("val"), Rarts(2.0, 3.0)]
NAMES = ["first_order", "second_order", "single_train", "single_val", "rarts"]
each_update = pytest.mark.parametrize("update", UPDATES, ids=NAMES)


def run(update: Update, problem: ToyProblem, steps: int) -> list[float]:
    for _ in range(steps):
        update.step(problem, learn_weights=True, learn_arch=True)
    return problem.values()


def bits(parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    return [p.detach().clone() for p in parameters]


def same(before: list[Tensor], now: list[torch.nn.Parameter]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, now, strict=True))


# DARTS


@pytest.mark.parametrize("xi", [0.0, 0.1, 0.25, 0.5])
def test_darts_fixed_points(xi: float) -> None:
    """a = w = 2 / (1 + 2 xi): the first order misses the optimum (1, 1), xi = 0.5 finds it."""
    found = run(SecondOrder(xi=xi), scalars([-2.0], 2.0), 400)
    assert found == pytest.approx([2 / (1 + 2 * xi)] * 2, abs=1e-6)


def test_first_order_is_xi_zero() -> None:
    problem = scalars([-2.0], 2.0)
    assert run(FirstOrder(), problem, 7) == run(SecondOrder(xi=0.0), scalars([-2.0], 2.0), 7)
    assert run(FirstOrder(), problem, 400) == pytest.approx([2.0, 2.0], abs=1e-6)


def test_xi_is_the_learning_rate_of_the_weights_unless_given() -> None:
    problem = scalars([-2.0], 2.0)
    problem.rates([0.25], arch=0.1)
    assert run(SecondOrder(), problem, 400) == pytest.approx([4 / 3, 4 / 3], abs=1e-6)
    problem.weight_optimizer().param_groups[0]["lr"] = 0.1  # a schedule moved on
    assert run(SecondOrder(), problem, 400) == pytest.approx([5 / 3, 5 / 3], abs=1e-6)


def trained_mlp(seed: int) -> ToyProblem:
    """With momentum in the buffers, and decay and learning rate of their own for each of two groups."""
    problem = mlp(seed)
    first, bias, last = problem.weights()
    groups = [{"params": [last, first], "weight_decay": 0.3, "lr": 0.02}, {"params": [bias], "lr": 0.05}]
    problem.optimizers(torch.optim.SGD(groups, lr=0.1, momentum=0.9), arch=0.1)
    for _ in range(2):
        FirstOrder().step(problem, learn_weights=True, learn_arch=False)
    return problem


def exact_gradient(problem: ToyProblem, losses: Mlp, xi: float | None) -> Tensor:
    """d L_val(w'(a), a) / da by differentiating through the virtual step."""
    weights, (arch,) = problem.weights(), problem.arch()
    optimizer, nothing = problem.weight_optimizer(), torch.zeros(())
    gradients = torch.autograd.grad(losses.train(weights, [arch], nothing), weights, create_graph=True)
    stepped = []
    for weight, gradient in zip(weights, gradients, strict=True):
        (group,) = (g for g in optimizer.param_groups if any(weight is p for p in g["params"]))
        push = gradient + 0.9 * optimizer.state[weight]["momentum_buffer"] + group["weight_decay"] * weight
        stepped.append(weight - (group["lr"] if xi is None else xi) * push)
    return torch.autograd.grad(losses.val(stepped, [arch], nothing), arch)[0]


@pytest.mark.parametrize("xi", [None, 0.07])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_second_order_gradient_is_that_of_double_backward(seed: int, xi: float | None) -> None:
    problem = trained_mlp(seed)
    problem.terms = 0.25
    (start,) = bits(problem.arch())
    expected = exact_gradient(problem, Mlp(seed), xi) + 0.25
    plain = torch.autograd.grad(problem.val_loss(), problem.arch())[0] + 0.25
    SecondOrder(xi, epsilon=1e-3).step(problem, learn_weights=True, learn_arch=True)
    moved = (start - problem.arch()[0].detach()) / 0.1
    torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-8)
    assert (plain - expected).norm() > 5e-3 * expected.norm()  # far more than the tolerance above


def test_default_difference_is_close_to_the_derivative() -> None:
    problem = trained_mlp(0)
    (start,) = bits(problem.arch())
    expected = exact_gradient(problem, Mlp(0), None)
    SecondOrder().step(problem, learn_weights=True, learn_arch=True)
    torch.testing.assert_close((start - problem.arch()[0].detach()) / 0.1, expected, rtol=1e-3, atol=1e-5)


def test_weights_come_back_bit_for_bit_from_the_look_ahead() -> None:
    """With the architecture at rest, both orders make the same step of the weights."""
    ended = []
    for update in (FirstOrder(), SecondOrder()):
        problem = trained_mlp(3)
        problem.optimizers(problem.weight_optimizer(), arch=0.0)
        update.step(problem, learn_weights=True, learn_arch=True)
        ended.append(bits(problem.weights()))
    assert all(torch.equal(a, b) for a, b in zip(*ended, strict=True))


def test_weights_come_back_also_when_a_pass_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = trained_mlp(3)
    before = bits(problem.weights())

    def failing(copy: int = 0, for_weights: bool = False) -> Tensor:
        assert not same(before, problem.weights())
        raise RuntimeError("out of memory")

    monkeypatch.setattr(problem, "val_loss", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        SecondOrder().step(problem, learn_weights=True, learn_arch=True)
    assert same(before, problem.weights())


def test_the_look_ahead_draws_once() -> None:
    """d/da of L_val(w'(a), a) at the draw s of the pass: w' - 2 + 2 xi s a; two draws would give a difference / eps."""
    problem = scalars([-2.0], 2.0, Drawn())
    s = 1 + torch.rand((), generator=torch.Generator().manual_seed(0), dtype=torch.float64).item()
    SecondOrder(xi=0.1).step(problem, learn_weights=True, learn_arch=True)
    gradient = (-2 - 0.2 * (-2 - 2 * s)) - 2 + 0.2 * s * 2
    assert problem.values()[1] == pytest.approx(2 - 0.1 * gradient, abs=1e-9)


def test_with_weights_that_stay_the_second_order_is_the_first() -> None:
    ended = []
    for update in (FirstOrder(), SecondOrder(xi=0.5)):
        problem = mlp(0)
        update.step(problem, learn_weights=False, learn_arch=True)
        ended.append(problem.values())
    assert ended[0] == ended[1]


# Single level


def test_single_level_moves_both_from_the_same_point() -> None:
    problem = scalars([-2.0], 2.0)
    problem.rates([0.1], arch=0.01)
    problem.terms = 3.0
    SingleLevel().step(problem, learn_weights=True, learn_arch=True)
    assert problem.values() == pytest.approx([-2 + 0.1 * 8, 2 - 0.01 * (8 + 3)], abs=1e-12)


def test_single_level_on_the_other_batch() -> None:
    problem = scalars([-2.0], 2.0)
    SingleLevel("val").step(problem, learn_weights=True, learn_arch=True)
    assert problem.values() == pytest.approx([-2 - 0.1 * 2, 2 - 0.1 * (-2 - 2)], abs=1e-12)


# RARTS

PAIRS = [(1.0, 1.0), (10.0, 10.0), (100.0, 100.0), (1.0, 10.0), (10.0, 1.0), (2.0, 5.0), (5.0, 50.0), (30.0, 3.0)]


def lagrangian(values: list[float], lam: float, beta: float) -> float:
    w, y, a = values
    return a * y - 2 * a + 1 + lam * (w - a) ** 2 + beta / 2 * (y - w) ** 2


@pytest.mark.parametrize(("lam", "beta"), PAIRS)
def test_rarts_fixed_points(lam: float, beta: float) -> None:
    """Learning rates 1.8 / curvature of each variable: over-relaxation, which converges on every convex quadratic.

    Small steps would need 1e5 of them: the curvatures are up to 1000 times the smallest eigenvalue.
    """
    problem = scalars([-2.0, -2.0], 2.0)
    problem.rates([1.8 / (2 * lam + beta), 1.8 / beta], arch=1.8 / (2 * lam))
    a = 2 / (2 - 1 / (2 * lam) - 1 / beta)
    found = run(Rarts(lam, beta), problem, 400)
    assert found == pytest.approx([a * (1 - 1 / (2 * lam)), 2 - a, a], abs=1e-6)


@pytest.mark.parametrize(("lam", "beta"), [*PAIRS, (0.3, 2.0)])
def test_rarts_descends_its_lagrangian(lam: float, beta: float) -> None:
    """Also where it has no minimum (lam = 0.3)."""
    problem = scalars([-2.0, -1.0], 2.0)
    problem.rates([2e-3, 2e-3], arch=2e-3)
    seen = [lagrangian(problem.values(), lam, beta)]
    for _ in range(300):
        seen.append(lagrangian(run(Rarts(lam, beta), problem, 1), lam, beta))
    assert max(np.diff(seen)) < 1e-12
    assert seen[-1] < seen[0] - 0.1


def test_rarts_steps_in_turn_with_fresh_values() -> None:
    w, y, a, lam, beta, rate = -2.0, -1.0, 2.0, 3.0, 5.0, 0.01
    problem = scalars([w, y], a)
    problem.rates([rate, 2 * rate], arch=3 * rate)
    new_w = w - rate * (lam * 2 * (w - a) + beta * (w - y))
    new_y = y - 2 * rate * (a + beta * (y - new_w))
    new_a = a - 3 * rate * (lam * -2 * (new_w - a) + new_y - 2)
    stale_y = y - 2 * rate * (a + beta * (y - w))
    stale_a = a - 3 * rate * (lam * -2 * (w - a) + y - 2)
    report = Rarts(lam, beta).step(problem, learn_weights=True, learn_arch=True)
    assert problem.values() == pytest.approx([new_w, new_y, new_a], abs=1e-12)
    assert min(abs(new_y - stale_y), abs(new_a - stale_a)) > 0.01  # all at once would end elsewhere
    assert report["train"] == pytest.approx((w - a) ** 2)
    assert report["val"] == pytest.approx(a * y - 2 * a + 1)
    assert report["distance"] == pytest.approx(abs(new_w - new_y) / abs(new_w), abs=1e-12)


def test_without_a_tie_the_networks_do_not_know_of_each_other() -> None:
    """beta = 0, lam = 1, architecture at rest: each is plain descent of its own loss, wherever the other is."""
    ended = {}
    for beta in (0.0, 0.1):
        for start in (-1.0, 5.0):
            problem = scalars([-2.0, start], 2.0)
            for _ in range(20):
                Rarts(1.0, beta).step(problem, learn_weights=True, learn_arch=False)
            ended[beta, start] = problem.values()
    alone = scalars([-2.0], 2.0)
    for _ in range(20):
        SingleLevel().step(alone, learn_weights=True, learn_arch=False)
    assert ended[0.0, -1.0][0] == ended[0.0, 5.0][0] == alone.values()[0]
    assert ended[0.0, -1.0][1] == pytest.approx(-1 - 20 * 0.1 * 2)
    assert ended[0.1, -1.0][0] != ended[0.1, 5.0][0]


def summed(rate: float, steps: int) -> np.ndarray[Any, Any]:
    """(w, a) after plain descent of L_train(w, a) + L_val(w, a), both at once."""
    w, a = -2.0, 2.0
    for _ in range(steps):
        w, a = w - rate * (2 * (w - a) + a), a - rate * (-2 * (w - a) + w - 2)
    return np.array([w, a])


def test_tied_tightly_rarts_is_single_level_on_the_summed_loss() -> None:
    """lam = 1, w = y, learning rate 1 / beta: the two stay together; the error falls with 1 / beta."""
    errors = []
    for beta in (50, 200, 800):
        problem = scalars([-2.0, -2.0], 2.0)
        problem.rates([1 / beta, 1 / beta], arch=1 / beta)
        w, y, a = run(Rarts(1.0, float(beta)), problem, beta)
        assert abs(w - y) < 5 / beta
        errors.append(np.abs(np.array([w, a]) - summed(1 / beta, beta)).max())
    assert errors[0] < 0.1
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.3)


def test_both_losses_of_the_architecture_step_share_the_draw() -> None:
    problem = scalars([-2.0, -2.0], 2.0, Drawn())
    problem.rates([0.0, 0.0], arch=0.1)
    generator = torch.Generator().manual_seed(0)
    draws = [1 + torch.rand((), generator=generator, dtype=torch.float64).item() for _ in range(3)]
    s = draws[2]  # two for the weights, one for both losses of the architecture parameters
    Rarts(2.0, 3.0).step(problem, learn_weights=True, learn_arch=True)
    assert problem.values()[2] == pytest.approx(2 - 0.1 * (2 * -2 * s * (-2 - s * 2) + -2 - 2), abs=1e-9)
    following = problem.train_loss()
    s = 1 + torch.rand((), generator=generator, dtype=torch.float64).item()
    assert following.item() == pytest.approx((-2 - s * problem.values()[2]) ** 2)


# All rules

PASSES: dict[str, list[tuple[str, int, bool]]] = {
    "first_order": [("val", 0, False), ("train", 0, True)],
    "second_order": [("train", 0, False), ("val", 0, False), *[("train", 0, False)] * 2, ("train", 0, True)],
    "single_train": [("train", 0, False)],
    "single_val": [("val", 0, False)],
    "rarts": [("train", 0, True), ("val", 1, True), ("train", 0, False), ("val", 1, False)],
}


@pytest.mark.parametrize(("update", "name"), list(zip(UPDATES, NAMES, strict=True)), ids=NAMES)
def test_forward_passes_of_a_step(update: Update, name: str) -> None:
    problem = mlp(0, update.copies)
    update.step(problem, learn_weights=True, learn_arch=True)
    assert problem.passes == PASSES[name]


@each_update
@pytest.mark.parametrize("zeros", [False, True], ids=["none", "zeros"])
@pytest.mark.parametrize(("learn_weights", "learn_arch"), [(True, False), (False, True), (True, True), (False, False)])
def test_what_does_not_learn_stays_bit_for_bit(
    update: Update, zeros: bool, learn_weights: bool, learn_arch: bool
) -> None:
    problem = mlp(0, update.copies)
    weights = [w for copy in range(update.copies) for w in problem.weights(copy)]
    starts = bits(weights), bits(problem.arch())
    for p in (*weights, *problem.arch()):
        p.grad = torch.zeros_like(p) if zeros else None
    report = update.step(problem, learn_weights, learn_arch)
    moved = [not torch.equal(a, b) for a, b in zip(starts[0], weights, strict=True)]
    assert moved == [learn_weights] * len(moved)
    assert same(starts[1], problem.arch()) is not learn_arch
    assert all(p.grad is None or not p.grad.any() for p in (*weights, *problem.arch()))
    assert all(value.ndim == 0 and not value.requires_grad for value in report.values())
    assert bool(report) is (learn_weights or learn_arch)
    wanted = {for_weights for _, _, for_weights in problem.passes}
    if not learn_arch:
        assert wanted <= {True}  # options that are not drawn need not run
    if not learn_weights:
        assert wanted <= {False}


@each_update
def test_weights_without_gradient(update: Update) -> None:
    """A weight that no loss reads, and one that is frozen."""
    unused, frozen = torch.ones(3, dtype=torch.float64), torch.full((2,), 2.0, dtype=torch.float64)
    losses = Mlp(0)
    problem = ToyProblem(losses, [[*losses.weights, unused, frozen]] * update.copies, losses.arch)
    for copy in range(update.copies):
        problem.weights(copy)[-1].requires_grad_(False)
    assert run(update, problem, 2) != mlp(0, update.copies).values()
    for copy in range(update.copies):
        assert same([unused, frozen], problem.weights(copy)[-2:])


def test_the_tie_pulls_at_a_weight_that_no_loss_reads() -> None:
    one = torch.ones(2, dtype=torch.float64)
    losses = Mlp(0)
    problem = ToyProblem(losses, [[*losses.weights, one], [*losses.weights, 3 * one]], losses.arch)
    Rarts(1.0, 2.0).step(problem, learn_weights=True, learn_arch=False)
    w, y = problem.weights(0)[-1], problem.weights(1)[-1]
    assert w.tolist() == pytest.approx([1 + 0.1 * 2 * 2] * 2)
    assert y.tolist() == pytest.approx([3 - 0.1 * 2 * (3 - 1.4)] * 2)


@each_update
def test_own_terms_reach_the_architecture_parameters_once(update: Update) -> None:
    ended = []
    for terms in (0.0, 0.5):
        problem = mlp(0, update.copies)
        problem.terms = terms
        update.step(problem, learn_weights=True, learn_arch=True)
        ended.append(problem.arch()[0].detach())
    torch.testing.assert_close(ended[0] - ended[1], torch.full((5,), 0.1 * 0.5, dtype=torch.float64))


@each_update
def test_nothing_is_differentiated_twice(update: Update, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, create_graph: bool = False, **kwargs: Any) -> Any:
            calls.append(create_graph)
            return function(*args, create_graph=create_graph, **kwargs)

        return call

    monkeypatch.setattr(torch.autograd, "grad", watched(torch.autograd.grad))
    monkeypatch.setattr(torch.autograd, "backward", watched(torch.autograd.backward))
    problem = mlp(0, update.copies)
    update.step(problem, learn_weights=True, learn_arch=True)
    assert len(calls) >= len(problem.passes)
    assert not any(calls)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs(path: Path) -> None:
    config = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(config, dict)
    update = construct(config, "algorithm.update")  # type: ignore[arg-type]
    run(update, mlp(0, update.copies), 1)


@pytest.mark.parametrize(
    ("target", "settings", "words"),
    [
        ("bilevel.SecondOrder", {"xi": -0.1}, "xi=-0.1"),
        ("bilevel.SecondOrder", {"epsilon": 0}, "epsilon=0"),
        ("single.SingleLevel", {"batch": "test"}, "test"),
        ("rarts.Rarts", {"lam": 0}, "lam=0"),
        ("rarts.Rarts", {"beta": -1}, "beta=-1"),
    ],
)
def test_mistakes(target: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        construct({"_target_": f"search.gradient.updates.{target}", **settings}, "algorithm.update")
