"""Gene rows drawn uniformly from those whose cost lies in a window: dynamic programming over an additive cost.

A sweep (see `supernet.sweep`) from the last factor to the first counts, for every combination of the genes in view
and every cost so far, the ways to complete it inside the window. Walking it from first to last, each step draws its
new genes in proportion to these numbers. Costs are rounded to bins for this, and the window widened by what the
rounding can amount to: every row inside can be drawn, all with equal probability, together with some that the exact
costs then reject.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from supernet.cost import Additive
from supernet.sweep import Step, sweep

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ADDITIONS = 2**26  # of the counting sweep; about 0.1 s
ENTRIES = 2**22  # counts that are kept: 32 MB
LOOSE = 0.04  # share of the window by which the rounding may widen it at either end, where the limits above allow it
WEIGHTS = 2**20  # weights that are computed at once while drawing


@dataclass(frozen=True)
class _Binned:
    """A step with its costs in bins: [combinations of known genes, of new genes]; and where each leads."""

    step: Step
    bins: NDArray[np.int64]
    after: NDArray[np.int64]  # the index of the combination in view after the step

    @cached_property
    def most(self) -> int:
        return int(self.bins.max())


class WindowTable:
    """The counts for one measure and window. `rows`: the gene rows that can be drawn; `share`: theirs of all."""

    def __init__(self, measure: Additive, steps: list[Step], low: float, high: float) -> None:
        import numpy as np

        self.limits = np.array([len(gene.options) for gene in measure.space.genes])
        low, high = low * measure.unit - measure.offset, high * measure.unit - measure.offset
        least = [float(step.table.min()) for step in steps]
        most = sum(float(step.table.max()) for step in steps)
        slack = 1e-12 * (abs(most) + sum(map(abs, least)))  # of floating-point sums
        low, high = max(low - slack, sum(least)), min(high + slack, most)
        width = _bin_width(steps, least, low, high)
        self.steps: list[_Binned] = []
        rounding = [0.0, 0.0]  # the lowest and the highest sum of what rounding leaves over
        for step, base in zip(steps, least, strict=True):
            over = step.table - base
            bins = np.rint(over / width).astype(np.int64)
            left = over - bins * width
            rounding[0] += float(left.min())
            rounding[1] += float(left.max())
            self.steps.append(_binned(step, bins))
        first = math.ceil((low - sum(least) - rounding[1]) / width - 1e-9)
        last = math.floor((high - sum(least) - rounding[0]) / width + 1e-9)
        self.counts, self.starts = _count(self.steps, first, last) if low <= high else ([], [])
        self.rows = float(self.counts[0][0].sum()) if self.counts else 0.0
        read = {gene for step in steps for gene in step.new}
        self.share = self.rows / math.prod(float(self.limits[gene]) for gene in read)

    def draw(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        """Gene rows [n, G], uniform over all rows inside the window and what its rounding lets in.

        Raises:
            ValueError: if there are none.
        """
        import numpy as np

        if not self.rows:
            raise ValueError("no row of genes is inside the window")
        widest = max(binned.bins.shape[1] for binned in self.steps)
        size = max(64, WEIGHTS // widest)
        parts = [self._draw(rng, min(size, n - start)) for start in range(0, n, size)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.limits)), dtype=np.int64)

    def _draw(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        import numpy as np

        genes = rng.integers(0, self.limits, size=(n, len(self.limits)))
        known = np.zeros(n, dtype=np.int64)
        spent = np.zeros(n, dtype=np.int64)
        for binned, counts, start in zip(self.steps, self.counts[1:], self.starts[1:], strict=True):
            # Column 0 and the last one stand for all costs from which the window is out of reach.
            column = np.clip(spent[:, None] + (binned.bins[known] - start + 1), 0, counts.shape[1] - 1)
            sums = counts[binned.after[known], column].cumsum(axis=1)
            chosen = (sums <= (rng.random(n) * sums[:, -1])[:, None]).sum(axis=1)
            step = binned.step
            if step.new:
                lengths = step.lengths[len(step.known) :]
                genes[:, list(step.new)] = np.stack(np.unravel_index(chosen, lengths), axis=1)
            spent += binned.bins[known, chosen]
            known = binned.after[known, chosen]
        return genes


@lru_cache(maxsize=8)
def window_table(measure: Additive, low: float, high: float) -> WindowTable | None:
    """The table of a window, made once; None where the factors share too many genes for it."""
    steps = sweep(measure.space, measure.factors)
    return None if not steps else WindowTable(measure, steps, low, high)


def _binned(step: Step, bins: NDArray[np.int64]) -> _Binned:
    import numpy as np

    known = math.prod(step.lengths[: len(step.known)])
    genes = step.known + step.new
    after = np.zeros(step.lengths, dtype=np.int64)
    for gene in step.kept:
        axis = genes.index(gene)
        length = step.lengths[axis]
        code = np.arange(length).reshape([length if i == axis else 1 for i in range(len(genes))])
        after = after * length + code
    full = np.ascontiguousarray(np.broadcast_to(bins, step.lengths))
    return _Binned(step, full.reshape(known, -1), after.reshape(known, -1))


def _bin_width(steps: list[Step], least: list[float], low: float, high: float) -> float:
    """The widest bins that round well enough, or, where these are too many to count in, the finest that are not.

    Where the common divisor of all costs is as good as that, it is the width, and nothing is rounded.
    """
    import numpy as np

    spans = np.array([float(step.table.max()) - base for step, base in zip(steps, least, strict=True)])
    total, origin = float(spans.sum()), sum(least)
    so_far = np.concatenate([[0.0], spans.cumsum()])
    # Costs so far from which the window can still be reached, before each step and at the end.
    first = np.maximum(low - origin - (total - so_far), 0)
    reach = np.maximum(np.minimum(so_far, high - origin) - first, 0)
    work = np.array([step.combinations for step in steps], dtype=float)
    states = np.array([math.prod(step.lengths[: len(step.known)]) for step in steps], dtype=float)
    edge = float(len(steps))  # bins by which the rounding can widen everything
    divisor = _divisor(steps)
    fitting = max(
        float(work @ reach[:-1]) / max(ADDITIONS - edge * work.sum(), ADDITIONS / 2),
        float(states @ reach[:-1]) / max(ENTRIES - edge * states.sum(), ENTRIES / 2),
    )
    wanted = 2 * LOOSE * max(high - low, 0) / len(steps)
    if divisor and divisor >= fitting and divisor >= wanted / 16:
        return divisor
    return max(fitting, wanted) or max(total, 1.0)


def _divisor(steps: list[Step]) -> float:
    """The greatest common divisor of what the factors add to their least; 0 where they are not whole numbers."""
    import numpy as np

    if any(not np.issubdtype(step.table.dtype, np.integer) for step in steps):
        return 0.0
    return float(np.gcd.reduce([np.gcd.reduce((step.table - step.table.min()).reshape(-1)) for step in steps]))


def _count(steps: list[_Binned], first: int, last: int) -> tuple[list[NDArray[np.float64]], list[int]]:
    """Ways to complete every combination in view before each step and after the last, by the bins so far.

    Returns the counts [combinations, bins + 2], framed by a zero at either end, and the bin of each first one. They
    are sums of positive numbers only, so that rare ways keep their precision beside frequent ones. Empty: no way.
    """
    import numpy as np

    so_far = np.cumsum([0, *(binned.most for binned in steps)])
    starts = np.maximum(first - (so_far[-1] - so_far), 0).tolist()
    ends = np.minimum(so_far, last).tolist()
    if any(start > end for start, end in zip(starts, ends, strict=True)):
        return [], []
    counts = [np.pad(np.ones((1, ends[-1] - starts[-1] + 1)), ((0, 0), (1, 1)))]
    for i in range(len(steps) - 1, -1, -1):
        binned, later = steps[i], counts[0]
        here = np.zeros((len(binned.bins), ends[i] - starts[i] + 3))
        for known, (bins, after) in enumerate(zip(binned.bins.tolist(), binned.after.tolist(), strict=True)):
            row = here[known]
            for cost, state in zip(bins, after, strict=True):
                begin, end = max(starts[i], starts[i + 1] - cost), min(ends[i], ends[i + 1] - cost)
                if begin <= end:
                    shift = cost - starts[i + 1] + 1
                    row[begin - starts[i] + 1 : end - starts[i] + 2] += later[state, begin + shift : end + shift + 1]
        counts.insert(0, here)
    return counts, starts
