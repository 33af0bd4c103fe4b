"""Random search: the baseline that every other algorithm has to beat."""

from __future__ import annotations

from collections.abc import Sequence

from search.algorithm import Trial, draw_unseen
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
        if batch < 1:
            raise ValueError(f"batch={batch}: must be at least 1")
        self.budget, self.seed, self.batch = budget, seed, batch
        self._asked: dict[Arch, None] = {}
        self._asks = 0

    def ask(self, n: int) -> list[Arch]:
        import numpy as np

        rng = np.random.default_rng([self.seed, STREAM, self._asks])
        archs = draw_unseen(self.budget, rng, n, self._asked)
        self._asks += 1
        self._asked.update(dict.fromkeys(archs))
        return archs

    def tell(self, trials: Sequence[Trial]) -> None:
        """Nothing to learn."""
