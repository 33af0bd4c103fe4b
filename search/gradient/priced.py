"""The most probable subnet inside several windows, nearly: prices on costs, then an evolution.

A knapsack holds one window. The others are priced: what their costs exceed is taken off the score, at prices that
follow the excess (Lagrangian relaxation; step sizes of Polyak, 1969). What comes out is repaired into the budget, and
is where an evolution of the likelihood starts from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from search.algorithm import Trial
from search.codes import Codes
from search.constraint import Budget
from search.evolution import Evolution
from search.gradient.knapsack import FORBIDDEN, Found, best_row
from search.repair import descended, repaired
from supernet.cost import Additive, Peak
from supernet.errors import UserError
from supernet.lookup import Factor
from supernet.space import Space

Rows = NDArray[np.int64]  # [N, G]

PRICES = 24  # vectors of prices tried
EFFORT = 1 / 8  # of a knapsack under prices
POPULATION = 32  # of the evolution
GENERATIONS = 40


@dataclass(frozen=True)
class Problem:
    """Of all rows inside `budget`, the one of the largest `likelihood`.

    Attributes:
        favourite: the best row [G] without a budget; its options stand for genes that do not count.
    """

    budget: Budget
    likelihood: Additive
    favourite: NDArray[np.int64]

    @property
    def space(self) -> Space:
        return self.budget.space

    @cached_property
    def sums(self) -> dict[str, Additive]:
        """The bounded measures that are sums of factors."""
        measures = {name: self.budget.measures[name] for name in self.budget.windows}
        return {name: measure for name, measure in measures.items() if isinstance(measure, Additive)}

    @cached_property
    def scores(self) -> list[Factor]:
        """The likelihood; a maximum of factors is below its bound where each factor is, so others are excluded."""
        factors = list(self.likelihood.factors)
        for name, (_, high) in self.budget.windows.items():
            measure = self.budget.measures[name]
            if isinstance(measure, Peak) and math.isfinite(high):
                for factor in measure.factors:
                    above = measure.of_total(factor.table) > high
                    factors.append(Factor(factor.reads, np.where(above, FORBIDDEN, 0.0)))
        return factors

    def knapsack(self, name: str, priced: Sequence[Factor] = (), effort: float = 1.0) -> Found | None:
        """The best row inside the window of the sum `name` ("": of none), with further factors in the score."""
        scores = [*self.scores, *priced]
        if not name:
            return best_row(self.space, scores, None, (-math.inf, math.inf))
        return best_row(self.space, scores, self.sums[name], self.budget.windows[name], effort)

    def loss(self, rows: NDArray[np.integer]) -> NDArray[np.float64]:
        return -self.likelihood.batch(rows)


def improved(problem: Problem, rows: Rows) -> Rows:
    """Rows inside the budget [N, G] after single changes that raise the likelihood, as long as there are any."""
    counting = Codes(problem.budget).counting(rows)
    return descended(
        problem.space, problem.budget.violations, problem.loss, np.where(counting, rows, problem.favourite)
    )


def nearly(problem: Problem, hardest: str | None) -> Rows:
    """Rows inside the budget [N, G], among them one near the best; none if none was found.

    Args:
        hardest: the sum whose window the knapsack holds; None: no knapsack, the evolution starts from random subnets.
    """
    rows = _repaired(problem, problem.favourite[None]) if hardest is None else _priced(problem, hardest)
    try:
        rows = np.concatenate([rows, Codes(problem.budget).of(problem.budget.sample(np.random.default_rng(0), 8))])
    except UserError:  # so few subnets are inside that drawing does not find them
        if not len(rows):
            return rows
    return improved(problem, np.concatenate([_evolved(problem, rows), rows]))


def _priced(problem: Problem, hardest: str) -> Rows:
    """Rows inside the budget that prices on all sums but `hardest` lead to."""
    others = {name: problem.budget.windows[name] for name in problem.sums if name != hardest}
    prices = dict.fromkeys(others, 0.0)  # of one bound's worth: positive at upper ends, negative at lower ones
    rows = np.zeros((0, len(problem.space.genes)), dtype=np.int64)
    for _ in range(PRICES):
        factors = [
            Factor(factor.reads, -prices[name] / _bound(others[name], prices[name]) * factor.table)
            for name in others
            for factor in problem.sums[name].factors
            if prices[name]
        ]
        found = problem.knapsack(hardest, factors, EFFORT)
        if found is None or found.row is None:
            break
        rows = np.concatenate([rows, _repaired(problem, found.row[None])])
        excess = {name: _excess(problem, name, prices[name], found.row) for name in others}
        norm = sum(value**2 for value in excess.values())
        if not norm:
            break
        upper = -float(problem.loss(found.row[None])[0]) - sum(prices[name] * excess[name] for name in others)
        lower = -float(problem.loss(rows).min()) if len(rows) else upper - 1
        for name in others:
            moved = prices[name] + max(upper - lower, 1e-9) * excess[name] / norm
            prices[name] = moved if moved * prices[name] >= 0 else 0.0
    return rows


def _bound(window: tuple[float, float], price: float) -> float:
    """The end of a window that a price is about."""
    return max(abs(window[1] if price > 0 else window[0]), 1e-9)


def _excess(problem: Problem, name: str, price: float, row: NDArray[np.int64]) -> float:
    """The cost of a row above the end of its window, as a share of it; without a price, of the end that it leaves."""
    low, high = problem.budget.windows[name]
    cost = float(problem.sums[name].batch(row[None])[0])
    if price > 0 or (not price and cost > high):
        return (cost - high) / _bound((low, high), 1.0)
    return (cost - low) / _bound((low, high), -1.0) if price < 0 or cost < low else 0.0


def _repaired(problem: Problem, rows: Rows) -> Rows:
    """Rows [N, G] brought inside by few changes, then improved; those that cannot be are left out."""
    rows, inside = repaired(problem.space, problem.budget.violations, rows, np.random.default_rng(0))
    return improved(problem, rows[inside])


def _evolved(problem: Problem, rows: Rows) -> Rows:
    """The best subnets [N, G] of an evolution that starts from rows inside the budget."""
    codes = Codes(problem.budget)
    evolution = Evolution(problem.budget, seed=0, population=POPULATION, parents=POPULATION // 2, patience=10**9)
    best = rows
    for _ in range(GENERATIONS):
        archs = codes.archs(rows)
        top = problem.likelihood.batch(rows)
        evolution.tell([Trial(arch, {"top1": value}) for arch, value in zip(archs, top.tolist(), strict=True)])
        best = np.concatenate([best, rows])
        best = best[np.argsort(problem.loss(best), kind="stable")[:POPULATION]]
        rows = codes.of(evolution.ask(POPULATION))
        if not len(rows):
            break
    return best
