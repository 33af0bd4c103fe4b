"""One training step: whose gradients are summed, who teaches whom, and what is random."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_space
from torch import Tensor

import supernet.step
from supernet.distill import HardLabels, SoftCrossEntropy
from supernet.horizon import Horizon
from supernet.init import initialise
from supernet.net import Supernet
from supernet.paths.uniform import Uniform as UniformPaths
from supernet.samplers.base import Draw, Slot
from supernet.samplers.sandwich import Sandwich
from supernet.samplers.uniform import Uniform
from supernet.space import Arch
from supernet.step import accumulate, update

SPACE = tiny_space()
RANDOM = SPACE.sample(np.random.default_rng(3), 2)
LARGEST = Slot(SPACE.largest(), "largest")
SMALLEST = Slot(SPACE.smallest(), "smallest")
FIRST, SECOND = (Slot(arch, "random") for arch in RANDOM)
SLOTS = [LARGEST, FIRST, SECOND, SMALLEST]


def draw(step: int) -> Draw:
    paths = UniformPaths(SPACE, seed=0, horizon=Horizon(1, 1))
    return lambda count: paths.draw(step, count, no_loss)


def no_loss(arch: Arch) -> Tensor:
    raise AssertionError("uniform draws need no losses")


def fresh_net() -> Supernet:
    """Double precision, so that only a wrong method can differ by more than 1e-12."""
    net = Supernet(SPACE)
    initialise(net, 0, "torch", "none")
    return net.double().train()


def batch(count: int = 6, side: int = 12) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, side, side, generator=rng, dtype=torch.double)
    return images, torch.randint(4, (count,), generator=rng)


def label_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, label_smoothing=0.1)


def divergence(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """KL(teacher || student) per image, in the precision of its arguments."""
    kl = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="none")
    return kl.sum(1)


def gradients(net: Supernet, slots: list[Slot], distill: Any = divergence, **rates: float) -> list[Tensor]:
    net.zero_grad(set_to_none=True)
    accumulate(net, *batch(), slots, label_loss, distill, **rates)
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in net.parameters()]


def separate(net: Supernet, slots: list[Slot], distill: Any = divergence) -> list[list[Tensor]]:
    """Every pass on its own, by torch.autograd.grad; the teacher is a constant computed once."""
    images, targets = batch()
    parts = []
    with torch.no_grad():
        teacher = net(images, SPACE.largest())
    for slot in slots:
        side = SPACE.resolution(slot.arch)
        x = images if side == 12 else F.interpolate(images, (side, side), mode="bicubic")
        logits = net(x, slot.arch)
        own = label_loss(logits, targets) if slot is LARGEST else distill(logits, teacher, targets).mean()
        found = torch.autograd.grad(own, list(net.parameters()), allow_unused=True)
        zipped = zip(found, net.parameters(), strict=True)
        parts.append([torch.zeros_like(p) if g is None else g for g, p in zipped])
    return parts


def total(parts: list[list[Tensor]]) -> list[Tensor]:
    return [sum(column[1:], column[0]) for column in zip(*parts, strict=True)]


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    scale = max(float(tensor.abs().max()) for tensor in expected)
    assert scale > 1e-3
    for one, other in zip(actual, expected, strict=True):
        assert float((one - other).abs().max()) <= 1e-12 * scale


def test_the_gradient_is_the_sum_of_separate_passes() -> None:
    assert SPACE.resolution(FIRST.arch) != SPACE.resolution(SMALLEST.arch) or RANDOM[0] != RANDOM[1]
    net = fresh_net()
    assert_close(gradients(net, SLOTS), total(separate(net, SLOTS)))


def test_the_project_s_own_distillation_loss_sums_as_well() -> None:
    # It computes in single precision, so the tolerance is that of floats.
    net = fresh_net()
    actual = gradients(net, SLOTS, SoftCrossEntropy())
    expected = total(separate(net, SLOTS, SoftCrossEntropy()))
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_students_send_no_gradient_into_their_teacher() -> None:
    """A loss of the teacher's logits alone must change nothing."""
    net = fresh_net()

    def teacher_only(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        assert not teacher.requires_grad
        return teacher.square().sum(1) + 0.0 * student.sum(1)

    with_students = gradients(net, SLOTS, teacher_only)
    assert_close(with_students, separate(net, [LARGEST])[0])


def test_the_teacher_of_every_slot_is_the_largest_network() -> None:
    net, seen = fresh_net(), []

    def remember(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        seen.append(teacher)
        return divergence(student, teacher, targets)

    gradients(net, SLOTS, remember)
    expected = net(batch()[0], SPACE.largest())
    assert len(seen) == 3
    assert all(torch.equal(teacher, expected) for teacher in seen)


def test_losses_come_back_in_order_and_detached() -> None:
    net = fresh_net()
    losses = accumulate(net, *batch(), SLOTS, label_loss, divergence)
    images, targets = batch()
    teacher = net(images, SPACE.largest())
    assert len(losses) == len(SLOTS)
    assert not any(loss.requires_grad for loss in losses)
    assert losses[0].item() == pytest.approx(label_loss(teacher, targets).item(), rel=1e-12)
    small = net(F.interpolate(images, (8, 8), mode="bicubic"), SPACE.smallest())
    assert losses[-1].item() == pytest.approx(divergence(small, teacher, targets).mean().item(), rel=1e-12)


def test_one_largest_slot_is_plain_training() -> None:
    net = fresh_net().float()
    plain = copy.deepcopy(net)
    images, targets = batch()[0].float(), batch()[1]
    ours = torch.optim.SGD(net.parameters(), 99.0, momentum=0.9, nesterov=True)
    theirs = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9, nesterov=True)
    for _ in range(4):
        accumulate(net, images, targets, [LARGEST], label_loss, HardLabels())
        update(ours, 0.05)
        theirs.zero_grad()
        label_loss(plain(images), targets).backward()
        theirs.step()
    for one, other in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_repeated_slot_adds_exactly_its_part_again() -> None:
    net = fresh_net()
    once, twice = gradients(net, [LARGEST, FIRST, SMALLEST]), gradients(net, [LARGEST, FIRST, FIRST, SMALLEST])
    assert_close([b - a for a, b in zip(once, twice, strict=True)], separate(net, [FIRST])[0])


@pytest.mark.parametrize("weight", [0.0, 0.25, 3.0])
def test_a_slot_s_weight_scales_its_part_but_not_its_reported_loss(weight: float) -> None:
    net = fresh_net()
    weighted = Slot(FIRST.arch, "random", weight)
    largest, part = separate(net, [LARGEST, FIRST])
    expected = [a + weight * b for a, b in zip(largest, part, strict=True)]
    assert_close(gradients(net, [LARGEST, weighted]), expected)
    losses = [accumulate(net, *batch(), [LARGEST, s], label_loss, divergence)[1] for s in (FIRST, weighted)]
    assert losses[0] == losses[1]


def test_without_a_largest_slot_everyone_learns_from_the_labels() -> None:
    def never(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        raise AssertionError("there is no teacher")

    net = fresh_net()
    slots = Uniform(SPACE, num_random=2).slots(0, draw(0))
    images, targets = batch()
    losses = accumulate(net, images, targets, slots, label_loss, never)
    for slot, loss in zip(slots, losses, strict=True):
        side = SPACE.resolution(slot.arch)
        x = images if side == 12 else F.interpolate(images, (side, side), mode="bicubic")
        assert loss.item() == pytest.approx(label_loss(net(x, slot.arch), targets).item(), rel=1e-12)


def test_uniform_sampling_trains_the_network() -> None:
    net = fresh_net().float()
    images, targets = batch(16)[0].float(), batch(16)[1]
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    sampler = Uniform(SPACE)
    losses = []
    for step in range(40):
        losses += accumulate(net, images, targets, sampler.slots(step, draw(step)), label_loss, HardLabels())
        update(optimizer, 0.05)
    assert torch.stack(losses[-5:]).mean() < 0.7 * torch.stack(losses[:5]).mean()


def test_only_the_largest_slot_is_random_where_there_is_one() -> None:
    net = fresh_net()
    rates = {"dropout": 0.5, "drop_path": 0.5}

    def state_after(slots: list[Slot], **given: float) -> Tensor:
        torch.manual_seed(0)
        gradients(net, slots, **given)
        return torch.get_rng_state()

    torch.manual_seed(0)
    untouched = torch.get_rng_state()
    assert torch.equal(state_after(SLOTS), untouched)
    assert not torch.equal(state_after([LARGEST], **rates), untouched)
    assert torch.equal(state_after(SLOTS, **rates), state_after([LARGEST], **rates))


def test_students_are_not_regularised() -> None:
    net, seen = fresh_net(), []

    class Logits:
        def before(self, slot: Slot) -> None:
            pass

        def after(self, slot: Slot, done: supernet.step.Pass) -> None:
            seen.append(done.logits)

    for rate in (0.9, 0.0):
        accumulate(net, *batch(), SLOTS, label_loss, divergence, rate, rate, observers=[Logits()])
    regularised, plain = seen[: len(SLOTS)], seen[len(SLOTS) :]
    assert not torch.equal(regularised[0], plain[0])
    assert all(torch.equal(one, other) for one, other in zip(regularised[1:], plain[1:], strict=True))


def test_without_a_largest_slot_every_slot_is_regularised() -> None:
    """SPOS, AutoFormer and Once-for-All train random subnets only, with dropout and drop-path in each."""
    net = fresh_net()
    torch.manual_seed(0)
    for slot in (FIRST, SMALLEST):
        dropped, whole = gradients(net, [slot], dropout=0.5), gradients(net, [slot])
        assert any(not torch.allclose(a, b) for a, b in zip(dropped, whole, strict=True))


def test_dropout_changes_the_largest_slot_s_gradient() -> None:
    net = fresh_net()
    torch.manual_seed(0)
    dropped, whole = gradients(net, [LARGEST], dropout=0.5), gradients(net, [LARGEST])
    assert any(not torch.allclose(a, b) for a, b in zip(dropped, whole, strict=True))


def test_images_are_resized_once_per_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[int] = []
    original = supernet.step.resize

    def counted(images: Tensor, side: int) -> Tensor:
        sides.append(side)
        return original(images, side)

    monkeypatch.setattr(supernet.step, "resize", counted)
    slots = Sandwich(SPACE, num_random=6).slots(0, draw(0))
    accumulate(fresh_net(), *batch(), slots, label_loss, divergence)
    assert sorted(sides) == [8, 12]


def with_gradient(*values: float) -> tuple[torch.nn.Parameter, torch.optim.SGD]:
    parameter = torch.nn.Parameter(torch.zeros(len(values)))
    parameter.grad = torch.tensor(values)
    return parameter, torch.optim.SGD([parameter], lr=99.0)


def test_update_uses_the_given_rate_and_clears_the_gradients() -> None:
    parameter, optimizer = with_gradient(3.0, -4.0)
    update(optimizer, lr=0.5)
    assert parameter.tolist() == [-1.5, 2.0]
    assert parameter.grad is not None
    assert not parameter.grad.any()


def test_clipping_by_value() -> None:
    parameter, optimizer = with_gradient(3.0, -4.0, 0.25)
    update(optimizer, lr=1.0, clip_value=1.0)
    assert parameter.tolist() == [-1.0, 1.0, -0.25]


def test_clipping_by_norm_is_over_all_parameters_together() -> None:
    parts = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    parts[0].grad, parts[1].grad = torch.tensor([3.0]), torch.tensor([-4.0])
    groups = [{"params": parts[:1]}, {"params": parts[1:]}]
    update(torch.optim.SGD(groups, lr=99.0), lr=1.0, clip_norm=1.0)
    assert [p.item() for p in parts] == pytest.approx([-0.6, 0.8], rel=1e-5)


def test_a_small_gradient_is_not_clipped() -> None:
    parameter, optimizer = with_gradient(0.3, -0.4)
    update(optimizer, lr=1.0, clip_value=1.0, clip_norm=1.0)
    assert parameter.tolist() == pytest.approx([-0.3, 0.4])


def test_autocast_keeps_weights_and_gradients_in_single_precision() -> None:
    net = fresh_net().float()
    images, targets = batch()[0].float(), batch()[1]
    losses = accumulate(net, images, targets, SLOTS, label_loss, SoftCrossEntropy(), autocast=True)
    assert all(torch.isfinite(loss) for loss in losses)
    assert {p.grad.dtype for p in net.parameters() if p.grad is not None} == {torch.float32}


def each_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, label_smoothing=0.1, reduction="none")


def test_weights_of_images_multiply_their_losses_in_every_slot() -> None:
    """An image of weight 2 counts as if it were there twice, one of weight 0 as if its loss were 0."""
    images, targets = batch(4)
    net = fresh_net()
    accumulate(net, images, targets, SLOTS, each_loss, divergence, weights=torch.tensor([2.0, 0, 1, 1]))
    weighted = [p.grad.clone() if p.grad is not None else None for p in net.parameters()]
    net.zero_grad()
    teacher = net(images, LARGEST.arch).detach()
    for slot in SLOTS:
        x = supernet.step.resize(images, SPACE.resolution(slot.arch))
        logits = net(x, slot.arch)
        loss = each_loss(logits, targets) if slot is LARGEST else divergence(logits, teacher, targets)
        ((2 * loss[0] + loss[2] + loss[3]) / 4).backward()
    for mine, parameter in zip(weighted, net.parameters(), strict=True):
        if parameter.grad is None:
            assert mine is None
        else:
            assert mine is not None
            assert torch.allclose(mine, parameter.grad, rtol=1e-10, atol=1e-12)


def test_another_networks_teacher_teaches_every_slot_also_the_largest() -> None:
    images, targets = batch()
    given = torch.randn(len(images), 4, dtype=torch.double, generator=torch.Generator().manual_seed(5))
    net = fresh_net()

    def never(logits: Tensor, targets: Tensor) -> Tensor:
        raise AssertionError("no slot learns from the labels alone")

    losses = accumulate(net, images, targets, SLOTS, never, divergence, teacher=given)
    for slot, loss in zip(SLOTS, losses, strict=True):
        logits = net(supernet.step.resize(images, SPACE.resolution(slot.arch)), slot.arch)
        assert loss.item() == pytest.approx(divergence(logits, given, targets).mean().item(), rel=1e-12)
