"""A sum or maximum of factors taken one factor at a time, with few genes in view: the basis of exact answers.

Layers stand in a chain: what one reads is mostly its own, and little (a width, the resolution) is shared with later
ones. A sweep along the chain only ever looks at the combinations of the genes that some later factor still reads,
which are tens where the space has 10^19 subnets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from supernet.cost import Additive, Measure, Peak
from supernet.lookup import Factor
from supernet.space import Space

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDE = 2**15  # combinations of the genes in view; spaces in `configs/space` need at most 675
LISTED = 2**14  # spaces with up to this many rows of genes are listed instead
PROBES = 8192  # random subnets that stand for the range of a measure of which nothing is known


@dataclass(frozen=True)
class Step:
    """One factor of a sweep.

    Attributes:
        known: the genes in view before it; `new`: those that it reads first; `kept`: those in view after it.
        table: its values with one axis for each known and then each new gene; length 1 where it does not read one.
        lengths: the numbers of options, of the known and of the new genes.
    """

    known: tuple[int, ...]
    new: tuple[int, ...]
    kept: tuple[int, ...]
    table: NDArray[Any]
    lengths: tuple[int, ...]

    @property
    def combinations(self) -> int:
        return math.prod(self.lengths)


def sweep(space: Space, factors: Sequence[Factor]) -> list[Step] | None:
    """The steps that need the smaller tables, in the given order or a greedy one; None: too many genes in view."""
    lengths = [len(gene.options) for gene in space.genes]
    sweeps = (_steps(order, lengths) for order in (list(factors), _greedy(factors, lengths)))
    best = min(sweeps, key=lambda steps: max((step.combinations for step in steps), default=1))
    return best if all(step.combinations <= WIDE for step in best) else None


@lru_cache(maxsize=128)
def _extremes(measure: Additive | Peak) -> tuple[float, float] | None:
    """The lowest and the highest value over the whole space, exactly; None where the sweep is too wide."""
    import numpy as np

    steps = sweep(measure.space, measure.factors)
    if steps is None:
        return None
    combine = np.add if isinstance(measure, Additive) else np.maximum
    ends = []
    for pick in (np.minimum, np.maximum):
        best: NDArray[Any] = np.zeros((), dtype=np.int64)
        for i, step in enumerate(steps):
            before = best.reshape(best.shape + (1,) * len(step.new))
            values = combine(before, step.table) if i else step.table
            values = np.broadcast_to(values, step.lengths)
            genes = step.known + step.new
            gone = tuple(axis for axis, gene in enumerate(genes) if gene not in step.kept)
            best = pick.reduce(values, axis=gone)
        ends.append(measure.of_total(best).item())
    return ends[0], ends[1]


def extremes(space: Space, measure: Measure) -> tuple[float, float]:
    """The lowest and the highest value of a measure over all subnets of the space.

    Exact for sums and maxima of factors of a few genes each, and in spaces of up to 2^14 rows of genes. Of other
    measures: what the smallest, the largest and 8,192 random subnets have.
    """
    import numpy as np

    known = _extremes(measure) if isinstance(measure, Additive | Peak) else None
    if known is not None:
        return known
    limits = np.array([len(gene.options) for gene in space.genes])
    if math.prod(limits.tolist()) <= LISTED:
        values = measure.batch(np.indices(tuple(limits.tolist())).reshape(len(limits), -1).T)
    else:
        rows = np.random.default_rng(0).integers(0, limits, size=(PROBES, len(limits)))
        values = measure.batch(np.concatenate([np.zeros_like(limits)[None], limits[None] - 1, rows]))
    return values.min().item(), values.max().item()


def _steps(factors: Sequence[Factor], lengths: Sequence[int]) -> list[Step]:
    """The steps of a sweep in this order; the genes of each are in ascending order."""
    last = {gene: i for i, factor in enumerate(factors) for gene in factor.reads}
    known: tuple[int, ...] = ()
    steps = []
    for i, factor in enumerate(factors):
        new = tuple(sorted(set(factor.reads) - set(known)))
        genes = known + new
        kept = tuple(gene for gene in genes if last[gene] > i)
        steps.append(Step(known, new, kept, factor.over(genes), tuple(lengths[gene] for gene in genes)))
        known = kept
    return steps


def _greedy(factors: Sequence[Factor], lengths: Sequence[int]) -> list[Factor]:
    """Next comes whatever leaves the fewest combinations in view; among equals the first."""
    left, order, known = list(factors), [], frozenset[int]()
    while left:

        def after(i: int, known: frozenset[int] = known) -> frozenset[int]:
            rest = {gene for j, other in enumerate(left) if j != i for gene in other.reads}
            return (known | set(left[i].reads)) & rest

        best = min(range(len(left)), key=lambda i: math.prod(lengths[gene] for gene in after(i)))
        known = after(best)
        order.append(left.pop(best))
    return order
