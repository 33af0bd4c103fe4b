"""Specs of what the cells of DARTS have beside the operations of other cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from supernet.specs.cell import PoolSpec
from supernet.specs.conv import ConvSpec


@dataclass(frozen=True)
class FactorizedReduceSpec:
    """relu -> two 1x1 convolutions of stride 2, of the even and of the odd pixels, side by side -> norm.

    `even` and `odd` have no norms of their own; together they have the output's channels. Where the side is odd there
    are fewer odd pixels, so `odd` is smaller by one and continued by zeros.
    """

    even: ConvSpec
    odd: ConvSpec
    norm_eps: float
    affine: bool

    @property
    def out_channels(self) -> int:
        return self.even.out_channels + self.odd.out_channels

    @property
    def macs(self) -> int:
        return self.even.macs + self.odd.macs

    @property
    def params(self) -> int:
        return self.even.params + self.odd.params + 2 * self.out_channels * self.affine

    @property
    def bytes(self) -> int:
        return 4 * self.params + 8 * self.out_channels + 8

    @property
    def activations(self) -> int:
        out = self.out_channels * self.even.size**2
        return out + max(self.even.held_in, out)  # both halves beside the input, then beside their join


@dataclass(frozen=True)
class NormedPoolSpec:
    """A pooling, then a norm without scale and shift."""

    pool: PoolSpec
    norm_eps: float
    macs: ClassVar[int] = 0
    params: ClassVar[int] = 0

    @property
    def bytes(self) -> int:
        return 8 * self.pool.channels + 8

    @property
    def activations(self) -> int:
        return self.pool.activations
