"""From probabilities to one subnet: the most probable one inside the budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search.constraint import Budget
from search.gradient.priced import Problem, improved, nearly
from supernet.cost import Additive
from supernet.errors import UserError
from supernet.lookup import Factor
from supernet.space import Arch, Space

IMPOSSIBLE = -1e3  # the log probability, at least, of an option beside a gene's best
LISTED = 2**14  # spaces with up to this many rows of genes are listed where the knapsack is not exact


def decode(budget: Budget, log_probs: Sequence[Tensor | NDArray[Any]]) -> Arch:
    """The subnet of the largest product of probabilities inside all windows of the budget.

    Only genes that count take part. A deeper subnet has more of them, and must not lose by that: every probability is
    divided by the largest of its gene, so that the best option of a gene costs nothing, whether it counts or not.
    Where the budget does not bind, each gene has its most probable option. Of equals the first is taken.

    Exact for one window on a sum of factors (MACs, parameters, size, latency), with or without upper bounds on maxima
    of factors (memory), where the costs fit into bins, and in spaces of up to 2^14 rows of genes. In larger ones costs
    are rounded up (see `search.gradient.knapsack`) and the answer is improved by single changes; for several windows
    on sums see `search.gradient.priced`. The answer is inside by its real costs always.

    Args:
        log_probs: one vector [options] per gene of the space; any constant may be added to each. An option of
            probability 0 (-inf), or below e^-1000 of the best, counts as e^-1000: it is taken where the budget leaves
            no choice.

    Raises:
        UserError: if no subnet is inside the budget; see `Budget.check_reachable`.
        ValueError: if the vectors do not fit the space, or hold NaN.
    """
    space = budget.space
    likelihood = log_likelihood(space, log_probs)
    favourite = np.array([int(_relative(vector).argmax()) for vector in log_probs])
    row = favourite
    if budget.violations(favourite[None])[0]:
        row = _inside(Problem(budget, likelihood, favourite))
    arch = space.decode(row.tolist())
    assert budget.feasible(arch), f"outside of the budget: {arch.to_json()}"
    return arch


def log_likelihood(space: Space, log_probs: Sequence[Tensor | NDArray[Any]]) -> Additive:
    """The sum over the genes that count of log(p / largest p of the gene): what `decode` maximises, 0 at most.

    Raises:
        ValueError: if the vectors do not fit the space, or hold NaN.
    """
    if len(log_probs) != len(space.genes):
        raise ValueError(f"space {space.name!r} has {len(space.genes)} genes, got {len(log_probs)} vectors")
    factors = []
    for position, (gene, vector) in enumerate(zip(space.genes, log_probs, strict=True)):
        if tuple(vector.shape) != (len(gene.options),):
            raise ValueError(f"{gene.name}: expected {len(gene.options)} log probabilities, got {list(vector.shape)}")
        reads: tuple[int, ...] = (position,)
        table = _relative(vector)
        if np.isnan(table).any():
            raise ValueError(f"{gene.name}: log probabilities are not numbers: {vector.tolist()}")
        while gene.parent is not None:
            above = space.genes[gene.parent]
            counts = np.array([gene.counts_at(option) for option in above.options], dtype=float)
            if not counts.all():  # else it need not be read, and more factors fit into a sweep
                reads, table = (gene.parent, *reads), np.multiply.outer(counts, table)
            gene = above
        factors.append(Factor(reads, table))
    return Additive(space, factors)


def _relative(vector: Tensor | NDArray[Any]) -> NDArray[np.float64]:
    """Log probabilities relative to the largest, in fp64, none below `IMPOSSIBLE`."""
    if isinstance(vector, torch.Tensor):
        vector = vector.detach().double().cpu().numpy()
    most = vector.max()
    return np.maximum(vector.astype(float) - most, IMPOSSIBLE) if most != -math.inf else np.zeros(len(vector))


def _inside(problem: Problem) -> NDArray[np.int64]:
    """The best row inside, or one near it. Raises `UserError` if there is none."""
    budget, space = problem.budget, problem.space
    relaxed = {name: problem.knapsack(name) for name in problem.sums or [""]}
    if any(found is not None and found.row is None and not found.width for found in relaxed.values()):
        raise _infeasible(budget)
    solved = [(name, found) for name, found in relaxed.items() if found is not None and found.row is not None]
    rows = np.array([found.row for _, found in solved]).reshape(-1, len(space.genes))
    # Each leaves the other windows out, so the one of least likelihood comes nearest to the whole problem: it solves
    # it where it is inside the others by chance.
    hardest = int(problem.likelihood.batch(rows).argmin()) if len(rows) else None
    fits = hardest is not None and not budget.violations(rows[[hardest]])[0]
    if hardest is not None and fits and not solved[hardest][1].width:
        return rows[hardest]
    lengths = tuple(len(gene.options) for gene in space.genes)
    if math.prod(lengths) <= LISTED:
        rows = np.indices(lengths).reshape(len(lengths), -1).T
        rows = rows[budget.violations(rows) == 0]
    elif fits and len(problem.sums) == 1:
        rows = improved(problem, rows)
    else:
        rows = nearly(problem, None if hardest is None else solved[hardest][0])
    if not len(rows):
        raise _infeasible(budget)
    return rows[problem.likelihood.batch(rows).argmax()]


def _infeasible(budget: Budget) -> UserError:
    budget.check_reachable()  # knows more to say
    return UserError(f"no subnet of space {budget.space.name!r} found with {budget.describe()}: widen the budget")
