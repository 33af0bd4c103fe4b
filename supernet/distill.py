"""Losses that teach a subnet from the logits of the step's largest network (in-place distillation)."""

from __future__ import annotations

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
