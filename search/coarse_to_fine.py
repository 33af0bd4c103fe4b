"""Coarse-to-fine selection (BigNAS, Yu et al., ECCV 2020): a grid of skeletons, then mutations of the best."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from search.algorithm import Trial, at_least_one, best_of, probability
from search.codes import BROOD, Unseen
from search.constraint import Budget
from supernet.space import Arch, Space

STREAM = 4  # keeps its random numbers apart from other algorithms' with the same seed


class CoarseToFine:
    """Maximises top-1 inside the budget.

    First every skeleton inside the budget, in random order: all stages alike, so that one level per knob (resolution,
    depth, width, kernel, ...) says everything. Then the best subnet so far is mutated again and again.

    Args:
        levels: how many levels a knob has at most, spread evenly over its options.
        skeletons: how many skeletons the grid has at most; the knobs with most levels give some up.
        mutation_prob: probability that a gene changes in a mutation. One gene changes at least.
        batch: subnets proposed at once.

    Raises:
        ValueError: if a number is out of range; names it.
    """

    def __init__(
        self,
        budget: Budget,
        seed: int,
        levels: int = 5,
        skeletons: int = 100,
        mutation_prob: float = 0.1,
        batch: int = 20,
    ) -> None:
        at_least_one(levels=levels, skeletons=skeletons, batch=batch)
        probability(mutation_prob=mutation_prob)
        self.budget, self.seed, self.batch, self.mutation_prob = budget, seed, batch, mutation_prob
        self._unseen = Unseen(budget)
        grid = self._unseen.canonical(skeleton_rows(budget.space, levels, skeletons))
        inside = self._unseen.fresh(grid[budget.violations(grid) <= 0])
        self._grid = np.random.default_rng([seed, STREAM]).permutation(inside)
        self._best: list[Trial] = []
        self._asks = 0

    def ask(self, n: int) -> list[Arch]:
        rng = np.random.default_rng([self.seed, STREAM, self._asks])
        self._asks += 1
        rows, self._grid = self._grid[:n], self._grid[n:]
        self._unseen.take(rows)
        if len(rows) < n:
            rows = np.concatenate([rows, self._fine(rng, n - len(rows))])
        return self._unseen.archs(rows)

    def tell(self, trials: Sequence[Trial]) -> None:
        self._best = best_of([*self._best, *trials], 1)

    @property
    def indifferent_below(self) -> float:
        """See `search.algorithm.Indifferent`: the best top-1."""
        return self._best[0].metrics["top1"] if self._best else float("-inf")

    def _fine(self, rng: np.random.Generator, n: int) -> np.ndarray:
        if not self._best:  # the grid has none inside the budget
            rows = self._unseen.random(rng, n)
            self._unseen.take(rows)
            return rows
        parent = np.repeat(self._unseen.of([self._best[0].arch]), BROOD, axis=0)
        return self._unseen.children(n, lambda: self._unseen.mutate(parent, rng, self.mutation_prob), rng)


def skeleton_rows(space: Space, levels: int, most: int) -> np.ndarray:
    """The grid of skeletons as rows of option indices [N, G], N <= `most`.

    Genes with the same key are one knob. A gene with fewer options than its knob has levels repeats some.
    """
    knobs: dict[str, int] = {}
    for gene in space.genes:
        knobs[gene.key] = min(levels, max(knobs.get(gene.key, 1), len(gene.options)))
    while np.prod(list(knobs.values()), dtype=float) > most:
        largest = max(knobs, key=lambda key: knobs[key])
        knobs[largest] -= 1
    rows = []
    for chosen in product(*(np.linspace(0, 1, count) if count > 1 else [1.0] for count in knobs.values())):
        level = dict(zip(knobs, chosen, strict=True))
        rows.append([round(level[gene.key] * (len(gene.options) - 1)) for gene in space.genes])
    return np.array(rows, dtype=np.int64)
