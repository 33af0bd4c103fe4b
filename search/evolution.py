"""Evolutionary search: the best subnets so far are mutated and crossed.

The scheme of once-for-all (Cai et al., ICLR 2020) and AttentiveNAS (Wang et al., CVPR 2021), with small generations,
children repaired into the budget rather than drawn until they fit, no subnet scored twice, and a fresh start
where the search has come to rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search.algorithm import Trial, at_least_one, best_of, probability, ranking, share
from search.codes import Unseen
from search.constraint import Budget
from supernet.space import Arch

STREAM = 2  # keeps its random numbers apart from other algorithms' with the same seed


class Evolution:
    """Maximises top-1 inside the budget.

    Args:
        population: subnets per generation. The first is random, with the smallest and the largest
            subnet where they are inside.
        parents: how many of the best subnets since the last start have children.
        mutation_ratio: share of children by mutation; the others are crosses of two parents.
        mutation_prob: probability that a gene changes in a mutation; None: 1 / (number of genes that count). One
            gene changes at least.
        patience: after so many evaluations without a new best, start again from random subnets.

    Raises:
        ValueError: if a number is out of range; names it.
    """

    def __init__(
        self,
        budget: Budget,
        seed: int,
        population: int = 20,
        parents: int = 10,
        mutation_ratio: float = 0.5,
        mutation_prob: float | None = None,
        patience: int = 400,
    ) -> None:
        at_least_one(population=population, parents=parents, patience=patience)
        share(mutation_ratio=mutation_ratio)
        probability(mutation_prob=mutation_prob)
        self.budget, self.seed, self.batch = budget, seed, population
        self.parents, self.patience = parents, patience
        self.mutation_ratio, self.mutation_prob = mutation_ratio, mutation_prob
        self._unseen = Unseen(budget)
        self._elite: list[Trial] = []
        self._told = 0  # since the last start
        self._idle = 0  # since the last new best
        self._asks = 0

    def ask(self, n: int) -> list[Arch]:
        rng = np.random.default_rng([self.seed, STREAM, self._asks])
        self._asks += 1
        if self._told < self.batch:
            rows = self._start(rng, n)
        else:
            parents = self._unseen.of([trial.arch for trial in self._elite])
            ratio, prob = self.mutation_ratio, self.mutation_prob
            rows = self._unseen.children(n, lambda: self._unseen.offspring(parents, rng, ratio, prob), rng)
        return self._unseen.archs(rows)

    def tell(self, trials: Sequence[Trial]) -> None:
        best = ranking(self._elite[0]) if self._elite else None
        for trial in trials:
            rank = ranking(trial)
            better = best is None or rank < best
            best = rank if better else best
            self._idle = 0 if better else self._idle + 1
        self._told += len(trials)
        self._elite = best_of([*self._elite, *trials], self.parents)
        if self._idle >= self.patience:
            self._elite, self._told, self._idle = [], 0, 0

    @property
    def indifferent_below(self) -> float:
        """See `search.algorithm.Indifferent`: the worst parent's top-1, once there are enough."""
        return self._elite[-1].metrics["top1"] if len(self._elite) == self.parents else float("-inf")

    def _start(self, rng: np.random.Generator, n: int) -> np.ndarray:
        space = self.budget.space
        ends = self._unseen.of(list(dict.fromkeys((space.smallest(), space.largest()))))
        ends = self._unseen.fresh(ends[self.budget.violations(ends) <= 0])
        rows = np.concatenate([ends, self._unseen.random(rng, n, besides=ends)])[:n]
        self._unseen.take(rows)
        return rows
