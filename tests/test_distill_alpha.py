"""The adaptive alpha-divergence: the original's numbers, analytic cases, and logits at which the original overflows."""

from __future__ import annotations

import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.distill import AlphaDivergence, SoftCrossEntropy, alpha_divergences

NONE = torch.empty(0)  # labels, which do not enter
UNCLIPPED = 1e30


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), student)[0]


def pair(seed: int = 0, images: int = 6, classes: int = 7, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, images, classes, generator=rng, dtype=torch.double) * scale
    return student.requires_grad_(), teacher


def test_the_original_s_numbers() -> None:
    """30 settings in fp64: loss, gradient (ten classes, norm, dot with cos(0, 1, ...)), divergences, surrogates."""
    with np.load(Path(__file__).parent / "data" / "alphanet_alpha.npz") as file:
        cases, losses, rows = file["cases"], file["loss"], file["images"]
    taken = {True: 0, False: 0}
    assert len(cases) == len(losses) == 30
    for (seed, batch, classes, student_scale, teacher_scale, low, high, clip), loss in zip(cases, losses, strict=True):
        rng = np.random.Generator(np.random.PCG64(int(seed)))
        student = torch.from_numpy(rng.standard_normal((int(batch), int(classes))) * student_scale).requires_grad_()
        teacher = torch.from_numpy(rng.standard_normal((int(batch), int(classes))) * teacher_scale)
        surrogate = AlphaDivergence(low, high, clip)(student, teacher, NONE)
        grad = gradient(surrogate.mean(), student)
        with torch.no_grad():
            divergences = alpha_divergences(student, teacher, low, high, clip)
            single = [AlphaDivergence(alpha, alpha, clip)(student, teacher, NONE) for alpha in (low, high)]
        for chosen in (divergences[0] > divergences[1]).tolist():
            taken[chosen] += 1
        cosines = torch.cos(torch.arange(classes, dtype=torch.double))
        columns = torch.stack([*divergences, *single, grad.norm(dim=1), grad @ cosines], 1)
        ours = torch.cat([columns, grad[:, :: int(classes) // 10]], 1).numpy()
        expected, rows = rows[: int(batch)], rows[int(batch) :]
        assert surrogate.mean().item() == pytest.approx(loss, rel=1e-12, abs=1e-10)
        np.testing.assert_allclose(ours[:, :4], expected[:, :4], rtol=1e-12, atol=1e-10)
        np.testing.assert_allclose(ours[:, 4:], expected[:, 4:], rtol=1e-12, atol=1e-12)
    assert len(rows) == 0
    assert min(taken.values()) > 50


def test_the_clip_decides_which_divergence_is_larger() -> None:
    """By hand: D_-1 is 4.302 and taken; clipped at 5 it is 1.950 and KL's 3.198 is."""
    student, teacher = torch.tensor([[[0.98, 0.02]], [[0.1, 0.9]]], dtype=torch.double).log()
    student.requires_grad_()
    kl = 0.1 * math.log(0.1 / 0.98) + 0.9 * math.log(0.9 / 0.02)
    for clip, low in (
        (UNCLIPPED, 0.5 * (0.98**2 / 0.1 + 0.02**2 / 0.9) - 0.5),
        (5.0, (0.98 * 5 + 0.02**2 / 0.9 - 1) / 2),
    ):
        values = alpha_divergences(student, teacher, iw_clip=clip)
        assert [value.item() for value in values] == pytest.approx([low, kl], rel=1e-12)
        chosen = -1.0 if low > kl else 1.0
        expected = gradient(AlphaDivergence(chosen, chosen, clip)(student, teacher, NONE), student)
        torch.testing.assert_close(gradient(AlphaDivergence(iw_clip=clip)(student, teacher, NONE), student), expected)
    assert low < kl < 4.302


def test_a_tie_takes_alpha_max() -> None:
    """With swapped probabilities KL is the same in both directions, its gradients are not."""
    student = torch.tensor([[2.0, 0.0]], dtype=torch.double, requires_grad=True)
    teacher = student.detach().flip(1)
    low, high = alpha_divergences(student, teacher, 0.0, 1.0, UNCLIPPED)
    assert torch.equal(low, high)
    ours = gradient(AlphaDivergence(0.0, 1.0, UNCLIPPED)(student, teacher, NONE), student)
    torch.testing.assert_close(ours, F.softmax(student.detach(), 1) - F.softmax(teacher, 1))
    other = gradient(AlphaDivergence(0.0, 0.0, UNCLIPPED)(student, teacher, NONE), student)
    assert (ours - other).abs().max() > 0.1


@pytest.mark.parametrize("alpha", [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
def test_the_surrogate_has_the_gradient_of_the_divergence(alpha: float) -> None:
    """Against the definition, differentiated by autograd, without a clip."""
    student, teacher = pair()
    q, p = F.softmax(student, 1), F.softmax(teacher, 1)
    if alpha == 1:
        divergence = (p * (p / q).log()).sum(1)
    elif alpha == 0:
        divergence = (q * (q / p).log()).sum(1)
    else:
        divergence = ((q * (p / q) ** alpha).sum(1) - 1) / (alpha * (alpha - 1))
    value, _ = alpha_divergences(student, teacher, alpha, alpha, UNCLIPPED)
    torch.testing.assert_close(value, divergence, rtol=1e-10, atol=1e-12)
    surrogate = AlphaDivergence(alpha, alpha, UNCLIPPED)(student, teacher, NONE)
    expected = gradient(divergence, student)
    torch.testing.assert_close(gradient(surrogate, student), expected, rtol=1e-10, atol=1e-12)


def test_each_image_takes_its_larger_divergence() -> None:
    student, teacher = pair(images=64)
    low, high = alpha_divergences(student, teacher)
    assert 5 < (low > high).sum() < 59
    both = AlphaDivergence()(student, teacher, NONE)
    alone = [AlphaDivergence(alpha, alpha)(student, teacher, NONE) for alpha in (-1.0, 1.0)]
    torch.testing.assert_close(both, torch.where(low > high, *alone))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(AlphaDivergence()(student[order], teacher[order], NONE), both[order])


def test_alpha_one_is_kl_and_the_others_tend_to_it() -> None:
    """The generic formula just outside the window that is treated as alpha 1, or 0, is close to the limit inside."""
    student, teacher = pair()
    kl = gradient(SoftCrossEntropy()(student, teacher, NONE), student)
    torch.testing.assert_close(gradient(AlphaDivergence(1.0, 1.0)(student, teacher, NONE), student), kl)
    for limit in (0.0, 1.0):
        inside = gradient(AlphaDivergence(limit, limit, UNCLIPPED)(student, teacher, NONE), student)
        for alpha in (limit - 0.0011, limit + 0.0011):
            value = alpha_divergences(student, teacher, limit, alpha, UNCLIPPED)
            close = gradient(AlphaDivergence(alpha, alpha, UNCLIPPED)(student, teacher, NONE), student)
            torch.testing.assert_close(close, inside, rtol=0.03, atol=0.01)
            torch.testing.assert_close(value[1], value[0], rtol=0.03, atol=0.01)
            assert not torch.equal(close, inside)
            within = AlphaDivergence(limit + 0.0009, limit + 0.0009, UNCLIPPED)(student, teacher, NONE)
            assert torch.equal(gradient(within, student), inside)


def test_a_student_that_agrees_has_no_gradient_and_no_divergence() -> None:
    student, _ = pair()
    teacher = student.detach() + 3.0
    for alphas in ((-1.0, 1.0), (0.0, 1.0), (-0.5, 2.0)):
        assert max(value.abs().max() for value in alpha_divergences(student, teacher, *alphas)) < 1e-14
        assert gradient(AlphaDivergence(*alphas)(student, teacher, NONE), student).abs().max() < 1e-14


def plain(student: Tensor, teacher: Tensor, alpha: float, clip: float) -> tuple[Tensor, Tensor]:
    """The divergence and its gradient from ratios of probabilities: overflows early, also in fp64."""
    q, p = F.softmax(student.double(), 1), F.softmax(teacher.double(), 1)
    ratio = p / q
    if alpha == 1:
        value, rho = (q * ratio * ratio.log()).sum(1), ratio
    elif alpha == 0:
        ratio = ratio.clamp(max=clip)
        value, rho = -(q * ratio.log()).sum(1), ratio.log() - 1
    else:
        power = (ratio**alpha).clamp(max=clip)
        value, rho = ((q * power).sum(1) - 1) / (alpha * (alpha - 1)), power / alpha
    return value, -(q * rho) + q * (q * rho).sum(1, keepdim=True)


@pytest.mark.parametrize("gap", [50.0, 90.0, 104.0, 300.0])
@pytest.mark.parametrize("alphas", [(-1.0, 1.0), (0.0, 1.0), (-0.5, 0.5), (-2.0, 2.0), (-1.0, -0.5)])
def test_wide_logits_in_single_precision(alphas: tuple[float, float], gap: float) -> None:
    """The original's fp32 is infinite from a gap of 90, NaN from 104; its formula in fp64 is the reference here."""
    orders = list(permutations([0.0, -gap / 2, -gap]))
    student, teacher = (torch.tensor(x) for x in zip(*((a, b) for a in orders for b in orders), strict=True))
    student.requires_grad_()
    grad = gradient(AlphaDivergence(*alphas)(student, teacher, NONE), student)
    (low, low_grad), (high, high_grad) = (plain(student.detach(), teacher, alpha, 5.0) for alpha in alphas)
    assert all(x.isfinite().all() for x in (low, high, low_grad, high_grad))
    for ours, value in zip(alpha_divergences(student, teacher, *alphas), (low, high), strict=True):
        torch.testing.assert_close(ours.double(), value, rtol=1e-5, atol=1e-5)
    clear = (low - high).abs() > 1e-4
    assert clear.sum() >= 6
    expected = torch.where((low > high)[:, None], low_grad, high_grad)
    torch.testing.assert_close(grad.double()[clear], expected[clear], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alphas", [(-1.0, 1.0), (0.0, 1.0), (-0.5, 0.5), (-2.0, 2.0), (-1.0, 0.0), (0.999, 1.002)])
@pytest.mark.parametrize("clip", [1.0, 5.0, UNCLIPPED])
@pytest.mark.parametrize("gap", [1e3, 1e4])
def test_extreme_logits_stay_finite(alphas: tuple[float, float], clip: float, gap: float) -> None:
    for logits in ([0.0, -gap, -gap / 3], [gap, gap - 1, 0.0]):
        orders = list(permutations(logits))
        student, teacher = (torch.tensor(x) for x in zip(*((a, b) for a in orders for b in orders), strict=True))
        student.requires_grad_()
        surrogate = AlphaDivergence(*alphas, clip)(student, teacher, NONE)
        assert surrogate.dtype == torch.float32
        assert surrogate.isfinite().all()
        assert gradient(surrogate, student).isfinite().all()
        assert all(value.isfinite().all() for value in alpha_divergences(student, teacher, *alphas, clip))


def test_extreme_logits_by_hand() -> None:
    """q = (1, 0), p = (0, 1): D_-1 = (5 - 1) / 2 at the clip, KL = 1e4, whose gradient q - p is taken."""
    student = torch.tensor([[1e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 1e4]])
    low, high = alpha_divergences(student, teacher)
    assert (low.item(), high.item()) == (2.0, 1e4)
    assert gradient(AlphaDivergence()(student, teacher, NONE), student).tolist() == [[1.0, -1.0]]


def test_precision_follows_the_logits_and_the_teacher_learns_nothing() -> None:
    student, teacher = pair()
    teacher.requires_grad_()
    loss = AlphaDivergence()(student, teacher, NONE)
    assert loss.shape == (6,)
    assert loss.dtype == torch.float64
    loss.sum().backward()
    assert teacher.grad is None
    half = student.detach().bfloat16(), teacher.detach().bfloat16()
    value = AlphaDivergence()(*half, NONE)
    assert value.dtype == torch.float32
    assert torch.equal(value, AlphaDivergence()(half[0].float(), half[1].float(), NONE))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha_min": math.nan}, "alpha_min=nan"),
        ({"alpha_max": math.inf}, "alpha_max=inf"),
        ({"alpha_min": 2.0}, r"alpha_min=2.0.*alpha_max=1.0"),
        ({"iw_clip": 0.5}, "iw_clip=0.5"),
        ({"iw_clip": math.inf}, "iw_clip=inf"),
        ({"iw_clip": math.nan}, "iw_clip=nan"),
    ],
)
def test_refused_arguments(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlphaDivergence(**arguments)


def test_an_alpha_of_zero_is_not_a_missing_one() -> None:
    assert AlphaDivergence(0.0, 0.0).alpha_max == 0.0
    student, teacher = pair()
    zero = gradient(AlphaDivergence(0.0, 0.0, UNCLIPPED)(student, teacher, NONE), student)
    reverse = (F.softmax(student, 1) * (F.log_softmax(student, 1) - F.log_softmax(teacher, 1))).sum(1)
    torch.testing.assert_close(zero, gradient(reverse, student))
