"""What a data sampler is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class Visits:
    """An epoch.

    Attributes:
        order: positions in the training split, int64 [N] on the CPU, in the order of their visits.
        weights: factors on the images' losses, float32 [N], by position in the training split (not by visit); None:
            all 1.
    """

    order: Tensor
    weights: Tensor | None = None


class DataSampler(Protocol):
    """Made of (num_images, seed, horizon). Draws from (seed, epoch), and from what it learned if it is `Learned`."""

    def visits(self, epoch: int) -> Visits:
        """The order and the weights of one epoch. Asked for once at its start, and again after a restart in it."""


@runtime_checkable
class WatchesImages(Protocol):
    """A data sampler that learns how much each image matters."""

    def observe(self, index: Tensor, score: Tensor) -> None:
        """`score` [B] of the images at positions `index` [B] of the training split, both on the device.

        The score is that of `supernet.observers.ImageScores`. Must not wait for the device.
        """
