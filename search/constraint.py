"""Budgets on what subnets cost: feasibility of whole populations, reachability and repair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations
from typing import TYPE_CHECKING, Any

from search.limits import LABELS, Limit, bounds, exact, number, shown, window
from search.repair import descended, repaired
from supernet.codec import decoded, encoded
from supernet.cost import Additive, Measure, macs_of, memory_of, params_of, size_of
from supernet.errors import UserError
from supernet.neighbours import changed, changes
from supernet.space import Arch, Space, Window
from supernet.sweep import extremes
from supernet.window import enumerate_archs, rows_in_window

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["ENUMERABLE", "Budget", "Constraint", "encoded", "number", "range_of", "shown"]

AUTO = "auto"
ENUMERABLE = 20_000  # spaces up to this size are listed where an exact answer is needed
EXPLORED = 2048  # subnets inside one window, looked at to see what it leaves of another
REFINED = 16  # of these, the nearest, from which the search for a nearer one starts


@dataclass(frozen=True)
class Constraint:
    """Upper bounds or [low, high] windows on what a subnet costs, alone or together.

    `macs` (one image) and `params`: values up to 1 are fractions of the largest subnet's; "300M" and "1.5G" are
    understood. `latency_ms`; `memory_mb`, the peak of the activations on one image (see `supernet.cost.memory_of`);
    `size_mb` of the exported weights: in ms and MB (10^6 bytes). "40%" of the largest is understood by all; null is no
    bound, also as one end of a window. macs="auto" is no bound where there is another, else half of the largest
    subnet's, or the middle of what is reachable if that is more.
    """

    macs: Limit | Sequence[Limit] = None
    params: Limit | Sequence[Limit] = None
    latency_ms: Limit | Sequence[Limit] = None
    memory_mb: Limit | Sequence[Limit] = None
    size_mb: Limit | Sequence[Limit] = None

    def on(self, space: Space, latency: Measure | None = None) -> Budget:
        """The budget in absolute numbers. `latency` predicts milliseconds.

        Raises:
            UserError: if a value cannot be read, is not positive, or a window is empty; if latency is bounded and
                nothing predicts it.
        """
        measures: dict[str, Measure] = {"macs": macs_of(space), "params": params_of(space)}
        if latency is not None:
            measures["latency_ms"] = latency
        elif self.latency_ms is not None:
            raise UserError(
                f"constraint.latency_ms={self.latency_ms}: needs a latency model of space {space.name!r}; "
                "make one with `python search.py mode=latency`, then give latency=<file>"
            )
        measures |= {"memory_mb": memory_of(space), "size_mb": size_of(space)}
        largest = encoded(space, [space.largest()])
        limits = {name: getattr(self, name) for name in measures}
        if self.macs == AUTO:
            limits["macs"] = None
            if not any(limit is not None for limit in limits.values()):
                least, most = extremes(space, measures["macs"])
                limits["macs"] = max(most / 2, (least + most) / 2 if least > most / 2 else 0)
        windows = {
            name: window(name, limits[name], measure.batch(largest)[0].item()) for name, measure in measures.items()
        }
        return Budget(space, {name: window for name, window in windows.items() if window is not None}, measures)


@dataclass(frozen=True)
class Budget:
    """A constraint on one space.

    Attributes:
        windows: (lowest, highest), ends included, of the measures that are bounded; ends may be infinite.
        measures: everything that is known of a subnet without running it, by name; "macs" and "params" among them.
    """

    space: Space
    windows: Mapping[str, Window]
    measures: Mapping[str, Measure]

    def violations(self, genes: NDArray[np.integer]) -> NDArray[np.float64]:
        """By how much subnets [N, G] leave the windows, each relative to the bound, summed [N]; 0: feasible."""
        return self._outside({name: self.measures[name].batch(genes) for name in self.windows}, (len(genes),))

    def violations_around(self, genes: NDArray[np.integer]) -> NDArray[np.float64]:
        """`violations` [N, K] after each change of one gene, see `supernet.neighbours.changes`, of N subnets [N, G]."""
        values, moved = {}, None
        for name in self.windows:
            measure = self.measures[name]
            if isinstance(measure, Additive):
                values[name] = measure.around(genes)
                continue
            moved = changed(self.space, genes) if moved is None else moved
            values[name] = measure.batch(moved.reshape(-1, moved.shape[2])).reshape(moved.shape[:2])
        return self._outside(values, (len(genes), len(changes(self.space)[0])))

    def _outside(self, values: Mapping[str, NDArray[Any]], shape: tuple[int, ...]) -> NDArray[np.float64]:
        import numpy as np

        parts = []
        for name, (low, high) in self.windows.items():
            if math.isfinite(low):
                parts.append(np.maximum(low - values[name], 0) / max(abs(low), 1e-9))
            if math.isfinite(high):
                parts.append(np.maximum(values[name] - high, 0) / max(abs(high), 1e-9))
        return reduce(np.add, parts) if parts else np.zeros(shape)

    def excess(self, archs: Sequence[Arch]) -> NDArray[np.float64]:
        """`violations` of subnets [N]."""
        return self.violations(encoded(self.space, archs))

    def costs(self, arch: Arch) -> dict[str, float]:
        """Every measure of one subnet, by name."""
        return self.costs_all([arch])[0]

    def costs_all(self, archs: Sequence[Arch]) -> list[dict[str, float]]:
        """`costs` of many at once, which takes a hundredth of the time for each."""
        genes = encoded(self.space, archs)
        values = [measure.batch(genes).tolist() for measure in self.measures.values()]
        return [dict(zip(self.measures, row, strict=True)) for row in zip(*values, strict=True)]

    def feasible(self, arch: Arch) -> bool:
        return not self.excess([arch])[0]

    def sample(self, rng: np.random.Generator, n: int) -> list[Arch]:
        """`n` independent subnets inside the budget, every gene uniform given that; see `supernet.window`."""
        return decoded(self.space, self.sample_rows(rng, n))

    def sample_rows(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        """`sample` as option indices [n, G], not canonical."""
        return rows_in_window(self.space, rng, n, self.windows, self.measures)

    def repair(self, arch: Arch, rng: np.random.Generator) -> Arch | None:
        """A subnet inside the budget near `arch`; itself if it is inside, None if no way in was found."""
        return self.repair_all([arch], rng)[0]

    def repair_all(self, archs: Sequence[Arch], rng: np.random.Generator) -> list[Arch | None]:
        """`repair` of many at once. Few genes change, at random, see `search.repair`.

        Genes that begin to count on the way (a deeper stage's new blocks) are drawn uniformly.
        """
        import numpy as np

        rows = encoded(self.space, archs)
        outside = np.flatnonzero(self.violations(rows) > 0)
        for i in outside.tolist():
            codes = tuple(rows[i].tolist())
            for position, gene in enumerate(self.space.genes):
                if gene.parent is not None and not self.space.counts(gene, codes):
                    rows[i, position] = rng.integers(len(gene.options))
        result: list[Arch | None] = list(archs)
        moved, inside = repaired(self.space, self.violations, rows[outside], rng, self.violations_around)
        for i, row, fits in zip(outside.tolist(), moved.tolist(), inside.tolist(), strict=True):
            result[i] = self.space.decode(row) if fits else None
        return result

    def check_reachable(self) -> None:
        """Make sure that some subnet is inside.

        Raises:
            UserError: otherwise; gives the reachable range and the nearest value, or the pair of bounds that exclude
                each other and what each leaves of the other.
        """
        import numpy as np

        if not self.excess([self.space.smallest(), self.space.largest()]).all():
            return
        for name, (low, high) in self.windows.items():
            least, most = extremes(self.space, self.measures[name])
            if high < least or low > most:
                raise UserError(
                    f"{self._bound(name)} is out of reach: space {self.space.name!r} has subnets of "
                    f"{exact(name, least)} to {exact(name, most)} {LABELS.get(name, name)}; "
                    f"the nearest possible is {exact(name, least if high < least else most)}"
                )
        if self.space.size() <= ENUMERABLE and not self.excess(list(enumerate_archs(self.space))).all():
            return
        try:
            self.sample(np.random.default_rng(0), 1)
        except UserError:
            self._explain(np.random.default_rng(0))
            raise

    def describe(self) -> str:
        """For people: "MACs <= 300.0M, latency <= 25 ms"."""
        parts = [f"{LABELS.get(name, name)} {bounds(name, window)}" for name, window in self.windows.items()]
        return ", ".join(parts) or "none"

    def _bound(self, name: str) -> str:
        return f"constraint.{name} ({bounds(name, self.windows[name])})"

    def _explain(self, rng: np.random.Generator) -> None:
        """Raise a `UserError` about one window that no subnet is in, or about two that exclude each other."""
        for name, limits in self.windows.items():
            rows_in_window(self.space, rng, 1, {name: limits}, self.measures)
        for first, second in combinations(self.windows, 2):
            nearest = [self._nearest(inside, other, rng) for inside, other in ((first, second), (second, first))]
            if None in nearest:
                continue
            raise UserError(
                f"no subnet of space {self.space.name!r} found with both {self._bound(first)} and "
                f"{self._bound(second)}. Inside the first, the nearest found has "
                f"{exact(second, nearest[0] or 0)} {LABELS.get(second, second)}; inside the second, "
                f"{exact(first, nearest[1] or 0)} {LABELS.get(first, first)}: relax one of them to that"
            )

    def _nearest(self, inside: str, other: str, rng: np.random.Generator) -> float | None:
        """The value of `other` nearest to its window that was found inside the window of `inside`; None: in both."""
        import numpy as np

        held, wanted = (replace(self, windows={name: self.windows[name]}) for name in (inside, other))
        rows = rows_in_window(self.space, rng, EXPLORED, held.windows, self.measures)
        rows = rows[np.argsort(wanted.violations(rows), kind="stable")[:REFINED]]
        rows = descended(self.space, held.violations, wanted.violations, rows)
        left = wanted.violations(rows)
        return self.measures[other].batch(rows[[left.argmin()]])[0].item() if left.min() > 0 else None


def range_of(budget: Budget) -> dict[str, tuple[float, float]]:
    """The lowest and the highest value of every measure over the space, by name; see `supernet.sweep.extremes`."""
    return {name: extremes(budget.space, measure) for name, measure in budget.measures.items()}
