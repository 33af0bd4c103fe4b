"""Budgets on what subnets cost: feasibility of whole populations, reachability and repair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from supernet.cost import Measure, macs_of, params_of
from supernet.errors import UserError
from supernet.space import Arch, Space, Window
from supernet.window import enumerate_archs, sample_in_window

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Limit = int | float | str | None
UNITS = {"K": 1e3, "M": 1e6, "G": 1e9}
LABELS = {"macs": "MACs"}
ENUMERABLE = 20_000  # spaces up to this size are listed where an exact answer is needed


@dataclass(frozen=True)
class Constraint:
    """Upper bounds or [low, high] windows on what a subnet costs, alone or together.

    `macs` (one image) and `params`. Values up to 1 are fractions of the largest subnet's cost. "300M", "1.5G", "40%"
    are understood; null is no bound, also as one end of a window.
    """

    macs: Limit | tuple[Limit, Limit] = None
    params: Limit | tuple[Limit, Limit] = None

    def on(self, space: Space) -> Budget:
        """The budget in absolute numbers.

        Raises:
            UserError: if a value cannot be read, is not positive, or a window is empty.
        """
        measures: dict[str, Measure] = {"macs": macs_of(space), "params": params_of(space)}
        largest = encoded(space, [space.largest()])
        windows = {
            name: _window(name, getattr(self, name), measure.batch(largest)[0]) for name, measure in measures.items()
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
        import numpy as np

        total = np.zeros(len(genes))
        for name, (low, high) in self.windows.items():
            values = self.measures[name].batch(genes)
            if math.isfinite(low):
                total += np.maximum(low - values, 0) / max(low, 1e-9)
            if math.isfinite(high):
                total += np.maximum(values - high, 0) / max(high, 1e-9)
        return total

    def excess(self, archs: Sequence[Arch]) -> NDArray[np.float64]:
        """`violations` of subnets [N]."""
        return self.violations(encoded(self.space, archs))

    def costs(self, arch: Arch) -> dict[str, float]:
        """Every measure of one subnet, by name."""
        genes = encoded(self.space, [arch])
        return {name: measure.batch(genes)[0].item() for name, measure in self.measures.items()}

    def feasible(self, arch: Arch) -> bool:
        return not self.excess([arch])[0]

    def sample(self, rng: np.random.Generator, n: int) -> list[Arch]:
        """`n` independent subnets inside the budget, see `supernet.window`."""
        return sample_in_window(self.space, rng, n, self.windows, self.measures)

    def repair(self, arch: Arch, rng: np.random.Generator) -> Arch | None:
        """Bring a subnet into the budget by moving randomly chosen genes one option at a time.

        Every move lowers the violation, so there are finitely many; None where no single move does.
        """
        import numpy as np

        limits = np.array([len(gene.options) for gene in self.space.genes])
        left = self.excess([arch])[0]
        steps = np.concatenate([np.eye(len(limits), dtype=np.int64), -np.eye(len(limits), dtype=np.int64)])
        while left > 0:
            moved = np.array(self.space.encode(arch)) + steps  # [2 G, G]
            moved = moved[((moved >= 0) & (moved < limits)).all(axis=1)]
            after = self.violations(moved)
            better = np.flatnonzero(after < left)
            if not len(better):
                return None
            chosen = int(rng.choice(better))
            arch, left = self.space.decode(moved[chosen].tolist()), after[chosen]
        return arch

    def check_reachable(self) -> None:
        """Make sure that some subnet is inside.

        Raises:
            UserError: otherwise; gives the reachable range and the nearest value.
        """
        import numpy as np

        if not self.excess([self.space.smallest(), self.space.largest()]).all():
            return
        ranges = range_of(self)
        for name, window in self.windows.items():
            least, most = ranges[name]
            if window[1] < least or window[0] > most:
                nearest = least if window[1] < least else most
                bound = f"constraint.{name} ({_show(window)})"
                raise UserError(
                    f"{bound} is out of reach: space {self.space.name!r} has subnets "
                    f"of {_exact(least)} to {_exact(most)} {name}; the nearest possible is {nearest:,}"
                )
        if self.space.size() > ENUMERABLE or self.excess(list(enumerate_archs(self.space))).all():
            self.sample(np.random.default_rng(0), 1)

    def describe(self) -> str:
        """For people: "MACs <= 300.0M, params 1.00M to 2.00M"."""
        parts = [f"{LABELS.get(name, name)} {_show(window)}" for name, window in self.windows.items()]
        return ", ".join(parts) or "none"


def encoded(space: Space, archs: Sequence[Arch]) -> NDArray[np.int64]:
    """Option indices [N, G] of subnets."""
    import numpy as np

    return np.array([space.encode(arch) for arch in archs], dtype=np.int64).reshape(len(archs), len(space.genes))


def range_of(budget: Budget) -> dict[str, tuple[float, float]]:
    """The measures of the smallest and the largest subnet, by name."""
    ends = [budget.costs(arch) for arch in (budget.space.smallest(), budget.space.largest())]
    return {name: (ends[0][name], ends[1][name]) for name in budget.measures}


def number(value: float) -> str:
    """A cost with four digits and a unit: 203.4M."""
    for unit, scale in sorted(UNITS.items(), key=lambda item: -item[1]):
        if abs(value) >= scale:
            return f"{value / scale:.4g}{unit}"
    return f"{value:g}"


def _exact(value: float) -> str:
    return f"{number(value)} ({value:,})"


def _show(window: Window) -> str:
    low, high = window
    if math.isinf(low):
        return f"<= {number(high)}"
    return f">= {number(low)}" if math.isinf(high) else f"{number(low)} to {number(high)}"


def _window(name: str, value: Limit | Sequence[Limit], largest: float) -> Window | None:
    key = f"constraint.{name}"
    if value is None:
        return None
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != 2:
            raise UserError(f"{key}={list(value)}: give one upper bound, or a window [low, high]")
        low = -math.inf if value[0] is None else _absolute(key, value[0], largest)
        high = math.inf if value[1] is None else _absolute(key, value[1], largest)
        if low > high:
            raise UserError(f"{key}={list(value)}: the window is empty, give the lower end first")
        return (low, high) if math.isfinite(low) or math.isfinite(high) else None
    return -math.inf, _absolute(key, value, largest)


def _absolute(key: str, value: int | float | str, largest: float) -> float:
    """A bound as an absolute number; up to 1 it is a fraction of `largest`."""
    parsed: float
    try:
        if isinstance(value, bool):
            raise ValueError
        text = str(value).strip().upper().replace("_", "")
        if text.endswith("%"):
            parsed = float(text[:-1]) / 100 * largest
        else:
            parsed = float(text[:-1]) * UNITS[text[-1]] if text[-1:] in UNITS else float(text)
    except ValueError:
        raise UserError(f"{key}={value}: not a number; give 0.5 (of the largest), 300e6 or 300M") from None
    if not 0 < parsed < math.inf:
        raise UserError(f"{key}={value}: must be positive and finite, or null for no bound")
    return parsed * largest if parsed <= 1 else parsed
