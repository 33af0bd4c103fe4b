"""Uniform path sampling: every gene uniform (SPOS, Guo et al., ECCV 2020)."""

from __future__ import annotations

import numpy as np

from supernet.horizon import Horizon
from supernet.paths.base import LossOf, Path
from supernet.space import Space


class Uniform:
    """Every option of a gene is as likely as any other."""

    def __init__(self, space: Space, seed: int, horizon: Horizon) -> None:
        self.space, self.seed = space, seed

    def draw(self, step: int, count: int, loss_of: LossOf) -> list[Path]:
        rngs = (np.random.default_rng((self.seed, step, slot)) for slot in range(count))
        return [Path(self.space.sample(rng)) for rng in rngs]
