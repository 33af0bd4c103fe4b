"""Evolutionary search: the best subnets so far are mutated and crossed.

The scheme of once-for-all (Cai et al., ICLR 2020) and AttentiveNAS (Wang et al., CVPR 2021), with bounded
loops, children repaired into the budget rather than drawn until they fit, and no subnet scored twice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from search.algorithm import Trial, best_of, draw_unseen
from search.constraint import Budget
from supernet.space import Arch

if TYPE_CHECKING:
    import numpy as np

STREAM = 2  # keeps its random numbers apart from other algorithms' with the same seed
TRIES = 20  # attempts at one child before a random subnet takes its place


class Evolution:
    """Maximises top-1 inside the budget.

    Args:
        population: subnets per generation. The first is random, with the smallest and the largest
            subnet where they are inside.
        parents: how many of the best subnets of all generations have children.
        mutation_ratio: share of children by mutation; the others are crosses of two parents.
        mutation_prob: probability that a gene changes in a mutation.

    Raises:
        ValueError: if a number is out of range; names it.
    """

    def __init__(
        self,
        budget: Budget,
        seed: int,
        population: int = 20,
        parents: int = 5,
        mutation_ratio: float = 0.5,
        mutation_prob: float = 0.1,
    ) -> None:
        for name, count in (("population", population), ("parents", parents)):
            if count < 1:
                raise ValueError(f"{name}={count}: must be at least 1")
        if not 0 <= mutation_ratio <= 1:
            raise ValueError(f"mutation_ratio={mutation_ratio}: must be from 0 to 1")
        if not 0 < mutation_prob <= 1:
            raise ValueError(f"mutation_prob={mutation_prob}: must be above 0 and at most 1")
        self.budget, self.seed = budget, seed
        self.population, self.parents = population, parents
        self.mutation_ratio, self.mutation_prob = mutation_ratio, mutation_prob
        self._asked: dict[Arch, None] = {}
        self._elite: list[Trial] = []
        self._told = 0
        self._asks = 0

    @property
    def batch(self) -> int:
        return self.population

    def ask(self, n: int) -> list[Arch]:
        import numpy as np

        rng = np.random.default_rng([self.seed, STREAM, self._asks])
        archs = self._start(rng, n) if self._told < self.population else self._children(rng, n)
        self._asks += 1
        self._asked.update(dict.fromkeys(archs))
        return archs

    def tell(self, trials: Sequence[Trial]) -> None:
        self._told += len(trials)
        self._elite = best_of([*self._elite, *trials], self.parents)

    def _start(self, rng: np.random.Generator, n: int) -> list[Arch]:
        ends = dict.fromkeys((self.budget.space.smallest(), self.budget.space.largest()))
        first = [arch for arch in ends if arch not in self._asked and self.budget.feasible(arch)]
        seen = self._asked.keys() | set(first)
        return [*first, *draw_unseen(self.budget, rng, n - len(first), seen)][:n]

    def _children(self, rng: np.random.Generator, n: int) -> list[Arch]:
        """Distinct children; a random subnet where a child cannot be had, so that the search never stalls."""
        seen = dict(self._asked)
        children: list[Arch] = []
        while len(children) < n:
            child = self._child(rng, seen) or next(iter(draw_unseen(self.budget, rng, 1, seen)), None)
            if child is None:
                break  # nothing is left inside the budget
            seen[child] = None
            children.append(child)
        return children

    def _child(self, rng: np.random.Generator, seen: Collection[Arch]) -> Arch | None:
        space = self.budget.space
        for _ in range(TRIES):
            parent = self._parent(rng)
            if rng.random() < self.mutation_ratio or len(self._elite) == 1:
                child = space.mutate(parent, rng, self.mutation_prob)
            else:
                child = space.crossover(parent, self._parent(rng), rng)
            if child in seen:
                continue
            repaired = self.budget.repair(child, rng)
            if repaired is not None and repaired not in seen:
                return repaired
        return None

    def _parent(self, rng: np.random.Generator) -> Arch:
        return self._elite[int(rng.integers(len(self._elite)))].arch
