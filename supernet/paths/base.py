"""What a path sampler is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from supernet.space import Arch

# Mean loss of a subnet on the labels of the step's own batch: without gradients, dropout or any other trace.
LossOf = Callable[[Arch], Tensor]


@dataclass(frozen=True)
class Path:
    """A subnet to train. `weight` multiplies its loss: 1, or an importance weight."""

    arch: Arch
    weight: float = 1.0


class PathSampler(Protocol):
    """Made of (space, seed, horizon). Draws from (seed, step, slot), and from what it learned if it is `Learned`:
    ranks agree without talking, and a resumed run repeats itself."""

    def draw(self, step: int, count: int, loss_of: LossOf) -> list[Path]:
        """The `count` random subnets of training step `step`. `loss_of` costs a forward pass at each call."""


@runtime_checkable
class Counts(Protocol):
    """A path sampler that works with certain numbers of random subnets a step only."""

    def check(self, count: int) -> None:
        """Raises UserError if `count` will not do. Asked before a run begins."""


@runtime_checkable
class WatchesGradients(Protocol):
    """A path sampler that learns from the gradients of the subnets that it drew."""

    def attach(self, weights: Mapping[str, Tensor]) -> None:
        """Shown once, before the first draw: the parameters of `Supernet.net` by name, as they go on to train."""

    def wants(self, step: int) -> bool:
        """Whether it looks at the gradients of training step `step`."""

    def observe(self, step: int, arch: Arch, gradients: Mapping[str, Tensor]) -> None:
        """The gradients that one random slot alone gives, by parameter name of `Supernet.net`, zero outside the slice.

        Unweighted (a slot's weight is divided out), unclipped; valid during the call only. Must not wait for the
        device.
        """
