"""The sandwich rule: largest, n random, smallest (Yu and Huang, ICCV 2019; BigNAS, ECCV 2020)."""

from __future__ import annotations

from supernet.samplers.base import Draw, Slot, random_slots
from supernet.space import Space


class Sandwich:
    """Every step trains the largest subnet, `num_random` random ones, and the smallest last."""

    def __init__(self, space: Space, num_random: int = 2) -> None:
        if num_random < 0:
            raise ValueError(f"num_random={num_random}: must not be negative")
        self.space, self.num_random = space, num_random

    def slots(self, step: int, draw: Draw) -> list[Slot]:
        return [
            Slot(self.space.largest(), "largest"),
            *random_slots(draw(self.num_random)),
            Slot(self.space.smallest(), "smallest"),
        ]
