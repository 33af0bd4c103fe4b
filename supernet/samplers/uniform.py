"""Random subnets only; the single-path one-shot rule for num_random=1 (SPOS, Guo et al., ECCV 2020)."""

from __future__ import annotations

from supernet.samplers.base import Draw, Slot, random_slots
from supernet.space import Space


class Uniform:
    """Every step trains `num_random` random subnets on the labels. No teacher."""

    def __init__(self, space: Space, num_random: int = 1) -> None:
        if num_random < 1:
            raise ValueError(f"num_random={num_random}: must be at least 1")
        self.space, self.num_random = space, num_random

    def slots(self, step: int, draw: Draw) -> list[Slot]:
        return random_slots(draw(self.num_random))
