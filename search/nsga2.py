"""NSGA-II (Deb et al., 2002): a front of two or three objectives in one search.

Ranks, crowding and survival are pymoo's; children come from this package's own variation, since a gene is a choice, not
a real number, and has to respect skipped blocks and the budget.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search.algorithm import Trial, at_least_one, share
from search.codes import BROOD, Unseen
from search.constraint import Budget
from supernet.space import Arch

STREAM = 5  # keeps its random numbers apart from other algorithms' with the same seed
MAXIMISED = ("top1",)  # every other metric is better when lower
SCORES = ("top1", "loss")  # what an evaluator adds to the budget's measures


class Nsga2:
    """Approaches the front of several objectives inside the budget.

    Args:
        objectives: two or more of "top1" (maximised), "loss" and the budget's measures (minimised).
        population: subnets per generation and survivors of all generations.
        crossover_prob: probability that a child has two parents; every child is mutated.

    Raises:
        ValueError: if a number is out of range or an objective is unknown; names it.
    """

    def __init__(
        self,
        budget: Budget,
        seed: int,
        objectives: Sequence[str] = ("top1", "macs"),
        population: int = 40,
        crossover_prob: float = 0.9,
    ) -> None:
        at_least_one(population=population)
        share(crossover_prob=crossover_prob)
        known = [*SCORES, *budget.measures]
        if unknown := [name for name in objectives if name not in known]:
            raise ValueError(f"objectives={list(objectives)}: there is no {unknown[0]!r}, only {known}")
        if len(objectives) < 2 or len(set(objectives)) < len(objectives):
            raise ValueError(f"objectives={list(objectives)}: give two or more different ones, such as [top1, macs]")
        self.budget, self.seed, self.batch = budget, seed, population
        self.objectives, self.crossover_prob = tuple(objectives), crossover_prob
        self._unseen = Unseen(budget)
        self._survivors: list[Trial] = []
        self._order: list[tuple[int, float]] = []  # (rank, -crowding) of every survivor: the lower the better
        self._told = 0
        self._asks = 0

    def ask(self, n: int) -> list[Arch]:
        rng = np.random.default_rng([self.seed, STREAM, self._asks])
        self._asks += 1
        if self._told < self.batch:
            rows = self._unseen.random(rng, n)
            self._unseen.take(rows)
        else:
            living = self._unseen.of([trial.arch for trial in self._survivors])
            rows = self._unseen.children(n, lambda: self._brood(living, rng), rng)
        return self._unseen.archs(rows)

    def tell(self, trials: Sequence[Trial]) -> None:
        if not trials:
            return
        self._told += len(trials)
        candidates = [*self._survivors, *trials]
        chosen, self._order = survive(costs(candidates, self.objectives), self.batch)
        self._survivors = [candidates[i] for i in chosen]

    def _brood(self, living: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Children of parents that won a tournament of two, by rank and then by crowding."""
        place = np.empty(len(self._order), dtype=np.int64)
        place[sorted(range(len(self._order)), key=lambda i: self._order[i])] = np.arange(len(self._order))
        pairs = rng.integers(len(living), size=(2, BROOD, 2))
        first, second = (living[pair[np.arange(BROOD), place[pair].argmin(axis=1)]] for pair in pairs)
        both = rng.random((BROOD, 1)) < self.crossover_prob
        return self._unseen.mutate(np.where(both, self._unseen.cross(first, second, rng), first), rng)


def costs(trials: Sequence[Trial], objectives: Sequence[str]) -> np.ndarray:
    """The objectives of trials [N, M], all to be minimised."""
    signs = [-1.0 if name in MAXIMISED else 1.0 for name in objectives]
    return np.array([[sign * t.metrics[name] for name, sign in zip(objectives, signs, strict=True)] for t in trials])


def survive(values: np.ndarray, n: int) -> tuple[list[int], list[tuple[int, float]]]:
    """The `n` best of points [N, M] by rank and crowding: their positions, and (rank, -crowding) of each."""
    from pymoo.core.population import Population
    from pymoo.core.problem import Problem
    from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

    points = Population.new("X", np.arange(len(values))[:, None].astype(float), "F", values)
    problem = Problem(n_var=1, n_obj=values.shape[1])
    kept = RankAndCrowding().do(problem, points, n_survive=min(n, len(values)), random_state=np.random.default_rng(0))
    order = [(int(point.get("rank")), -float(point.get("crowding"))) for point in kept]
    return [int(point.X[0]) for point in kept], order
