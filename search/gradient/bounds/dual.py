"""Dual ascent: a bound's price rises while it is exceeded, and falls while it is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from search.gradient.bounds.base import Multipliers, nothing, positive
from supernet.space import Window


class DualAscent:
    """Adds Σ λ·(E/T - 1), with λ <- max(0, λ + rate·(E/T - 1)) after every step, for every end of the windows.

    The method of multipliers of convex optimisation (Arrow, Hurwicz and Uzawa, 1958): the expected cost settles near
    the bound, where a fixed weight misses it. At a lower end the excess is 1 - E/T.

    Args:
        rate: how fast prices move. Cost and price swing about the bound where it is large.

    Raises:
        ValueError: if it is not positive.
    """

    def __init__(self, windows: Mapping[str, Window], rate: float = 0.01) -> None:
        positive(rate=rate)
        self.rate = rate
        self.multipliers = Multipliers(windows)

    def term(self, expected: Mapping[str, Tensor]) -> Tensor:
        total = nothing(expected)
        for multiplier, excess in self.multipliers.excesses(expected):
            total = total + multiplier.to(excess) * excess
        return total

    def observe(self, expected: Mapping[str, Tensor]) -> None:
        self.multipliers.ascend(expected, self.rate)

    def state_dict(self) -> dict[str, Any]:
        return self.multipliers.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.multipliers.load_state_dict(state)

    def report(self) -> dict[str, float]:
        return self.multipliers.report()
