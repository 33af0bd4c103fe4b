"""Subnets as rows of option indices: varied, repaired and told apart many at a time.

What the algorithms share. A row holds one option index per gene (see `Space.encode`); in a canonical row the genes
that do not count are 0, so equal rows are equal subnets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from search.constraint import ENUMERABLE, Budget
from search.repair import repaired
from supernet.codec import canonical, counting, decoded, encoded
from supernet.errors import UserError
from supernet.space import Arch, Space

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.int64]  # [N, G]

CHUNK = 256  # random subnets drawn at once
ROUNDS = 20  # chunks drawn at most in search of unseen subnets
BROOD = 64  # children bred at once


class Codes:
    """Random variation of the subnets of one space, inside one budget."""

    def __init__(self, budget: Budget) -> None:
        self.budget, self.space = budget, budget.space
        self.limits = np.array([len(gene.options) for gene in self.space.genes])

    def of(self, archs: Sequence[Arch]) -> Rows:
        """The canonical rows [N, G] of subnets."""
        return encoded(self.space, archs)

    def archs(self, rows: Rows) -> list[Arch]:
        return decoded(self.space, rows)

    def counting(self, rows: Rows) -> NDArray[np.bool_]:
        """Which genes count [N, G]."""
        return counting(self.space, rows)

    def canonical(self, rows: Rows) -> Rows:
        return canonical(self.space, rows)

    def draw(self, rng: np.random.Generator, n: int) -> Rows:
        """Random rows [n, G], every gene uniform, whether inside the budget or not."""
        return rng.integers(self.limits, size=(n, len(self.limits)))

    def mutate(self, rows: Rows, rng: np.random.Generator, prob: float | None = None) -> Rows:
        """Every gene that counts changes with probability `prob` to a different option, one gene at least.

        Genes that do not count are drawn anew, for the case that the mutation makes them count.

        Args:
            prob: None: 1 / (the number of genes that count and have a choice).
        """
        counts = self.counting(rows)
        free = counts & (self.limits > 1)
        odds = 1 / np.maximum(free.sum(axis=1, keepdims=True), 1) if prob is None else prob
        luck = np.where(free, rng.random(rows.shape), np.inf)
        changes = free & ((luck < odds) | (luck == luck.min(axis=1, keepdims=True)))
        shift = 1 + (rng.random(rows.shape) * (self.limits - 1)).astype(np.int64)
        fresh = np.where(counts, rows, self.draw(rng, len(rows)))
        return self.canonical(np.where(changes, (rows + shift) % self.limits, fresh))

    def cross(self, first: Rows, second: Rows, rng: np.random.Generator) -> Rows:
        """Every gene from either parent with probability 1/2; one that counts in one parent only, from that one."""
        a, b = self.counting(first), self.counting(second)
        from_first = np.where(a == b, rng.random(first.shape) < 0.5, a)
        return self.canonical(np.where(from_first, first, second))

    def offspring(self, parents: Rows, rng: np.random.Generator, ratio: float, prob: float | None) -> Rows:
        """`BROOD` children of uniformly drawn parents: a share `ratio` by mutation, the others by crossing."""
        first, second = (parents[rng.integers(len(parents), size=BROOD)] for _ in range(2))
        mutants, crosses = self.mutate(first, rng, prob), self.cross(first, second, rng)
        return np.where(rng.random((BROOD, 1)) < ratio, mutants, crosses)

    def repair(self, rows: Rows, rng: np.random.Generator) -> Rows:
        """Bring rows into the budget by few changes, see `search.repair`; those that cannot be are left out."""
        budget = self.budget
        moved, inside = repaired(self.space, budget.violations, self.canonical(rows), rng, budget.violations_around)
        return self.canonical(moved[inside])


class Unseen(Codes):
    """The subnets inside a budget that were not handed out yet."""

    def __init__(self, budget: Budget) -> None:
        super().__init__(budget)
        self._taken: set[bytes] = set()

    def children(self, n: int, breed: Callable[[], Rows], rng: np.random.Generator) -> Rows:
        """Hand out `n` distinct subnets that `breed` makes, chunk after chunk, repaired into the budget.

        Random ones take the place of those that cannot be had after `ROUNDS` chunks, so that a search never
        stalls; fewer than `n` only where nothing is left. More of them begin the same.
        """
        known: set[bytes] = set()
        found = [self._none]
        for _ in range(ROUNDS):
            if len(known) >= n:
                break
            found.append(self._new(self.repair(breed(), rng), known))
        if len(known) < n:
            found.append(self._random(rng, n - len(known), known))
        rows = np.concatenate(found)[:n]
        self.take(rows)
        return rows

    def take(self, rows: Rows) -> None:
        """Mark canonical rows as handed out."""
        self._taken.update(_keys(rows))

    def fresh(self, rows: Rows) -> Rows:
        """Those canonical rows that were not handed out, each once, in order."""
        return self._new(rows, set())

    def random(self, rng: np.random.Generator, n: int, besides: Rows | None = None) -> Rows:
        """`n` distinct random subnets that were not handed out and are not in `besides`; fewer if no more are found.

        In a space of at most `ENUMERABLE` subnets, uniform over all that are left. In a larger one they are drawn,
        which ends with a chunk that brings nothing new, or after `ROUNDS` chunks. More of them begin the same.
        """
        return self._random(rng, n, set() if besides is None else set(_keys(besides)))

    def _random(self, rng: np.random.Generator, n: int, known: set[bytes]) -> Rows:
        """`random`, besides the rows with keys in `known`; the keys of those found are added to it."""
        if self.space.size() <= ENUMERABLE:
            return self._new(rng.permutation(self.fresh(self._inside)), known)[: max(n, 0)]
        found, start = [self._none], len(known)
        for _ in range(ROUNDS if n > 0 else 0):
            try:
                drawn = self.budget.sample_rows(rng, CHUNK)
            except UserError:  # so few subnets are inside that drawing does not find them
                break
            found.append(self._new(self.canonical(drawn), known))
            if len(known) >= start + n or not len(found[-1]):
                break
        return np.concatenate(found)[: max(n, 0)]

    def _new(self, rows: Rows, known: set[bytes]) -> Rows:
        """Those canonical rows that were not handed out and whose keys are not in `known`, each once; adds them."""
        keep = []
        for i, key in enumerate(_keys(rows)):
            if key not in self._taken and key not in known:
                known.add(key)
                keep.append(i)
        return rows[keep]

    @cached_property
    def _inside(self) -> Rows:
        """Every subnet of a small space that is inside the budget."""
        rows = _all_rows(self.space)
        return rows[self.budget.violations(rows) <= 0]

    @cached_property
    def _none(self) -> Rows:
        return np.zeros((0, len(self.limits)), dtype=np.int64)


def _keys(rows: Rows) -> list[bytes]:
    return [row.tobytes() for row in rows.astype(np.uint16)]


@lru_cache(maxsize=8)
def _conditions(space: Space) -> dict[int, tuple[int, NDArray[np.bool_]]]:
    """By gene, those that have a parent: it, and with which of its options [options of the parent] the gene counts."""
    found = {}
    for i, gene in enumerate(space.genes):
        if gene.parent is not None:
            options = space.genes[gene.parent].options
            found[i] = (gene.parent, np.array([gene.counts_at(option) for option in options]))
    return found


@lru_cache(maxsize=8)
def _all_rows(space: Space) -> Rows:
    """Every subnet of a small space as a canonical row, in the order of the codes."""
    conditions = _conditions(space)
    rows = np.zeros((1, 0), dtype=np.int64)
    counting: list[NDArray[np.bool_]] = []
    for i, gene in enumerate(space.genes):
        counts = np.ones(len(rows), dtype=bool)
        if i in conditions:
            parent, fits = conditions[i]
            counts = counting[parent] & fits[rows[:, parent]]
        repeats = np.where(counts, len(gene.options), 1)
        starts = np.repeat(np.cumsum(repeats) - repeats, repeats)
        column = np.arange(repeats.sum()) - starts
        rows = np.concatenate([np.repeat(rows, repeats, axis=0), column[:, None]], axis=1)
        counting = [np.repeat(mask, repeats) for mask in [*counting, counts]]
    return rows
