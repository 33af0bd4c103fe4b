"""Whether a subnet of which some genes are decided can still be completed inside a budget; and one way to do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from search.constraint import Budget
from search.gradient.decode import decode
from supernet.cost import Additive, Measure, Peak
from supernet.errors import UserError
from supernet.lookup import Factor
from supernet.space import Space
from supernet.sweep import extremes


def completed(
    budget: Budget, decided: Mapping[int, int], start: Sequence[int], log_probs: Sequence[Tensor]
) -> list[int] | None:
    """Option indices [G] inside the budget that agree with `decided`.

    Args:
        decided: option index by gene position.
        start: option indices [G]: the answer, with the decided genes put in, where that is inside.
        log_probs: one vector [options] per gene: else the answer is the most probable subnet.

    Returns:
        None if none was found; there is none then, but for problems that `decode` cannot solve exactly.
    """
    row = np.array(start, dtype=np.int64)
    row[list(decided)] = list(decided.values())
    if budget.violations(row[None])[0]:
        rest = _rest(budget, decided)
        for name, (low, high) in rest.windows.items():
            least, most = extremes(rest.space, rest.measures[name])
            if least > high or most < low:  # mostly so, and much faster than to find out with `decode`
                return None
        left = [vector if i not in decided else vector[[decided[i]]] for i, vector in enumerate(log_probs)]
        try:
            row[:] = rest.space.encode(decode(rest, left))
        except UserError:
            return None
        row[list(decided)] = list(decided.values())
    return row.tolist()


def _rest(budget: Budget, decided: Mapping[int, int]) -> Budget:
    """The same budget on the space in which every decided gene has that one option."""
    space = budget.space
    genes = [
        replace(gene, options=(gene.options[decided[position]],)) if position in decided else gene
        for position, gene in enumerate(space.genes)
    ]
    rest = Space(space.name, genes, space.units, space.module, space.config, space.lengths)
    return Budget(rest, budget.windows, {name: _restricted(m, rest, decided) for name, m in budget.measures.items()})


def _restricted(measure: Measure, rest: Space, decided: Mapping[int, int]) -> Measure:
    if isinstance(measure, Additive):
        factors = [_sliced(factor, decided) for factor in measure.factors]
        return Additive(rest, factors, measure.offset, measure.unit)
    if isinstance(measure, Peak):
        return Peak(rest, [_sliced(factor, decided) for factor in measure.factors], measure.unit)
    return _Decided(measure, decided)


def _sliced(factor: Factor, decided: Mapping[int, int]) -> Factor:
    """The factor with length 1 along the axes of decided genes."""
    kept = tuple(slice(decided[gene], decided[gene] + 1) if gene in decided else slice(None) for gene in factor.reads)
    return Factor(factor.reads, factor.table[kept])


@dataclass(frozen=True)
class _Decided:
    """A measure on the rows of the restricted space."""

    measure: Measure
    decided: Mapping[int, int]

    def batch(self, genes: NDArray[np.integer]) -> NDArray[Any]:
        """See `supernet.cost.Measure`."""
        genes = np.array(genes)
        genes[:, list(self.decided)] = list(self.decided.values())
        return self.measure.batch(genes)
