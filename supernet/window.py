"""Subnets inside a cost window, and the list of all subnets of a small space.

Few subnets of a large space lie inside a narrow window, so drawing and rejecting one at a time can take for
ever. Here thousands of gene rows are drawn and priced at once, and the draw is tilted towards the window
where that is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from supernet.cost import Measure, macs_of, params_of
from supernet.errors import UserError
from supernet.space import Arch, Space, Window

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK = 8192  # rows drawn and priced at once
PROBE = 8 * CHUNK  # rows that decide whether and how to tilt
ENOUGH = 0.0005  # share of accepted rows below which the draw is tilted; 2·10^6 rows take about a second
PATIENCE = 2**20  # rows without a single hit after which a window counts as out of reach


def sample_in_window(
    space: Space,
    rng: np.random.Generator,
    n: int,
    windows: Mapping[str, Window | None],
    measures: Mapping[str, Measure] | None = None,
) -> list[Arch]:
    """`n` independent subnets whose costs lie inside every window, ends included.

    The distribution: every gene uniform, given that the subnet is inside (exact). Where less than 0.05% of
    such draws are inside, genes are drawn independently with the probability of an option proportional to
    exp(t·e), given that the subnet is inside. e is the option's effect: the mean cost of the subnets that
    have it. t makes the mean cost hit the middle of the hardest window, or its finite end where the other is
    open. This exponential tilt favours every gene in proportion to what it does to the cost, as the exact
    distribution does, and is close to it in narrow windows.

    Args:
        windows: (lowest, highest) by the name of the measure; None: any. Ends may be infinite.
        measures: what the names mean; None: "macs" and "params".

    Raises:
        UserError: if a window is empty, or no subnet is found in 2^20 draws, or fewer than n in
            2^20 + 8000·n; gives the range over the space and the nearest cost that was seen.
        ValueError: if a window's name is not a cost.
    """
    import numpy as np

    limits = np.array([len(gene.options) for gene in space.genes])
    active = {name: _ordered(name, window) for name, window in windows.items() if window is not None}
    known = measures or {"macs": macs_of(space), "params": params_of(space)}
    if unknown := set(active) - set(known):
        raise ValueError(f"no such cost: {sorted(unknown)}; known are {list(known)}")
    measures = {name: known[name] for name in active}
    cumulative = _cumulative(np.zeros((int(limits.max()), len(limits))), limits)
    found: list[NDArray[np.int64]] = []
    count, drawn = 0, 0
    nearest = _Nearest(space, active, measures)
    while count < n:
        if drawn >= PATIENCE + (8000 * n if count else 0):
            raise nearest.error(count, drawn)
        rows = CHUNK if drawn else PROBE if active else n
        genes = _invert(cumulative, rng.random((rows, len(limits))))
        costs = {name: measure.batch(genes) for name, measure in measures.items()}
        masks = {name: (costs[name] >= low) & (costs[name] <= high) for name, (low, high) in active.items()}
        inside = np.logical_and.reduce([np.ones(rows, dtype=bool), *masks.values()])
        if drawn == 0 and inside.mean() < ENOUGH:
            hardest = min(masks, key=lambda name: float(masks[name].mean()))
            target = nearest.target(hardest)
            cumulative = _tilt(measures[hardest], target, genes, costs[hardest], limits, rng)
        elif inside.any():
            found.append(genes[inside])
            count += int(inside.sum())
        nearest.see(costs)
        drawn += rows
    return [space.decode(row) for row in np.concatenate(found)[:n].tolist()] if n else []


def enumerate_archs(space: Space) -> Iterator[Arch]:
    """Every distinct subnet of the space once, in the order of its codes; as many as `space.size()`."""
    codes: list[int] = []

    def extend() -> Iterator[Arch]:
        if len(codes) == len(space.genes):
            yield space.decode(codes)
            return
        gene = space.genes[len(codes)]
        for code in range(len(gene.options) if space.counts(gene, codes) else 1):
            codes.append(code)
            yield from extend()
            codes.pop()

    return extend()


def _ordered(name: str, window: Window) -> Window:
    low, high = window
    if not low <= high:
        raise UserError(f"the {name} window [{low:g}, {high:g}] is empty: give the lower end first")
    return window


def _cumulative(score: NDArray[np.float64], limits: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cumulative probabilities [options, G]: a softmax of scores [options, G] over a gene's own options."""
    import numpy as np

    own = np.arange(len(score))[:, None] < limits
    score = np.where(own, score, -np.inf)
    weights = np.exp(score - score.max(axis=0))
    cumulative = np.cumsum(weights, axis=0) / weights.sum(axis=0)
    last = np.arange(len(score))[:, None] >= limits - 1
    return np.where(last, 1.0, cumulative)  # rounding must not lead past the last option


