"""The ask/tell protocol of search algorithms, and what they share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from search.constraint import ENUMERABLE, Budget
from supernet.errors import UserError
from supernet.space import Arch, Space
from supernet.window import enumerate_archs

if TYPE_CHECKING:
    import numpy as np

CHUNK = 256  # subnets drawn at once
ROUNDS = 20  # chunks drawn at most in search of unseen subnets


@dataclass(frozen=True)
class Trial:
    """One scored subnet. Metrics hold "top1" (percent), "loss" (nats), "macs" and "params".

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
        """The scores of what was asked."""


def ranking(trial: Trial) -> tuple[float, float]:
    """Sorts the better trial first: higher top-1; among equals (small splits have many) the lower loss."""
    return -trial.metrics["top1"], trial.metrics.get("loss", 0.0)


def best_of(trials: Iterable[Trial], n: int) -> list[Trial]:
    """The `n` best distinct subnets, best first; ties in the order given."""
    distinct: dict[Arch, Trial] = {}
    for trial in trials:
        distinct.setdefault(trial.arch, trial)
    return sorted(distinct.values(), key=ranking)[:n]


def draw_unseen(budget: Budget, rng: np.random.Generator, n: int, seen: Collection[Arch]) -> list[Arch]:
    """`n` distinct random subnets inside the budget that are not in `seen`; fewer where no more are found.

    Drawing ends with a chunk that brings nothing new, or after `ROUNDS` chunks. Small spaces are then listed,
    so every subnet inside them is found.
    """
    found: dict[Arch, None] = {}
    for _ in range(ROUNDS if n > 0 else 0):
        try:
            drawn = budget.sample(rng, CHUNK)
        except UserError:  # so few subnets inside that drawing does not find them: list them, or give up
            break
        known = len(found)
        found.update(dict.fromkeys(arch for arch in drawn if arch not in seen))
        if len(found) >= n or len(found) == known:
            break
    if len(found) < n and budget.space.size() <= ENUMERABLE:
        rest = [arch for arch in enumerate_archs(budget.space) if arch not in seen and arch not in found]
        inside = [arch for arch, excess in zip(rest, budget.excess(rest), strict=True) if not excess]
        found.update(dict.fromkeys(inside[i] for i in rng.permutation(len(inside))))
    return list(found)[:n]
