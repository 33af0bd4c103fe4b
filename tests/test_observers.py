"""What is seen of single passes: their own gradients, and how much images matter; and that looking changes nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from test_step import LARGEST, SLOTS, SPACE, batch, divergence, each_loss, fresh_net
from torch import Tensor

from supernet.data.base import resize
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


@pytest.mark.parametrize("taught", [False, True])
def test_the_score_is_the_norm_of_the_gradient_by_the_logits(taught: bool) -> None:
    rng = torch.Generator().manual_seed(1)
    logits, teacher = (torch.randn(5, 7, generator=rng, dtype=torch.double) * 3 for _ in range(2))
    targets = torch.tensor([0, 6, 2, 2, 4])
    logits.requires_grad_()
    loss = divergence(logits, teacher, targets) if taught else F.cross_entropy(logits, targets, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    watch = ImageScores()
    watch.after(LARGEST, Pass(logits.detach(), teacher if taught else None, targets, loss.mean()))
    assert torch.allclose(watch.scores, gradient.norm(dim=1), rtol=1e-12)


def test_scores_of_certain_and_of_uniform_predictions_and_of_soft_labels() -> None:
    certain, uniform = F.one_hot(torch.tensor([1, 2]), 4) * 50.0, torch.zeros(2, 4)
    targets = torch.tensor([1, 2])
    right, even, soft = ImageScores(), ImageScores(), ImageScores()
    right.after(LARGEST, Pass(certain, None, targets, torch.zeros(())))
    even.after(LARGEST, Pass(uniform, None, targets, torch.zeros(())))
    soft.after(LARGEST, Pass(uniform, None, torch.full((2, 4), 0.25), torch.zeros(())))
    assert right.scores.tolist() == pytest.approx([0, 0], abs=1e-9)
    assert even.scores.tolist() == pytest.approx([math.sqrt(1 - 1 / 4)] * 2)
    assert soft.scores.tolist() == pytest.approx([0, 0])


def test_the_score_of_an_image_is_its_mean_over_the_slots() -> None:
    net = fresh_net()
    images, targets = batch()
    watch = ImageScores()
    accumulate(net, images, targets, SLOTS, each_loss, divergence, observers=[watch])
    with torch.no_grad():
        every = [net(resize(images, SPACE.resolution(s.arch)), s.arch).softmax(1) for s in SLOTS]
    wanted = [F.one_hot(targets, 4), *[every[0]] * 3]
    means = torch.stack([(p - t).norm(dim=1) for p, t in zip(every, wanted, strict=True)]).mean(0)
    assert torch.allclose(watch.scores, means, rtol=1e-10)