def _invert(cumulative: NDArray[np.float64], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """Option indices [N, G] of uniform numbers [N, G] in [0, 1)."""
    import numpy as np

    genes = np.zeros(uniform.shape, dtype=np.int64)
    for row in cumulative[:-1]:
        genes += uniform >= row
    return genes


def _tilt(
    measure: Measure,
    target: float,
    genes: NDArray[np.int64],
    costs: NDArray[np.int64],
    limits: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Cumulative probabilities [options, G] under which the mean of `measure` is nearest to `target`.

    The effects of the options are measured on the uniform draws `genes` [N, G] with their `costs` [N]. The
    same random numbers serve every trial of the bisection, which makes it converge.
    """
    import numpy as np

    effect = np.zeros((int(limits.max()), len(limits)))
    for option in range(len(effect)):
        has = genes == option
        effect[option] = costs @ has / np.maximum(has.sum(axis=0), 1)
    effect = (effect - costs.mean()) / costs.std() if costs.std() > 0 else effect
    uniform = rng.random((CHUNK, len(limits)))
    below, above = -256.0, 256.0
    for _ in range(32):
        tilt = (below + above) / 2
        if measure.batch(_invert(_cumulative(tilt * effect, limits), uniform)).mean() < target:
            below = tilt
        else:
            above = tilt
    return _cumulative((below + above) / 2 * effect, limits)


class _Nearest:
    """What was seen while nothing was inside: the range of each cost and the closest miss."""

    def __init__(self, space: Space, windows: Mapping[str, Window], measures: Mapping[str, Measure]) -> None:
        import numpy as np

        self.space, self.windows = space, windows
        ends = np.array([space.encode(arch) for arch in (space.smallest(), space.largest())])
        self.seen = {name: sorted(measure.batch(ends).tolist()) for name, measure in measures.items()}
        self.closest = {
            name: min(self.seen[name], key=lambda value: _distance(value, window)) for name, window in windows.items()
        }

    def target(self, name: str) -> float:
        """The middle of a window's reachable part, or its finite end where the other is open."""
        low, high = self.windows[name]
        least, most = self.seen[name]
        if math.isinf(low) or math.isinf(high):
            return high if math.isfinite(high) else low
        return (max(low, least) + min(high, most)) / 2

    def see(self, costs: Mapping[str, NDArray[np.int64]]) -> None:
        import numpy as np

        for name, window in self.windows.items():
            values = costs[name]
            least, most = self.seen[name]
            self.seen[name] = [min(least, values.min().item()), max(most, values.max().item())]
            best = values[np.maximum(window[0] - values, values - window[1]).argmin()].item()
            self.closest[name] = min(self.closest[name], best, key=lambda value: _distance(value, window))

    def error(self, count: int, drawn: int) -> UserError:
        facts = []
        for name, (low, high) in self.windows.items():
            least, most = self.seen[name]
            facts.append(
                f"{name} in [{low:.6g}, {high:.6g}] (reachable: {least:,} to {most:,}; nearest seen: "
                f"{self.closest[name]:,})"
            )
        what = "no subnet" if count == 0 else f"only {count} subnets"
        return UserError(
            f"{what} of space {self.space.name!r} found in {drawn:,} draws with {' and '.join(facts)}: widen the window"
        )


def _distance(value: float, window: Window) -> float:
    return max(window[0] - value, value - window[1], 0.0)
