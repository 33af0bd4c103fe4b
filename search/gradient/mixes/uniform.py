"""Uniform: one option at random, whatever the logits (Guo et al. 2020, Single Path One-Shot)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from search.gradient.mixes.base import Draw
from search.gradient.mixes.rows import Rows, exponential


class Uniform:
    """One-hot probabilities, each option equally often; the logits get no gradient. The baseline of the other rules."""

    def draw(self, logits: Sequence[Tensor], generator: torch.Generator, progress: float, for_weights: bool) -> Draw:
        """Only the drawn options are run."""
        rows = Rows.of(logits)
        dtype = logits[0].dtype
        index = rows.pad(exponential(rows, generator, dtype), torch.inf).argmin(dim=1)
        one_hot = torch.zeros(rows.mask.shape, dtype=dtype).scatter_(1, index[:, None], 1.0)
        return Draw(rows.split(one_hot), tuple((i,) for i in index.tolist()))

    def mean(self, logits: Sequence[Tensor]) -> list[Tensor]:
        """1 / options; constant."""
        return [torch.full(vector.shape, 1 / vector.numel(), dtype=vector.dtype) for vector in logits]

    def penalty(self, logits: Sequence[Tensor]) -> Tensor:
        """Zero."""
        return torch.zeros((), dtype=torch.float64)
