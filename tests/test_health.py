"""The health meter's figures against separate passes; and that watching changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from test_step import LARGEST, SLOTS, SPACE, batch, divergence, each_loss, fresh_net
from torch import Tensor

from supernet.data.base import resize
from supernet.health import HealthMeter
from supernet.observers import SlotGradients
from supernet.optim import zero_gradients
from supernet.step import Pass, accumulate


def test_norms_cosines_and_gaps_are_those_of_separate_passes() -> None:
    net, meter = fresh_net(), HealthMeter()
    zero_gradients(net)
    images, targets = batch()
    watch = SlotGradients(net.net, meter.on_gradients, lambda slot: True)
    accumulate(net, images, targets, SLOTS, each_loss, divergence, observers=[watch, meter])
    meter.end_step()
    values = meter.read()
    teacher = net(images, LARGEST.arch).detach()
    flat: dict[str, list[Tensor]] = {}
    gaps: dict[str, list[float]] = {}
    for slot in SLOTS:
        zero_gradients(net)
        logits = net(resize(images, SPACE.resolution(slot.arch)), slot.arch)
        loss = each_loss(logits, targets) if slot is LARGEST else divergence(logits, teacher, targets)
        loss.mean().backward()
        flat.setdefault(slot.role, []).append(torch.cat([p.grad.flatten() for p in net.parameters()]))  # type: ignore[union-attr]
        gaps.setdefault(slot.role, []).append(float(loss.detach().mean()))
    (largest,) = flat["largest"]
    for role, vectors in flat.items():
        norms = [float(v.norm()) for v in vectors]
        assert values[f"grad_norm/{role}"] == pytest.approx(sum(norms) / len(norms), rel=1e-6)
        if role != "largest":
            cosines = [float(torch.cosine_similarity(v, largest, dim=0)) for v in vectors]
            assert values[f"cosine/{role}"] == pytest.approx(sum(cosines) / len(cosines), rel=1e-5)
            assert values[f"gap/{role}"] == pytest.approx(sum(gaps[role]) / len(gaps[role]), rel=1e-6)
    assert "cosine/largest" not in values
    assert "gap/largest" not in values
    assert meter.read() == {}


def test_a_student_that_says_the_same_has_no_gap() -> None:
    meter = HealthMeter()
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    meter.after(SLOTS[1], Pass(logits + 3.0, logits, torch.zeros(8, dtype=torch.long), torch.zeros(())))
    values = meter.read()
    assert values["gap/random"] == pytest.approx(0, abs=1e-6)
    assert values["agreement/random"] == 1.0
    meter.after(SLOTS[3], Pass(-logits, logits, torch.zeros(8, dtype=torch.long), torch.zeros(())))
    assert meter.read()["agreement/smallest"] == 0.0


def test_a_slot_without_any_gradient_has_no_direction() -> None:
    meter = HealthMeter()
    meter.on_gradients(LARGEST, {"a": torch.ones(3)})
    meter.on_gradients(SLOTS[1], {"a": torch.zeros(3)})
    values = meter.read()
    assert values["cosine/random"] == 0.0
    assert values["grad_norm/largest"] == pytest.approx(math.sqrt(3))
