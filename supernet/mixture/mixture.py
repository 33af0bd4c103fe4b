"""`Mixture`: probabilities of the options in place of one choice, an immutable value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from supernet.mixture.plan import SoftPlan, Supports
from supernet.space import Arch, Space
from supernet.specs import Plan


@dataclass(frozen=True, eq=False)
class Mixture:
    """What a supernet runs in one pass of gradient-based search (TangleNAS, Sukthanker et al., 2024, and others).

    An axis that the options share (width, kernel, ratio) is mixed in the weights: the largest weight times gates. Depth
    is mixed in the outputs of the candidate blocks, operations in their outputs. Certain choices give the very numbers
    of the subnet.

    Attributes:
        probs: for every gene of the space the probabilities [options], on the network's device and in its dtype.
        support: for every gene the options that are run, ascending. The others count as impossible; an option can be
            run with probability 0, for its gradient. One resolution is run.
        partial: operations on the edges of cells run on one channel in so many (PC-DARTS); 1: on all. With another
            number certain choices do not give the subnet's numbers.
    """

    space: Space
    probs: tuple[Tensor, ...]
    support: Supports
    partial: int = 1

    def __post_init__(self) -> None:
        if len(self.probs) != len(self.space.genes) or len(self.support) != len(self.space.genes):
            raise ValueError(f"space {self.space.name!r} has {len(self.space.genes)} genes, got {len(self.probs)}")
        for gene, p, support in zip(self.space.genes, self.probs, self.support, strict=True):
            if p.shape != (len(gene.options),):
                raise ValueError(f"{gene.name}: expected {len(gene.options)} probabilities, got shape {list(p.shape)}")
            if not support or list(support) != sorted(set(support)) or not 0 <= support[0] <= support[-1] < len(p):
                raise ValueError(f"{gene.name}: the options that are run must be ascending positions, got {support}")
            if gene.key == "resolution" and len(support) > 1:
                raise ValueError("a pass has images of one size: give one option of resolution as its support")

    @staticmethod
    def of(space: Space, probs: Sequence[Tensor], resolution: int = -1) -> Mixture:
        """All options are run; of the resolution the one at position `resolution`."""
        support = [tuple(range(len(gene.options))) for gene in space.genes]
        for i, gene in enumerate(space.genes):
            if gene.key == "resolution":
                support[i] = (support[i][resolution],)
        return Mixture(space, tuple(probs), tuple(support))

    @staticmethod
    def one_hot(space: Space, arch: Arch, like: Tensor, full: bool = False) -> Mixture:
        """`arch` with certainty; `full`: every option is run all the same (but for the resolution's)."""
        codes = space.encode(arch)
        probs = [like.new_zeros(len(gene.options)) for gene in space.genes]
        for p, code in zip(probs, codes, strict=True):
            p[code] = 1.0
        side = next((code for gene, code in zip(space.genes, codes, strict=True) if gene.key == "resolution"), -1)
        if full:
            return Mixture.of(space, probs, side)
        return Mixture(space, tuple(probs), tuple((code,) for code in codes))

    @property
    def resolution(self) -> int:
        """The side of the images that it takes, px."""
        return self.plan.resolution

    @cached_property
    def plan(self) -> Plan | SoftPlan:
        """What the network reads. Where every choice is certain and nothing learns from it, the subnet's own plan."""
        certain = all(len(support) == 1 for support in self.support)
        if certain and self.partial == 1 and not any(p.requires_grad for p in self.probs):
            return self.space.plan(self.space.decode([support[0] for support in self.support]))
        run = [
            p if len(support) == len(p) else p[_positions(p, support)]
            for p, support in zip(self.probs, self.support, strict=True)
        ]
        return SoftPlan(self.space, run, self.support, self.partial)


def _positions(like: Tensor, support: tuple[int, ...]) -> Tensor:
    return torch.tensor(support, device=like.device)
