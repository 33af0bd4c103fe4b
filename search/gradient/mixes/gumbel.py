"""Gumbel softmax: one option is drawn, exactly (GDAS) or almost (SNAS), with a falling temperature."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from search.gradient.mixes.base import Draw
from search.gradient.mixes.rows import gumbel, logit_rows, softmax_rows, straight_through


class Gumbel:
    """p = softmax((log_softmax(logits) + Gumbel noise) / temperature).

    The temperature falls linearly from `tau_max` to `tau_min`.

    Args:
        hard: the pass sees the largest entry of p as 1 and the others as 0, its gradient is that of p
            (Dong & Yang 2019, GDAS, section 3.2). Otherwise it sees p itself, a concrete variable
            (Xie et al. 2019, SNAS, section 2.2).
        tau_max: temperature at the start.
        tau_min: temperature at the end.

    Raises:
        ValueError: if the temperatures are not 0 < tau_min <= tau_max.
    """

    def __init__(self, hard: bool, tau_max: float, tau_min: float) -> None:
        if not 0 < tau_min <= tau_max:
            raise ValueError(f"tau_min={tau_min:g}, tau_max={tau_max:g}: expected 0 < tau_min <= tau_max")
        self.hard, self.tau_max, self.tau_min = hard, tau_max, tau_min

    def temperature(self, progress: float) -> float:
        """At a share of the search that is done, 0 to 1; exact at both ends."""
        return self.tau_max * (1 - progress) + self.tau_min * progress

    def draw(self, logits: Sequence[Tensor], generator: torch.Generator, progress: float, for_weights: bool) -> Draw:
        """Hard: a pass for the weights runs the drawn option; others have full support, and name the drawn ones."""
        rows, matrix = logit_rows(logits)
        scores = matrix.log_softmax(dim=1) + gumbel(rows, generator, matrix.dtype)
        probs = (scores / self.temperature(progress)).softmax(dim=1)
        if not self.hard:
            return Draw(rows.split(probs), rows.everything())
        index = scores.argmax(dim=1)
        drawn = tuple(index.tolist())
        support = tuple((i,) for i in drawn) if for_weights else rows.everything()
        return Draw(rows.split(straight_through(probs, index)), support, drawn)

    def mean(self, logits: Sequence[Tensor]) -> list[Tensor]:
        """Softmax of the logits: how often each option is the largest, at any temperature."""
        return list(softmax_rows(logits))

    def penalty(self, logits: Sequence[Tensor]) -> Tensor:
        """Zero."""
        return torch.zeros((), dtype=torch.float64)
