"""What a bound is: the rule that turns expected costs into a term of the architecture parameters' loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from supernet.space import Window


class Bound(Protocol):
    """Made of its settings and of the budget's windows. Also a `supernet.learned.Learned`, for checkpoints and logs.

    Windows of measures that have no expectation (the peak of memory is a maximum, not a sum) are not in `expected`,
    and then have no effect here: they are left to `search.gradient.decode`.
    """

    def term(self, expected: Mapping[str, Tensor]) -> Tensor:
        """What is added to the loss, 0-d and differentiable, given expected costs (0-d, on the CPU) by measure."""

    def observe(self, expected: Mapping[str, Tensor]) -> None:
        """Learn from the expected costs after a step of the architecture parameters."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""

    def report(self) -> dict[str, float]:
        """Figures for the log."""


@dataclass(frozen=True)
class End:
    """One finite end of a window: an upper one (`sign` +1) or a lower one (-1) at `at`."""

    measure: str
    sign: int
    at: float

    @property
    def name(self) -> str:
        return self.measure if self.sign > 0 else f"{self.measure}_low"

    def excess(self, expected: Tensor) -> Tensor:
        """By what share of it the end is exceeded; negative inside: E/T - 1, or 1 - E/T at a lower end."""
        return self.sign * (expected / self.at - 1)


def ends_of(windows: Mapping[str, Window]) -> tuple[End, ...]:
    """The ends that can bind, in the order of the windows. Lower ends at 0 never do.

    Raises:
        ValueError: if an upper end is not positive; costs are then not comparable as shares of it.
    """
    ends = []
    for measure, (low, high) in windows.items():
        if not high > 0:
            raise ValueError(f"the upper end of the {measure} window is {high:g}: must be positive")
        if math.isfinite(high):
            ends.append(End(measure, 1, high))
        if math.isfinite(low) and low > 0:
            ends.append(End(measure, -1, low))
    return tuple(ends)


def nothing(expected: Mapping[str, Tensor]) -> Tensor:
    """A zero, 0-d, like the expected costs."""
    return next((value.new_zeros(()) for value in expected.values()), torch.zeros(()))


class Multipliers:
    """One number >= 0 for each end of the windows, fp64 on the CPU; it grows while the end is exceeded.

    Not the gradient but the excess itself moves it: λ <- max(0, λ + rate·excess), the ascent on the dual function.
    """

    def __init__(self, windows: Mapping[str, Window]) -> None:
        self.ends = ends_of(windows)
        self.values = torch.zeros(len(self.ends), dtype=torch.float64)

    def excesses(self, expected: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """(multiplier, excess), each 0-d, of every end whose measure has an expected cost."""
        pairs = zip(self.ends, self.values, strict=True)
        return [(value, end.excess(expected[end.measure])) for end, value in pairs if end.measure in expected]

    def ascend(self, expected: Mapping[str, Tensor], rate: float) -> None:
        """One step of all multipliers that have an expected cost."""
        known = [(i, end) for i, end in enumerate(self.ends) if end.measure in expected]
        for i, end in known:
            moved = self.values[i] + rate * end.excess(expected[end.measure].detach()).to("cpu", torch.float64)
            self.values[i] = moved.clamp(min=0)

    def state_dict(self) -> dict[str, Any]:
        return {"multipliers": self.values.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError if the state is one of other windows."""
        if state["multipliers"].shape != self.values.shape:
            raise ValueError(f"the saved bound has {len(state['multipliers'])} ends, this one {len(self.ends)}")
        self.values = state["multipliers"].to("cpu", torch.float64).clone()

    def report(self) -> dict[str, float]:
        return {f"multiplier_{end.name}": value.item() for end, value in zip(self.ends, self.values, strict=True)}


def positive(**settings: float) -> None:
    """Raises ValueError, naming it, if a setting is not a positive finite number."""
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value}: must be positive")
