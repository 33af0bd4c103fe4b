"""Sparsemax: like softmax, but improbable options have probability exactly 0 (Martins & Astudillo 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from search.gradient.mixes.base import Draw
from search.gradient.mixes.rows import logit_rows, positions


class Sparsemax:
    """The probabilities are the logits' Euclidean projection onto the simplex.

    TangleNAS (Sukthanker et al. 2023) puts it in the place of the softmax of DARTS. On passes for the weights only
    options with a probability above 0 are run.
    """

    def draw(self, logits: Sequence[Tensor], generator: torch.Generator, progress: float, for_weights: bool) -> Draw:
        """Nothing is random; the support of a pass for the weights is that of the projection."""
        rows, matrix = logit_rows(logits)
        probs = sparsemax(matrix)
        return Draw(rows.split(probs), positions(probs > 0) if for_weights else rows.everything())

    def mean(self, logits: Sequence[Tensor]) -> list[Tensor]:
        """The projection."""
        rows, matrix = logit_rows(logits)
        return list(rows.split(sparsemax(matrix)))

    def penalty(self, logits: Sequence[Tensor]) -> Tensor:
        """Zero."""
        return torch.zeros((), dtype=torch.float64)


def sparsemax(logits: Tensor) -> Tensor:
    """Euclidean projection of every row [rows, options] onto the simplex; entries of -inf get probability 0.

    Source: Martins & Astudillo 2016, algorithm 1. The Jacobian is that of their proposition 1,
    diag(s) - s s^T / |s|, with s the indicator of the support: autograd finds it, because the support is constant.
    """
    with torch.no_grad():
        ordered = logits.sort(dim=1, descending=True).values
        rank = torch.arange(1, logits.shape[1] + 1)
        size = (1 + rank * ordered > ordered.cumsum(1)).sum(1, keepdim=True)
        support = logits >= ordered.gather(1, size - 1)
    inside = torch.where(support, logits, 0.0)
    threshold = (inside.sum(1, keepdim=True) - 1) / size
    # An option on the edge of the support can come out a rounding error below zero.
    return torch.where(support, (inside - threshold).clamp_min(0.0), 0.0)
