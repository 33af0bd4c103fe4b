"""The augmented Lagrangian: dual ascent with a quadratic penalty, which damps the swings about the bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from search.gradient.bounds.base import Multipliers, nothing, positive
from supernet.space import Window


class AugmentedLagrangian:
    """Adds Σ rho/2 · max(0, E/T - 1 + λ/rho)², with λ <- max(0, λ + rate·(E/T - 1)) after every step.

    Hestenes (1969) and Powell (1969), with Rockafellar's (1973) form for inequalities. Its gradient is that of dual
    ascent with the multiplier max(0, λ + rho·(E/T - 1)). At a lower end of a window the excess is 1 - E/T.

    Args:
        rho: weight of the quadratic penalty.
        rate: how fast the multipliers move.

    Raises:
        ValueError: if one is not positive.
    """

    def __init__(self, windows: Mapping[str, Window], rho: float = 1.0, rate: float = 0.01) -> None:
        positive(rho=rho, rate=rate)
        self.rho, self.rate = rho, rate
        self.multipliers = Multipliers(windows)

    def term(self, expected: Mapping[str, Tensor]) -> Tensor:
        total = nothing(expected)
        for multiplier, excess in self.multipliers.excesses(expected):
            total = total + self.rho / 2 * (excess + multiplier.to(excess) / self.rho).clamp(min=0) ** 2
        return total

    def observe(self, expected: Mapping[str, Tensor]) -> None:
        self.multipliers.ascend(expected, self.rate)

    def state_dict(self) -> dict[str, Any]:
        return self.multipliers.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.multipliers.load_state_dict(state)

    def report(self) -> dict[str, float]:
        return self.multipliers.report()
