"""Ordinary training: the largest network only. With a space of one subnet, training that subnet alone."""

from __future__ import annotations

from supernet.samplers.base import Slot
from supernet.space import Space


class Largest:
    """Every step trains the largest subnet and nothing else."""

    def __init__(self, space: Space, seed: int) -> None:
        self.space, self.seed = space, seed

    def slots(self, step: int) -> list[Slot]:
        return [Slot(self.space.largest(), "largest")]
