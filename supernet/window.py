"""Subnets inside windows of their costs, and the list of all subnets of a small space."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from supernet.codec import decoded
from supernet.cost import Additive, Measure, macs_of, params_of
from supernet.errors import UserError
from supernet.sampling import WindowTable, window_table
from supernet.space import Arch, Space, Window
from supernet.sweep import LISTED, extremes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK = 8192  # rows drawn and priced at once
FEW = 512  # rows of a first attempt, which is mostly enough
PATIENCE = 2**20  # rows without a single hit after which a window counts as out of reach
EVERY = 40  # draws per row after which each has come up, but for a chance of e^-40


def sample_in_window(
    space: Space,
    rng: np.random.Generator,
    n: int,
    windows: Mapping[str, Window | None],
    measures: Mapping[str, Measure] | None = None,
) -> list[Arch]:
    """`n` independent subnets whose costs lie inside every window, ends included.

    The distribution is exact: every gene uniform, given that the subnet is inside. Spaces of up to 2^14 gene rows
    are listed. In others, rows are drawn inside the window that fewest are in, among those on sums of factors (see
    `supernet.sampling`), and rejected where they are outside of another one.

    Args:
        windows: (lowest, highest) by the name of the measure; None: any. Ends may be infinite.
        measures: what the names mean; None: "macs" and "params".

    Raises:
        UserError: if a window is empty, or no subnet is inside, or none is found in 2^20 draws, or fewer than n in
            2^20 + 8000·n; gives the range over the space and the nearest cost that was seen.
        ValueError: if a window's name is not a cost.
    """
    return decoded(space, rows_in_window(space, rng, n, windows, measures))


def rows_in_window(
    space: Space,
    rng: np.random.Generator,
    n: int,
    windows: Mapping[str, Window | None],
    measures: Mapping[str, Measure] | None = None,
) -> NDArray[np.int64]:
    """`sample_in_window` as option indices [n, G], not canonical."""
    import numpy as np

    active = {name: _ordered(name, window) for name, window in windows.items() if window is not None}
    known = measures or {"macs": macs_of(space), "params": params_of(space)}
    if unknown := set(active) - set(known):
        raise ValueError(f"no such cost: {sorted(unknown)}; known are {list(known)}")
    limits = np.array([len(gene.options) for gene in space.genes])
    if not active or not n:
        return rng.integers(0, limits, size=(n, len(limits)))
    seen = _Seen(space, active, known)
    if math.prod(limits.tolist()) <= LISTED:
        rows = np.indices(tuple(limits.tolist())).reshape(len(limits), -1).T
        inside = rows[seen.inside(rows)]
        if not len(inside):
            raise seen.error(0)
        return inside[rng.integers(len(inside), size=n)]
    table = _hardest(active, known)
    if table is not None and not table.rows:
        seen.look_around(rng)
        raise seen.error(0)
    found: list[NDArray[np.int64]] = []
    count, drawn = 0, 0
    while count < n:
        patience = PATIENCE if table is None else min(PATIENCE, EVERY * table.rows)
        if drawn >= patience + (8000 * n if count else 0):
            raise seen.error(count)
        size = CHUNK if drawn or table is None else min(CHUNK, max(FEW, 2 * n))
        genes = rng.integers(0, limits, size=(size, len(limits))) if table is None else table.draw(rng, size)
        inside = genes[seen.inside(genes)]
        found.append(inside)
        count += len(inside)
        drawn += size
    return np.concatenate(found)[:n]


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


def _hardest(windows: Mapping[str, Window], measures: Mapping[str, Measure]) -> WindowTable | None:
    """The table of the window that the smallest share of all rows is in; None where no window can have a table."""
    tables = []
    for name, window in windows.items():
        measure = measures[name]
        table = window_table(measure, *window) if isinstance(measure, Additive) else None
        if table is not None:
            tables.append(table)
    return min(tables, key=lambda table: table.share, default=None)


class _Seen:
    """Which rows are inside; and for the case that none is: the range of each cost and the closest miss."""

    def __init__(self, space: Space, windows: Mapping[str, Window], measures: Mapping[str, Measure]) -> None:
        self.space, self.windows = space, windows
        self.measures = {name: measures[name] for name in windows}
        self.drawn = 0
        self.closest: dict[str, float] = {}

    def inside(self, genes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each row [N, G] is inside every window [N]."""
        import numpy as np

        fits = np.ones(len(genes), dtype=bool)
        for name, (low, high) in self.windows.items():
            values = self.measures[name].batch(genes)
            fits &= (values >= low) & (values <= high)
            self._note(name, values)
        self.drawn += len(genes)
        return fits

    def look_around(self, rng: np.random.Generator) -> None:
        """Find values near windows on sums that no row is in, by widening these step by step."""
        for name, (low, high) in self.windows.items():
            measure = self.measures[name]
            if not isinstance(measure, Additive):
                continue
            least, most = extremes(self.space, measure)
            margin = (most - least) / 2**12
            while margin <= 2 * (most - least):
                table = window_table(measure, max(low, least) - margin, min(high, most) + margin)
                if table is not None and table.rows:
                    self._note(name, measure.batch(table.draw(rng, FEW)))
                    break
                margin *= 2

    def error(self, count: int) -> UserError:
        facts = []
        for name, (low, high) in self.windows.items():
            least, most = extremes(self.space, self.measures[name])
            nearest = min((least, most, self.closest.get(name, least)), key=lambda value: _distance(value, (low, high)))
            reach = f"reachable: {least:,} to {most:,}; nearest seen: {nearest:,}"
            facts.append(f"{name} in [{low:.10g}, {high:.10g}] ({reach})")
        what = "no subnet" if count == 0 else f"only {count} subnets"
        draws = f" in {self.drawn:,} draws" if self.drawn else ""
        return UserError(
            f"{what} of space {self.space.name!r} found{draws} with {' and '.join(facts)}: widen the window"
        )

    def _note(self, name: str, values: NDArray[Any]) -> None:
        """Remember the value nearest to the window."""
        import numpy as np

        low, high = self.windows[name]
        best = values[np.maximum(low - values, values - high).argmin()].item()
        old = self.closest.get(name, best)
        self.closest[name] = min(old, best, key=lambda value: _distance(value, self.windows[name]))


def _distance(value: float, window: Window) -> float:
    return max(window[0] - value, value - window[1], 0.0)
