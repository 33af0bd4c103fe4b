"""The sandwich rule: largest, n random, smallest (Yu and Huang, ICCV 2019; BigNAS, ECCV 2020)."""

from __future__ import annotations

import numpy as np

from supernet.samplers.base import Slot
from supernet.space import Space


class Sandwich:
    """Every step trains the largest subnet, `num_random` uniform ones, and the smallest last."""

    def __init__(self, space: Space, seed: int, num_random: int = 2) -> None:
        if num_random < 0:
            raise ValueError(f"num_random={num_random}: must not be negative")
        self.space, self.seed, self.num_random = space, seed, num_random

    def slots(self, step: int) -> list[Slot]:
        rngs = (np.random.default_rng((self.seed, step, slot)) for slot in range(self.num_random))
        return [
            Slot(self.space.largest(), "largest"),
            *(Slot(self.space.sample(rng), "random") for rng in rngs),
            Slot(self.space.smallest(), "smallest"),
        ]
