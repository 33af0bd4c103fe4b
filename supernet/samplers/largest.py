"""Ordinary training: the largest network only. With a space of one subnet, training that subnet alone."""

from __future__ import annotations

from supernet.samplers.base import Draw, Slot
from supernet.space import Space


class Largest:
    """Every step trains the largest subnet and nothing else."""

    def __init__(self, space: Space) -> None:
        self.space = space

    def slots(self, step: int, draw: Draw) -> list[Slot]:
        return [Slot(self.space.largest(), "largest")]
