"""What a sampler is: which passes a training step makes. How random subnets are drawn is a path sampler's affair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from supernet.paths.base import Path
from supernet.space import Arch

Role = Literal["largest", "random", "smallest"]
Draw = Callable[[int], list[Path]]  # so many random subnets for this step, at once


@dataclass(frozen=True)
class Slot:
    """One forward and backward pass of a step.

    The largest slot is regularised (dropout, drop-path), learns from labels and teaches the slots after it.
    `weight` multiplies the slot's loss.
    """

    arch: Arch
    role: Role
    weight: float = 1.0


class ArchSampler(Protocol):
    """The structure of a step: a pure function of its number and of the random subnets drawn for it."""

    def slots(self, step: int, draw: Draw) -> list[Slot]:
        """The passes of training step `step`, in order; a largest slot, if any, comes first.

        `draw(n)` gives n random subnets; to be called at most once.
        """


def random_slots(paths: list[Path]) -> list[Slot]:
    """One slot for each drawn subnet, with its importance weight."""
    return [Slot(path.arch, "random", path.weight) for path in paths]
