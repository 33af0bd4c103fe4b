"""Uniform sampling, the single-path one-shot rule for num_random=1 (SPOS, Guo et al., ECCV 2020)."""

from __future__ import annotations

import numpy as np

from supernet.samplers.base import Slot
from supernet.space import Space


class Uniform:
    """Every step trains `num_random` uniform subnets on the labels. No teacher."""

    def __init__(self, space: Space, seed: int, num_random: int = 1) -> None:
        if num_random < 1:
            raise ValueError(f"num_random={num_random}: must be at least 1")
        self.space, self.seed, self.num_random = space, seed, num_random

    def slots(self, step: int) -> list[Slot]:
        rngs = (np.random.default_rng((self.seed, step, slot)) for slot in range(self.num_random))
        return [Slot(self.space.sample(rng), "random") for rng in rngs]
