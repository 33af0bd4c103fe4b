"""What is seen of single passes: their own gradients, and how much images matter; and that looking changes nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_step import LARGEST, SLOTS, SPACE, batch, divergence, each_loss, fresh_net
from torch import Tensor

from supernet.data.base import resize
from supernet.distill import AlphaDivergence, HardLabels, LabelsAndTeacher, SoftCrossEntropy
from supernet.observers import ImageScores, SlotGradients
from supernet.optim import zero_gradients
from supernet.samplers.base import Slot
from supernet.step import Pass, accumulate


def test_each_slot_shows_its_own_gradients_and_the_sum_stays_the_same_bit_for_bit() -> None:
    net, plain = fresh_net().float(), fresh_net().float()
    images, targets = batch()
    images = images.float()
    seen: list[dict[str, Tensor]] = []

    def keep(slot: Slot, gradients: Mapping[str, Tensor]) -> None:
        seen.append({name: gradient.clone() for name, gradient in gradients.items()})

    for each in (net, plain):
        zero_gradients(each)
    watch = SlotGradients(net.net, keep, lambda slot: slot is not LARGEST)
    for _ in range(2):  # the buffers are used again
        accumulate(net, images, targets, SLOTS, each_loss, divergence, observers=[watch])
        accumulate(plain, images, targets, SLOTS, each_loss, divergence)
    for mine, other in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad)  # type: ignore[arg-type]
    assert len(seen) == 2 * 3
    teacher = plain(images, LARGEST.arch).detach()
    for slot, gradients in zip(SLOTS[1:], seen[3:], strict=True):
        plain.zero_grad()
        logits = plain(resize(images, SPACE.resolution(slot.arch)), slot.arch)
        divergence(logits, teacher, targets).mean().backward()
        for name, parameter in plain.net.named_parameters():
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert torch.allclose(gradients[name], expected, rtol=1e-4, atol=1e-7), name


LOSSES = {
    "labels": HardLabels(),
    "soft": SoftCrossEntropy(),
    "hot": SoftCrossEntropy(temperature=4.0),
    "alpha": AlphaDivergence(),
    "ofa": LabelsAndTeacher(kd_ratio=0.5),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weights", [None, [2.0, 0.5, 1, 1, 3, 1]])
def test_the_score_is_the_norm_of_the_gradient_of_each_loss_by_its_logits(
    name: str, weights: list[float] | None
) -> None:
    """Whatever the loss follows; weights of images and slots are taken out."""
    net, watch, seen = fresh_net(), Keep(), ImageScores()
    images, targets = batch()
    slots = [LARGEST, replace(SLOTS[1], weight=0.3)]
    each = None if weights is None else torch.tensor(weights, dtype=torch.double)
    accumulate(net, images, targets, slots, each_loss, LOSSES[name], weights=each, observers=[watch, seen])
    norms = []
    for done in watch.passes:
        logits = done.logits.clone().requires_grad_()
        taught = done.teacher is not None
        loss = LOSSES[name](logits, done.teacher, targets) if taught else each_loss(logits, targets)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        norms.append(gradient.norm(dim=1))
    assert seen.scores is not None
    assert torch.allclose(seen.scores, torch.stack(norms).mean(0), rtol=1e-10, atol=1e-13)


class Keep:
    def __init__(self) -> None:
        self.passes: list[Pass] = []

    def before(self, slot: Slot) -> None:
        pass

    def after(self, slot: Slot, done: Pass) -> None:
        self.passes.append(done)


def test_cross_entropy_scores_are_distances_to_what_should_have_been_predicted() -> None:
    net, watch, seen = fresh_net(), Keep(), ImageScores()
    images, targets = batch()
    accumulate(net, images, targets, SLOTS[:2], plain_loss, SoftCrossEntropy(), observers=[watch, seen])
    first, second = (done.logits.softmax(1) for done in watch.passes)
    expected = ((first - F.one_hot(targets, 4)).norm(dim=1) + (second - first).norm(dim=1)) / 2
    assert torch.allclose(seen.scores, expected, rtol=1e-10)  # type: ignore[arg-type]


def plain_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


def test_a_slot_without_weight_says_nothing() -> None:
    net, seen = fresh_net(), ImageScores()
    accumulate(net, *batch(), [replace(LARGEST, weight=0.0)], plain_loss, divergence, observers=[seen])
    assert seen.scores is None


def scores_of(logits: Tensor, targets: Tensor, *teachers: Tensor | None) -> Tensor:
    """Of cross-entropy with the labels, or with a teacher; a pass for each."""
    observer = ImageScores()
    for teacher in teachers:
        z = logits.clone().requires_grad_()
        label = F.cross_entropy(z, targets, reduction="sum")
        loss = label if teacher is None else SoftCrossEntropy()(z, teacher, targets).sum()
        (gradient,) = torch.autograd.grad(loss, z)
        observer.before(LARGEST)
        observer.after(LARGEST, Pass(logits, teacher, targets, torch.zeros(()), gradient))
    assert observer.scores is not None
    return observer.scores


def test_scores_of_known_answers() -> None:
    labels = torch.arange(5)
    sure = 40.0 * F.one_hot(labels)
    assert (scores_of(sure, labels, None) < 1e-6).all()
    torch.testing.assert_close(scores_of(torch.zeros(5, 5), labels, None), torch.full((5,), math.sqrt(1 - 1 / 5)))
    torch.testing.assert_close(scores_of(sure, (labels + 1) % 5, None), torch.full((5,), math.sqrt(2)))
    assert (scores_of(sure, (labels + 1) % 5, sure) == 0).all(), "a teacher that agrees"
