"""Losses that teach a subnet from the logits of the step's largest network (in-place distillation)."""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_fp32(logits: Tensor) -> Tensor:
    """Losses are computed in fp32, also under autocast; fp64 stays as it is."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


class DistillLoss(Protocol):
    """A per-image surrogate: right in its gradient, its value may mean nothing."""

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        """student, teacher: logits [B, K], the teacher's detached; targets: [B] or [B, K]. Returns [B]."""


class SoftCrossEntropy:
    """-sum_c p_teacher(c) log p_student(c), times temperature squared.

    It has the gradient of KL(teacher || student), from which it differs by the teacher's entropy only. BigNAS
    (Yu et al., ECCV 2020) uses temperature 1 and no label term.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}: must be positive")
        self.temperature = temperature

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        p = F.softmax(at_least_fp32(teacher) / self.temperature, dim=1)
        log_q = F.log_softmax(at_least_fp32(student) / self.temperature, dim=1)
        return -(p * log_q).sum(1) * self.temperature**2


class HardLabels:
    """No distillation: every subnet learns from the labels, without smoothing."""

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(at_least_fp32(student), targets, reduction="none")


class LabelsAndTeacher:
    """`kd_ratio` times the soft cross-entropy to the teacher, plus the cross-entropy to smoothed labels.

    Once-for-All (Cai et al., ICLR 2020) trains every subnet with it, `kd_ratio` and temperature 1, and the full
    network, trained before, as the teacher.

    Raises:
        ValueError: if `kd_ratio` is negative, or `label_smoothing` not in [0, 1).
    """

    def __init__(self, kd_ratio: float = 1.0, label_smoothing: float = 0.1, temperature: float = 1.0) -> None:
        if kd_ratio < 0:
            raise ValueError(f"kd_ratio={kd_ratio}: must not be negative")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing}: must be from 0 to below 1")
        self.kd_ratio, self.label_smoothing = kd_ratio, label_smoothing
        self.soft = SoftCrossEntropy(temperature)

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        labels = F.cross_entropy(
            at_least_fp32(student), targets, label_smoothing=self.label_smoothing, reduction="none"
        )
        return self.kd_ratio * self.soft(student, teacher, targets) + labels


def alpha_divergences(
    student: Tensor, teacher: Tensor, alpha_min: float = -1.0, alpha_max: float = 1.0, iw_clip: float = 5.0
) -> tuple[Tensor, Tensor]:
    """The two divergences of the teacher's softmax p from the student's q, per image: those of `AlphaDivergence`.

    student, teacher: logits [B, K]. Returns D_alpha_min [B] and D_alpha_max [B] in nats, with clipped ratios.
    """
    log_q, log_p = F.log_softmax(at_least_fp32(student), dim=1), F.log_softmax(at_least_fp32(teacher), dim=1)
    low, _ = _alpha_divergence(log_q, log_p, alpha_min, iw_clip)
    high, _ = _alpha_divergence(log_q, log_p, alpha_max, iw_clip)
    return low, high


class AlphaDivergence:
    """Per image the larger of two alpha-divergences D_a = (sum_c q_c (p_c / q_c)^a - 1) / (a (a - 1)).

    Teacher p, student q. A negative `alpha_min` weighs classes that the student overrates, a positive `alpha_max`
    those that it underrates: 1 is KL(p || q), 0 is KL(q || p). `iw_clip` bounds (p / q)^a, at alpha 0 the ratio
    itself; alpha 1 is not clipped. Equal divergences take alpha_max. What is returned is the surrogate
    -sum_c q_c rho_c log q_c with q rho constant: it has the divergence's gradient, but its value means nothing and
    may be negative; `alpha_divergences` gives the values. AlphaNet (Wang et al., ICML 2021), clipped as
    in the authors' program, which trains with gradients clipped by value at 1. Finite in fp32 for logits that are
    1e4 apart.

    Raises:
        ValueError: if an alpha is not finite, alpha_min exceeds alpha_max, or iw_clip is not in [1, 1e30].
    """

    def __init__(self, alpha_min: float = -1.0, alpha_max: float = 1.0, iw_clip: float = 5.0) -> None:
        for name, alpha in (("alpha_min", alpha_min), ("alpha_max", alpha_max)):
            if not math.isfinite(alpha):
                raise ValueError(f"{name}={alpha}: must be finite")
        if alpha_min > alpha_max:
            raise ValueError(f"alpha_min={alpha_min}: must not exceed alpha_max={alpha_max}")
        if not 1 <= iw_clip <= 1e30:  # below 1 even a perfect student is clipped; above, fp32 overflows
            raise ValueError(f"iw_clip={iw_clip}: must be from 1 to 1e30")
        self.alpha_min = alpha_min
        self.alpha_max = alpha_max
        self.iw_clip = iw_clip

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        log_q = F.log_softmax(at_least_fp32(student), dim=1)
        with torch.no_grad():
            log_p = F.log_softmax(at_least_fp32(teacher), dim=1)
            low, low_weights = _alpha_divergence(log_q, log_p, self.alpha_min, self.iw_clip)
            high, high_weights = _alpha_divergence(log_q, log_p, self.alpha_max, self.iw_clip)
            weights = torch.where((low > high)[:, None], low_weights, high_weights)
        return -(weights * log_q).sum(1)


def _alpha_divergence(log_q: Tensor, log_p: Tensor, alpha: float, iw_clip: float) -> tuple[Tensor, Tensor]:
    """D_alpha [B] and q rho [B, K], from log-probabilities [B, K].

    Ratios are exponentiated only once they are clipped, so nothing overflows and no zero meets an infinity.
    """
    log_r, log_clip = log_p - log_q, math.log(iw_clip)
    if abs(alpha - 1) < 1e-3:  # q r = p
        p = log_p.exp()
        return (p * log_r).sum(1), p
    q = log_q.exp()
    if abs(alpha) < 1e-3:
        log_r = log_r.clamp(max=log_clip)
        return -(q * log_r).sum(1), q * (log_r - 1)
    excess = torch.expm1((alpha * log_r).clamp(max=log_clip))  # min(r^a, clip) - 1: exactly 0 where p = q
    return (q * excess).sum(1) / (alpha * (alpha - 1)), q * (excess / alpha + 1 / (alpha - 1))
