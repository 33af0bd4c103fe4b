"""Distillation losses: analytic gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.distill import HardLabels, LabelsAndTeacher, SoftCrossEntropy


def logits(seed: int, scale: float = 3.0) -> Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)) * scale


TARGETS = torch.arange(6) % 5


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_gradient_is_the_difference_of_the_softmaxes(temperature: float) -> None:
    """Times temperature, from the factor of temperature squared."""
    student, teacher = logits(0).requires_grad_(), logits(1)
    SoftCrossEntropy(temperature)(student, teacher, TARGETS).sum().backward()
    q, p = F.softmax(student.detach() / temperature, 1), F.softmax(teacher / temperature, 1)
    torch.testing.assert_close(student.grad, temperature * (q - p))


def test_gradient_is_that_of_kl_and_the_value_differs_by_the_teachers_entropy() -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    soft = SoftCrossEntropy()(student, teacher, TARGETS)
    log_q, p = F.log_softmax(student, 1), F.softmax(teacher, 1)
    kl = F.kl_div(log_q, p, reduction="none").sum(1)
    entropy = torch.distributions.Categorical(logits=teacher).entropy()
    torch.testing.assert_close(soft, kl + entropy)
    (of_soft,) = torch.autograd.grad(soft.sum(), student, retain_graph=True)
    (of_kl,) = torch.autograd.grad(kl.sum(), student)
    torch.testing.assert_close(of_soft, of_kl)


def test_a_student_that_agrees_has_no_gradient() -> None:
    student = logits(0).requires_grad_()
    loss = SoftCrossEntropy()(student, student.detach() + 7.0, TARGETS)
    assert loss.shape == (6,)
    loss.sum().backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6


def test_labels_do_not_enter_and_images_do_not_mix() -> None:
    student, teacher = logits(0), logits(1)
    loss = SoftCrossEntropy()
    assert torch.equal(loss(student, teacher, TARGETS), loss(student, teacher, TARGETS.flip(0)))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss(student[order], teacher[order], TARGETS), loss(student, teacher, TARGETS)[order])


def test_half_precision_is_computed_in_single() -> None:
    student, teacher = logits(0).bfloat16(), logits(1).bfloat16()
    for loss in (SoftCrossEntropy(), HardLabels()):
        value = loss(student, teacher, TARGETS)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(student.float(), teacher.float(), TARGETS))


def test_extreme_logits_stay_finite() -> None:
    student = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = SoftCrossEntropy()(student, torch.tensor([[1e4, -1e4], [1e4, -1e4]]), TARGETS[:2])
    loss.sum().backward()
    assert student.grad is not None
    assert loss.tolist() == [0.0, 2e4]
    torch.testing.assert_close(student.grad, torch.tensor([[0.0, 0.0], [-1.0, 1.0]]))


def test_hard_labels_ignore_the_teacher() -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    loss = HardLabels()(student, teacher, TARGETS)
    torch.testing.assert_close(loss, -F.log_softmax(student, 1)[torch.arange(6), TARGETS])
    loss.sum().backward()
    torch.testing.assert_close(student.grad, F.softmax(student.detach(), 1) - F.one_hot(TARGETS, 5))
    mixed = 0.3 * F.one_hot(TARGETS, 5) + 0.7 * F.one_hot(TARGETS.flip(0), 5)
    expected = 0.3 * HardLabels()(student, teacher, TARGETS) + 0.7 * HardLabels()(student, teacher, TARGETS.flip(0))
    torch.testing.assert_close(HardLabels()(student, teacher, mixed), expected)


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match="temperature=0"):
        SoftCrossEntropy(0)


@pytest.mark.parametrize(("ratio", "smoothing", "temperature"), [(1.0, 0.1, 1.0), (0.3, 0.0, 4.0), (0.0, 0.2, 1.0)])
def test_labels_and_teacher_pull_as_the_two_softmaxes_say(ratio: float, smoothing: float, temperature: float) -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    loss = LabelsAndTeacher(ratio, smoothing, temperature)(student, teacher, TARGETS)
    assert loss.shape == (6,)
    loss.sum().backward()
    smoothed = (1 - smoothing) * F.one_hot(TARGETS, 5) + smoothing / 5
    z = student.detach()
    taught = temperature * (F.softmax(z / temperature, 1) - F.softmax(teacher / temperature, 1))
    torch.testing.assert_close(student.grad, F.softmax(z, 1) - smoothed + ratio * taught)


def test_labels_and_teacher_take_mixed_labels_and_half_precision() -> None:
    student, teacher = logits(0).bfloat16(), logits(1).bfloat16()
    loss = LabelsAndTeacher()
    whole = loss(student, teacher, TARGETS)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(whole, loss(student.float(), teacher.float(), F.one_hot(TARGETS, 5).float()))
    other = TARGETS.flip(0)
    mixed = 0.3 * F.one_hot(TARGETS, 5) + 0.7 * F.one_hot(other, 5)
    torch.testing.assert_close(
        loss(student, teacher, mixed), 0.3 * whole + 0.7 * loss(student, teacher, other), rtol=1e-5, atol=1e-5
    )


def test_labels_and_teacher_refuse_senseless_settings() -> None:
    for settings, words in (
        ({"kd_ratio": -1.0}, "kd_ratio=-1.0"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"temperature": 0.0}, "temperature=0"),
    ):
        with pytest.raises(ValueError, match=words):
            LabelsAndTeacher(**settings)
