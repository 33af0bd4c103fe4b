"""The gene row of the largest score whose cost is in a window: a knapsack with one item of each gene.

Scores and costs are sums of factors of few genes each. A sweep (see `supernet.sweep`) from the last factor to the
first finds, for every combination of the genes in view and every budget that can be left, the best way to go on; a
walk from the first to the last then takes it. Costs are rounded up to whole bins, so that what is found is never
above the window. Where the common divisor of the costs can be the bin, nothing is rounded, and the answer is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from supernet.cost import Additive
from supernet.lookup import Factor, merged
from supernet.space import Space, Window
from supernet.sweep import Step, sweep

ADDITIONS = 2**26  # of the sweep; about 0.1 s
ENTRIES = 2**22  # scores that are kept: 32 MB
ROUNDED = 2**14  # bins where costs are rounded; more are not worth their time
FORBIDDEN = -1e12  # the score of what must not be chosen; sums of allowed scores stay far above


@dataclass(frozen=True)
class Found:
    """What the sweep found.

    Attributes:
        row: option indices [G]; None: nothing.
        width: of a bin, in the unit of the measure. 0: nothing was rounded, so that `row` is the best, and where it is
            None, there is none. Else up to one bin per layer of the window may have been left unused.
    """

    row: NDArray[np.int64] | None
    width: float


@dataclass(frozen=True)
class _Stage:
    """One step of the sweep; arrays are [combinations of known genes, of new genes].

    Attributes:
        bins: the cost above the step's least, in bins.
        scores: what is maximised.
        after: the index of the combination in view after the step.
    """

    step: Step
    bins: NDArray[np.int64]
    scores: NDArray[np.float64]
    after: NDArray[np.int64]


def best_row(
    space: Space, scores: Sequence[Factor], measure: Additive | None, window: Window, effort: float = 1.0
) -> Found | None:
    """The row of the largest sum of `scores` with `measure` in `window`, ends included; of equals the first options.

    None where the factors share too many genes for a sweep. Scores must be finite; `FORBIDDEN` excludes.

    Args:
        scores: together they read every gene of the space.
        measure: None: no cost, `window` does not matter.
        effort: share of the usual number of bins, where costs are rounded.
    """
    costs = measure.factors if measure is not None else ()
    # A cost and a score share a complex number, so that both are joined and swept as one.
    pairs = [Factor(factor.reads, factor.table.astype(np.complex128)) for factor in costs]
    pairs += [Factor(factor.reads, 1j * factor.table) for factor in scores]
    steps = sweep(space, merged(pairs, np.add))
    if steps is None:
        return None
    least = [float(step.table.real.min()) for step in steps]
    over = [step.table.real - base for step, base in zip(steps, least, strict=True)]
    low, high = 0.0, math.inf
    unit = 1.0
    if measure is not None:
        unit = measure.unit
        low, high = (end * unit - measure.offset - sum(least) for end in window)
        dust = 1e-12 * sum(abs(base) + float(more.max()) for base, more in zip(least, over, strict=True))
        low, high = low - dust, high + dust
    if high < 0:
        return Found(None, 0.0)
    most = sum(float(more.max()) for more in over)
    is_bound, high = high < most, min(high, most)
    whole = all(np.issubdtype(factor.table.dtype, np.integer) for factor in costs)
    width, exact = _width(steps, over, high, whole, effort)
    stages = [
        _stage(step, np.rint(more / width) if exact else np.ceil(more / width))
        for step, more in zip(steps, over, strict=True)
    ]
    # Without a bound nothing may be left out because its costs were rounded up.
    budget = math.floor(high / width) if is_bound else sum(int(stage.bins.max()) for stage in stages)
    # What may be left: costs are at least `low` for sure where they are so after the rounding is taken off.
    rounded = 0 if exact else sum(bool(stage.bins.any()) for stage in stages)
    left = budget - (math.ceil(low / width) + rounded if low > 0 else 0)
    if left < 0:
        return Found(None, 0.0 if exact else width / unit)
    return Found(_walk(space, stages, _sweep(stages, budget, left), budget), 0.0 if exact else width / unit)


def _width(
    steps: list[Step], over: list[NDArray[np.float64]], high: float, whole: bool, effort: float
) -> tuple[float, bool]:
    """The width of a bin, and whether all costs are multiples of it."""
    work = sum(step.combinations for step in steps)
    states = sum(math.prod(step.lengths[: len(step.known)]) for step in steps)
    fitting = max(high * work / ADDITIONS, high * states / ENTRIES) / effort
    divisor = 0.0
    if whole:
        divisor = float(np.gcd.reduce([np.gcd.reduce(np.rint(more).astype(np.int64).reshape(-1)) for more in over]))
    if whole and (divisor >= fitting or not divisor):
        return divisor or 1.0, True
    fitting = max(fitting, high / ROUNDED / effort)
    return (fitting, False) if fitting > 0 else (max(float(more.max()) for more in over) + 1.0, False)


def _stage(step: Step, bins: NDArray[np.float64]) -> _Stage:
    genes = step.known + step.new
    codes = dict(zip(genes, np.indices(step.lengths, dtype=np.int64), strict=True))
    after = np.zeros(step.lengths, dtype=np.int64)
    for gene in step.kept:
        after = after * step.lengths[genes.index(gene)] + codes[gene]
    known = math.prod(step.lengths[: len(step.known)])
    full = [np.broadcast_to(table, step.lengths) for table in (bins.astype(np.int64), step.table.imag, after)]
    return _Stage(step, *(np.ascontiguousarray(table).reshape(known, -1) for table in full))


def _sweep(stages: list[_Stage], budget: int, left: int) -> list[NDArray[np.float64]]:
    """The best score from each stage on, and after the last, [combinations in view, bins left + 1].

    `left`: how much of the budget may be left in the end.
    """
    end = np.full((1, budget + 1), FORBIDDEN)
    end[:, : left + 1] = 0
    best = [end]
    for stage in reversed(stages):
        later = best[0]
        here = np.full((len(stage.bins), budget + 1), FORBIDDEN)
        rows = zip(here, stage.bins.tolist(), stage.scores.tolist(), stage.after.tolist(), strict=True)
        for row, bins, scores, after in rows:
            for cost, score, state in zip(bins, scores, after, strict=True):
                if cost <= budget:
                    tail = row[cost:]
                    np.maximum(tail, later[state, : budget + 1 - cost] + score, out=tail)
        best.insert(0, here)
    return best


def _walk(space: Space, stages: list[_Stage], best: list[NDArray[np.float64]], budget: int) -> NDArray[np.int64] | None:
    """The row that the sweep's scores lead to, from the first stage to the last."""
    if best[0][0, budget] <= FORBIDDEN / 2:
        return None
    row = np.zeros(len(space.genes), dtype=np.int64)
    state, left = 0, budget
    for stage, later in zip(stages, best[1:], strict=True):
        rest = left - stage.bins[state]
        values = stage.scores[state] + later[stage.after[state], np.maximum(rest, 0)]
        chosen = int(np.where(rest >= 0, values, -math.inf).argmax())
        step = stage.step
        if step.new:
            row[list(step.new)] = np.unravel_index(chosen, step.lengths[len(step.known) :])
        state, left = int(stage.after[state, chosen]), int(rest[chosen])
    return row
