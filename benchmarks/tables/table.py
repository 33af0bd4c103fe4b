"""A space, a budget and the score of every subnet: what the search algorithms are compared on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from search.algorithm import Trial
from search.constraint import Budget, encoded
from supernet.space import Arch, Gene, Space
from supernet.specs import Plan

Score = Callable[[NDArray[np.integer]], NDArray[np.float64]]


@dataclass(frozen=True)
class Table:
    """Scores subnets as an evaluator does (see `search.evaluator`), but many at once.

    Attributes:
        score: top-1 (percent) of rows of option indices [N, G].
        optimum: the best score inside the budget, where it is known.
        rows: subnets that have a score at all; None: every one.
        feasible: how many of those are inside the budget.
    """

    budget: Budget
    score: Score
    optimum: float | None = None
    rows: int | None = None
    feasible: int | None = None

    def __call__(self, archs: Sequence[Arch]) -> list[Trial]:
        genes = encoded(self.budget.space, archs)
        columns = {"top1": self.score(genes)}
        columns.update((name, measure.batch(genes)) for name, measure in self.budget.measures.items())
        values = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [Trial(arch, dict(zip(columns, row, strict=True))) for arch, row in zip(archs, values, strict=True)]


@dataclass(frozen=True)
class Column:
    """A measure that is listed for every row of option indices: the first gene is the most significant digit."""

    values: NDArray[np.float64]
    options: int

    def batch(self, genes: NDArray[np.integer]) -> NDArray[np.float64]:
        """See `supernet.cost.Measure`."""
        return self.values[numbers(genes, self.options)]


def numbers(genes: NDArray[np.integer], options: int) -> NDArray[np.int64]:
    """Rows of option indices [N, G] read as numbers [N] of base `options`."""
    return np.asarray(genes) @ (options ** np.arange(genes.shape[1])[::-1])


def listed(
    name: str,
    genes: int,
    options: int,
    top1: NDArray[np.float64],
    costs: Mapping[str, NDArray[np.float64]],
    bounds: Mapping[str, float],
) -> Table:
    """A table of `options` ** `genes` subnets of which some are not given.

    Those are outside of every budget: a measure "missing" is 1 for them and bounded by 0.

    Args:
        top1: percent, by number (see `numbers`); NaN: not given.
        costs: by name, in the same order; NaN where the subnet is not given.
        bounds: upper bounds by the name of the cost.
    """
    given = ~np.isnan(top1)
    choices = [Gene("operation", i, tuple(range(options))) for i in range(genes)]
    space = Space(name, choices, (), _no_module, {})
    columns = {key: np.where(given, column, 0.0) for key, column in costs.items()}
    measures = {key: Column(column, options) for key, column in {**columns, "missing": (~given).astype(float)}.items()}
    windows = {**{key: (-np.inf, bound) for key, bound in bounds.items()}, "missing": (-np.inf, 0.0)}
    inside = given & np.logical_and.reduce([columns[key] <= bound for key, bound in bounds.items()])
    score = Column(top1, options)
    budget = Budget(space, windows, measures)
    return Table(budget, score.batch, float(top1[inside].max()), int(given.sum()), int(inside.sum()))


def _no_module(plan: Plan) -> nn.Module:
    raise NotImplementedError("the subnets of a table are not built")
