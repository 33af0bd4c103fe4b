"""Softmax: all options, mixed by their probabilities (Liu et al. 2019, DARTS)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from search.gradient.mixes.base import Draw
from search.gradient.mixes.rows import Rows, softmax_rows


class Softmax:
    """The probabilities are the softmax of the logits; nothing is random (DARTS, section 2.2)."""

    def draw(self, logits: Sequence[Tensor], generator: torch.Generator, progress: float, for_weights: bool) -> Draw:
        """All options are run."""
        return Draw(softmax_rows(logits), Rows.of(logits).everything())

    def mean(self, logits: Sequence[Tensor]) -> list[Tensor]:
        """Softmax of the logits."""
        return list(softmax_rows(logits))

    def penalty(self, logits: Sequence[Tensor]) -> Tensor:
        """Zero."""
        return torch.zeros((), dtype=torch.float64)
