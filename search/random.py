"""Random search: the baseline that every other algorithm has to beat."""

from __future__ import annotations

from collections.abc import Sequence

from search.algorithm import Trial, at_least_one
from search.constraint import Budget
from supernet.space import Arch

STREAM = 1  # keeps its random numbers apart from other algorithms' with the same seed


class Random:
    """Distinct random subnets inside the budget.

    Args:
        batch: how many to propose at once.

    Raises:
        ValueError: if `batch` is below 1.
    """

    def __init__(self, budget: Budget, seed: int, batch: int = 50) -> None:
        from search.codes import Unseen

        at_least_one(batch=batch)
        self.budget, self.seed, self.batch = budget, seed, batch
        self._unseen = Unseen(budget)
        self._asks = 0

    def ask(self, n: int) -> list[Arch]:
        import numpy as np

        rng = np.random.default_rng([self.seed, STREAM, self._asks])
        self._asks += 1
        rows = self._unseen.random(rng, n)
        self._unseen.take(rows)
        return self._unseen.archs(rows)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Nothing to learn."""

    @property
    def indifferent_below(self) -> float:
        """See `search.algorithm.Indifferent`: it looks at no score."""
        return float("inf")
