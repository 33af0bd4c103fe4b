"""Mixtures worked out the long way: every option in turn, none of the product's own gates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.space import Space

DTYPE = torch.float64


def simplex(sizes: Sequence[int], seed: int = 0) -> list[Tensor]:
    """A random probability vector of each size, fp64, none of them near 0."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.rand(size, generator=generator, dtype=torch.float64) + 0.2 for size in sizes]
    return [draw / draw.sum() for draw in draws]


def probabilities(space: Space, seed: int = 0) -> list[Tensor]:
    """One vector for every gene of the space."""
    return simplex([len(gene.options) for gene in space.genes], seed)


def combinations(probs: Sequence[Tensor], support: Sequence[Sequence[int]]) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """All combinations of options that are run, with the product of their probabilities."""
    for codes in product(*support):
        yield codes, prod((p[code] for p, code in zip(probs, codes, strict=True)), start=torch.ones((), dtype=DTYPE))


def pad_kernel(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """[rows, columns, k, k] with zeros: rows and columns behind, the kernel in the middle of a larger one."""
    side = (shape[2] - weight.shape[2]) // 2
    behind = [shape[1] - weight.shape[1], shape[0] - weight.shape[0]]
    return F.pad(weight, (side, side, side, side, 0, behind[0], 0, behind[1]))


def cut(weight: Tensor, rows: int, columns: int, kernel: int) -> Tensor:
    """The leading rows and columns, the middle of the kernel."""
    start = (weight.shape[2] - kernel) // 2
    return weight[:rows, :columns, start : start + kernel, start : start + kernel]


def expectation(
    probs: Sequence[Tensor], support: Sequence[Sequence[int]], value: Callable[[tuple[int, ...]], Tensor | None]
) -> Tensor:
    """The mean of `value(codes)` over the combinations that have one."""
    total, mass = torch.zeros((), dtype=DTYPE), torch.zeros((), dtype=DTYPE)
    for codes, p in combinations(probs, support):
        found = value(codes)
        if found is not None:
            total, mass = total + p * found, mass + p
    return total / mass
