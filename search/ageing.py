"""Regularised evolution (Real et al., AAAI 2019): the oldest subnet dies, not the worst."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from search.algorithm import Trial, at_least_one, ranking
from search.codes import BROOD, Unseen
from search.constraint import Budget
from supernet.space import Arch

STREAM = 3  # keeps its random numbers apart from other algorithms' with the same seed


class Ageing:
    """Maximises top-1 inside the budget.

    A child is the best of a few randomly drawn living subnets with one gene changed. The newest `population`
    subnets live, so that what was lucky once does not stay for ever.

    Args:
        population: how many live; the first are random.
        sample: how many are drawn to choose a parent from.
        batch: children proposed at once; the original's is 1.

    Raises:
        ValueError: if a number is below 1; names it.
    """

    def __init__(self, budget: Budget, seed: int, population: int = 50, sample: int = 10, batch: int = 10) -> None:
        at_least_one(population=population, sample=sample, batch=batch)
        self.budget, self.seed, self.batch = budget, seed, batch
        self.population, self.sample = population, sample
        self._unseen = Unseen(budget)
        self._living: deque[Trial] = deque(maxlen=population)
        self._asks = 0

    def ask(self, n: int) -> list[Arch]:
        rng = np.random.default_rng([self.seed, STREAM, self._asks])
        self._asks += 1
        if len(self._living) < self.population:
            rows = self._unseen.random(rng, n)
            self._unseen.take(rows)
        else:
            living = self._unseen.of([trial.arch for trial in sorted(self._living, key=ranking)])
            rows = self._unseen.children(n, lambda: self._brood(living, rng), rng)
        return self._unseen.archs(rows)

    def tell(self, trials: Sequence[Trial]) -> None:
        self._living.extend(trials)

    def _brood(self, living: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Mutations of the best of each sample; `living` stand best first, so it has the lowest number."""
        drawn = rng.integers(len(living), size=(BROOD, self.sample)).min(axis=1)
        return self._unseen.mutate(living[drawn], rng, prob=0.0)
