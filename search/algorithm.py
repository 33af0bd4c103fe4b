"""The ask/tell protocol of search algorithms, and what they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from supernet.space import Arch, Space


@dataclass(frozen=True)
class Trial:
    """One scored subnet. Metrics hold "top1" (percent), "loss" (nats) and every measure of the budget.

    `seconds` is the time it took; it is no part of the result, so it does not count in comparisons.
    """

    arch: Arch
    metrics: Mapping[str, float]
    seconds: float = field(default=0.0, compare=False)

    def to_json(self) -> dict[str, Any]:
        return {"arch": self.arch.to_json(), "metrics": dict(self.metrics), "seconds": self.seconds}

    @staticmethod
    def from_json(data: Mapping[str, Any], space: Space) -> Trial:
        """Raises KeyError or ValueError where `data` is not a trial of this space."""
        return Trial(space.from_json(data["arch"]), dict(data["metrics"]), float(data["seconds"]))


class Algorithm(Protocol):
    """Proposes subnets and learns from their scores.

    A function of its settings, its seed and what it was told: asking and telling the same again proposes the
    same again, and `ask(m)` begins with `ask(n)` for n < m. That is what resuming relies on.
    """

    @property
    def batch(self) -> int:
        """How many subnets it likes to be asked for at once."""

    def ask(self, n: int) -> list[Arch]:
        """`n` subnets inside the budget, none of which was asked before; fewer where none are left."""

    def tell(self, trials: Sequence[Trial]) -> None:
        """The scores of what was asked, before anything else is asked."""


@runtime_checkable
class Indifferent(Protocol):
    """An algorithm to which the exact scores of bad subnets make no difference."""

    @property
    def indifferent_below(self) -> float:
        """A top-1 (percent): whatever a subnet asked for now scores below it, the algorithm goes on alike."""


def ranking(trial: Trial) -> tuple[float, float]:
    """Sorts the better trial first: higher top-1; among equals (small splits have many) the lower loss."""
    return -trial.metrics["top1"], trial.metrics.get("loss", 0.0)


def best_of(trials: Iterable[Trial], n: int) -> list[Trial]:
    """The `n` best distinct subnets, best first; ties in the order given."""
    distinct: dict[Arch, Trial] = {}
    for trial in trials:
        distinct.setdefault(trial.arch, trial)
    return sorted(distinct.values(), key=ranking)[:n]


def at_least_one(**counts: int) -> None:
    """Raises ValueError for a count below 1; names it."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count}: must be at least 1")


def share(**shares: float) -> None:
    """Raises ValueError for a share outside 0 to 1; names it."""
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: must be from 0 to 1")


def probability(**values: float | None) -> None:
    """Raises ValueError for a probability that is not above 0 and at most 1; None is a default. Names it."""
    for name, value in values.items():
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"{name}={value}: must be above 0 and at most 1")
