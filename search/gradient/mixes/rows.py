"""Genes with different numbers of options as one padded matrix: one operation instead of one per gene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The layout of the matrix: a row per gene, as many columns as the longest gene has options.

    Attributes:
        sizes: options of every gene.
        mask: True where a gene has an option, [genes, longest].
    """

    sizes: tuple[int, ...]
    mask: Tensor

    @classmethod
    def of(cls, vectors: Sequence[Tensor]) -> Rows:
        """The layout of one vector [options] per gene; there must be at least one gene."""
        sizes = tuple(vector.numel() for vector in vectors)
        return cls(sizes, torch.arange(max(sizes)) < torch.tensor(sizes)[:, None])

    def pad(self, flat: Tensor, fill: float) -> Tensor:
        """[sum of options], gene after gene, to [genes, longest]; `fill` stands where there is no option."""
        return flat.new_full(self.mask.shape, fill).masked_scatter(self.mask, flat)

    def split(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """One vector [options] per gene out of a padded matrix [genes, longest]."""
        return matrix.masked_select(self.mask).split(self.sizes)

    def everything(self) -> tuple[tuple[int, ...], ...]:
        """The support that holds every option."""
        return tuple(tuple(range(size)) for size in self.sizes)


def logit_rows(logits: Sequence[Tensor]) -> tuple[Rows, Tensor]:
    """The layout of the logits, and themselves as a matrix [genes, longest], -inf where there is no option."""
    rows = Rows.of(logits)
    return rows, rows.pad(torch.cat(tuple(logits)), -torch.inf)


def softmax_rows(logits: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Softmax of every gene's logits."""
    rows, matrix = logit_rows(logits)
    return rows.split(matrix.softmax(dim=1))


def exponential(rows: Rows, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Exp(1) noise, one number per option in the order of the genes: [sum of options], all positive."""
    noise = torch.empty(sum(rows.sizes), dtype=dtype).exponential_(generator=generator)
    return noise.clamp_min(torch.finfo(dtype).tiny)  # its logarithm must be finite


def gumbel(rows: Rows, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Gumbel(0, 1) noise, [genes, longest]; the largest of logits plus noise is a draw from their softmax."""
    return rows.pad(-exponential(rows, generator, dtype).log(), 0.0)


def positions(mask: Tensor) -> tuple[tuple[int, ...], ...]:
    """The columns of every row in which `mask` [genes, longest] is True, ascending."""
    return tuple(tuple(i for i, inside in enumerate(row) if inside) for row in mask.tolist())


def straight_through(relaxed: Tensor, drawn: Tensor) -> Tensor:
    """Exactly one-hot in value, with the gradient of `relaxed` [genes, longest]; `drawn` holds columns [genes]."""
    one_hot = torch.zeros_like(relaxed).scatter_(1, drawn[:, None], 1.0)
    # The bracket is exactly zero, so that rounding cannot touch the value.
    return one_hot + (relaxed - relaxed.detach())
