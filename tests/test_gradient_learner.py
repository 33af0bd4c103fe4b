"""The learner of gradient-based search, part by part: scores, tuning, clipping, terms, splits, decays, plans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_gradient import make_learner
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from search.gradient.learner import Learner
from search.gradient.problem import Step
from supernet.data.base import resize
from supernet.mixture import Mixture
from supernet.mixture.plan import SoftPlan
from supernet.specs import Plan

RATE = 0.5
PLAIN = ("algorithm.optim.momentum=0", "algorithm.optim.weight_decay=0", f"algorithm.optim.lr={RATE}")


def first_step(learner: Learner, number: int = 0, lr: float = RATE) -> Step:
    train, arch = next(learner.halves.epoch(0))
    return Step(learner, number, train, arch, lr)


def spread(learner: Learner) -> Tensor:
    """Gives the architecture parameters values of both signs, far from zero; returns them."""
    noise = torch.randn(learner.arch.flat.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        learner.arch.flat.copy_(noise)
    return noise


# Scores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 50])
def test_scores_are_of_the_search_split(limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner(tmp_path, "darts", "data.eval_batch_size=64")
    spread(learner)
    evaluation = learner.data.evaluation
    asked: list[tuple[Any, ...]] = []

    def watched(*args: Any) -> Sequence[tuple[Tensor, Tensor]]:
        asked.append(args)
        return evaluation(*args)

    monkeypatch.setattr(learner.data, "evaluation", watched)
    probs = learner.probabilities()
    found = learner.evaluate(probs, Mixture.of(learner.space, probs, 0).support, limit)
    assert asked == [("search", 6, limit)]
    mixture = Mixture.of(learner.space, [p.float() for p in probs], 0)
    logits, targets = [], []
    with torch.no_grad():
        for images, labels in evaluation("search", 6, limit):  # batch norms see each batch by itself
            logits.append(learner.net(images, mixture))
            targets.append(labels)
    outputs, labels = torch.cat(logits), torch.cat(targets)
    assert found.images == len(labels) == (limit or learner.data.sizes["search"])
    assert found.top1 == pytest.approx(100 * (outputs.argmax(1) == labels).double().mean().item())
    assert found.loss == pytest.approx(F.cross_entropy(outputs, labels).item(), rel=1e-5)


# Tuning ---------------------------------------------------------------------------------------------------------


def test_tuning_has_a_falling_rate_and_begins_without_momentum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner(tmp_path, "rarts", "algorithm.epochs=1")  # two networks
    learner.run()
    seen: list[tuple[int, float, int]] = []  # network, rate, parameters with momentum
    step_weights = Step.step_weights

    def watched(step: Step, copy: int = 0) -> None:
        optimizer = step.weight_optimizer(copy)
        (rate,) = {group["lr"] for group in optimizer.param_groups}
        seen.append((copy, rate, len(optimizer.state)))
        step_weights(step, copy)

    monkeypatch.setattr(Step, "step_weights", watched)
    total, count, base = 4, len(learner.optimizers[0].state), learner.settings.optim["lr"]
    assert count > 5
    learner.settings.select.epochs = lambda space: total  # type: ignore[method-assign]
    for epoch in range(total):
        learner.tune({}, epoch)
        rate = base * (0.04 + 0.06 * 0.5 * (1 + math.cos(math.pi * epoch / total)))
        assert [copy for copy, *_ in seen] == [0, 1] * learner.halves.steps_per_epoch
        assert [found for _, found, _ in seen] == pytest.approx([rate] * len(seen), rel=1e-12)
        # Momentum is kept from then on.
        begun = [0, 0] if epoch == 0 else [count, count]
        assert [size for *_, size in seen] == begun + [count] * (len(seen) - 2)
        seen.clear()


# Steps of the weights -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "factor"), [("0.2", 10.0), ("0.2", 0.1), ("null", 100.0)])
def test_gradients_are_clipped_to_the_norm_asked_for(limit: str, factor: float, tmp_path: Path) -> None:
    learner = make_learner(tmp_path, "darts", *PLAIN, f"algorithm.clip_norm={limit}")
    step = first_step(learner)
    weights = step.weights()
    (factor * step.train_loss(for_weights=True)).backward()
    before = torch.cat([weight.detach().flatten() for weight in weights]).double()
    gradient = torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None]).double()
    assert len(gradient) == len(before)
    norm = gradient.norm().item()
    step.step_weights()
    moved = torch.cat([weight.detach().flatten() for weight in weights]).double() - before
    if limit != "null":
        assert norm > 5 * float(limit) if factor > 1 else norm < float(limit) / 5
        assert moved.norm().item() <= RATE * float(limit) * (1 + 1e-3)
        norm = min(norm, float(limit))
    expected = -RATE * norm * gradient / gradient.norm()
    assert torch.allclose(moved, expected, rtol=1e-3, atol=2e-7)  # weights of order 1 round to 1e-7
    assert moved.norm().item() == pytest.approx(RATE * norm, rel=0.05)
    assert all(not weight.grad.any() for weight in weights if weight.grad is not None)


# Terms of the architecture parameters ---------------------------------------------------------------------------


@pytest.mark.parametrize("anchor", ["l2", "kl", "none"])
def test_the_terms_are_the_anchor_and_the_bound(anchor: str, tmp_path: Path) -> None:
    words = (f"algorithm.mix.anchor={anchor}", "algorithm.mix.weight=0.3", "algorithm.bound.rate=1.0")
    learner = make_learner(tmp_path, "drnas", "constraint.macs=0.4", *words)
    spread(learner)
    bound = learner.budget.windows["macs"][1]
    ratio = learner.expected()["macs"].item() / bound - 1
    assert ratio > 0.1
    learner.settings.bound.observe(learner.expected())  # the price is now the excess, as the rate is 1
    terms = first_step(learner).arch_terms()
    flat = learner.arch.flat.detach()
    penalty = 0.0
    if anchor == "l2":
        penalty = 0.3 / 2 * flat.square().sum().item()
    if anchor == "kl":
        genes = [F.elu(logits) + 1 for logits in flat.split(learner.arch.sizes) if len(logits) > 1]
        penalty = 0.3 * sum(kl_divergence(Dirichlet(a), Dirichlet(torch.ones_like(a))).item() for a in genes)
    assert terms.item() == pytest.approx(penalty + ratio**2, rel=1e-9)
    assert anchor == "none" or penalty > 0.1
    (gradient,) = torch.autograd.grad(terms, learner.arch.flat)
    (cost,) = torch.autograd.grad(learner.expected()["macs"], learner.arch.flat)
    alone = gradient - ratio / bound * cost
    if anchor == "l2":
        assert torch.allclose(alone, 0.3 * flat, atol=1e-9)
    assert bool(alone.abs().max() > 1e-9) == (anchor != "none")


@pytest.mark.parametrize("mix", ["softmax", "gates", "gdas"])
def test_a_mix_without_an_anchor_adds_nothing(mix: str, tmp_path: Path) -> None:
    learner = make_learner(tmp_path, "darts", f"algorithm/mix={mix}", "algorithm/bound=none")
    spread(learner)
    assert first_step(learner).arch_terms().item() == 0.0


@pytest.mark.parametrize(
    ("words", "decay"),
    [
        ((), 0.0),
        (("algorithm.mix.anchor=kl",), 0.0),
        (("algorithm.mix.anchor=none",), 0.07),
        (("algorithm/mix=softmax",), 0.07),
    ],
)
def test_adam_decays_where_the_mix_has_no_anchor(words: tuple[str, ...], decay: float, tmp_path: Path) -> None:
    chosen = () if "algorithm/mix=softmax" in words else ("algorithm/mix=dirichlet",)
    learner = make_learner(tmp_path, "darts", *chosen, *words, "algorithm.arch_weight_decay=0.07")
    assert learner.settings.arch_decay == decay
    assert [group["weight_decay"] for group in learner.arch_optimizer.param_groups] == [decay]


# Images ---------------------------------------------------------------------------------------------------------


def rows(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize("learn_weights", [True, False])
@pytest.mark.parametrize(
    ("fresh", "split", "held_out"),
    [(True, "auto", False), (False, "auto", True), (True, "search", True), (False, "train", False)],
)
def test_trained_weights_have_held_out_images(
    fresh: bool, split: str, held_out: bool, learn_weights: bool, tmp_path: Path
) -> None:
    """Architecture parameters learn on images that the weights have not learned from."""
    made = make_learner(tmp_path, "darts", f"algorithm.arch_split={split}", learn_weights=learn_weights)
    learner = replace(made, fresh=fresh)
    search = torch.cat([images for images, _ in learner.data.evaluation("search", 8)])
    held = rows(search)
    batches = list(learner.halves.epoch(0))
    assert batches
    for train, arch in batches:
        found, own = rows(arch.images), rows(train.images)
        assert (found <= held) == held_out
        assert held_out or not found & held
        if held_out:
            assert torch.equal(arch.images, search[arch.index])
        if learn_weights:
            assert not own & held
            assert not own & found
        else:
            assert train is arch


# Plans ----------------------------------------------------------------------------------------------------------


def watch(patch: pytest.MonkeyPatch, learner: Learner) -> list[Mixture]:
    """The mixtures that the network gets from now on."""
    seen: list[Mixture] = []
    forward = learner.net.forward

    def watched(images: Any, mixture: Any, **named: Any) -> Any:
        seen.append(mixture)
        return forward(images, mixture, **named)

    patch.setattr(learner.net, "forward", watched)
    return seen


@pytest.mark.parametrize("mix", ["gdas", "gates", "uniform"])
def test_weights_learn_from_a_hard_draw_as_the_plain_subnet(
    mix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make_learner(tmp_path, "darts", f"algorithm/mix={mix}")
    weights = list(learner.net.parameters())
    for number in range(3):
        with monkeypatch.context() as patch:
            seen = watch(patch, learner)
            step = first_step(learner, number)
            loss = step.train_loss(for_weights=True)
        (mixture,) = seen
        arch = learner.space.decode([support[0] for support in mixture.support])
        assert isinstance(mixture.plan, Plan)
        assert mixture.plan is learner.space.plan(arch)
        assert not any(p.requires_grad for p in mixture.probs)
        train, _ = next(learner.halves.epoch(0))
        logits = learner.net(resize(train.images, learner.space.resolution(arch)), arch)
        plain = F.cross_entropy(logits, train.targets)
        assert torch.equal(loss, plain)
        found = torch.autograd.grad(loss, [*weights], allow_unused=True)
        expected = torch.autograd.grad(plain, [*weights], allow_unused=True)
        for one, other in zip(found, expected, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)


@pytest.mark.parametrize("mix", ["gdas", "gates"])
def test_architecture_parameters_learn_from_a_hard_draw(
    mix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make_learner(tmp_path, "darts", f"algorithm/mix={mix}")
    seen = watch(monkeypatch, learner)
    loss = first_step(learner).val_loss()
    (mixture,) = seen
    assert isinstance(mixture.plan, SoftPlan)
    (gradient,) = torch.autograd.grad(loss, learner.arch.flat)
    assert gradient.abs().max() > 1e-6
