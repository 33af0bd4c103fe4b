"""What a sampler is: a pure function from the step number to the subnets of that step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from supernet.space import Arch

Role = Literal["largest", "random", "smallest"]


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
    """Draws from (seed, step, slot) only: ranks agree without talking, and a resumed run repeats itself."""

    def slots(self, step: int) -> list[Slot]:
        """The passes of training step `step`, in order; a largest slot, if any, comes first."""
