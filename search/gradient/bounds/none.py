"""No cost in the loss: the budget is held by the decode alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from search.gradient.bounds.base import nothing
from supernet.space import Window


class NoBound:
    """A term that is always zero."""

    def __init__(self, windows: Mapping[str, Window]) -> None:
        """The windows change nothing."""

    def term(self, expected: Mapping[str, Tensor]) -> Tensor:
        return nothing(expected)

    def observe(self, expected: Mapping[str, Tensor]) -> None:
        """Nothing is learned."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing is restored."""

    def report(self) -> dict[str, float]:
        return {}
