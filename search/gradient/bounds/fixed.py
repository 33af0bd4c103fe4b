"""A cost term of fixed weight: a trade-off, not a bound; only the decode then holds the budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from search.gradient.bounds.base import ends_of, nothing, positive
from supernet.space import Window

TWO_ENDED = "hinge"  # the other forms pull outwards at both ends of a window


class Fixed:
    """Adds weight times a function of every expected cost E, relative to the bound T.

    Forms: "ratio", E/T - 1, pulls everywhere (ProxylessNAS, Cai et al., ICLR 2019); "hinge", max(0, E/T - 1), only
    while the bound is exceeded; "log", log(E/T), whose pull is relative to the present cost: the exponent of
    MnasNet's product of accuracy and latency (Tan et al., CVPR 2019), in logarithms.

    Raises:
        ValueError: if `weight` is not positive, or a window has a lower end and the form is not "hinge".
    """

    def __init__(
        self, windows: Mapping[str, Window], weight: float = 0.1, form: Literal["ratio", "hinge", "log"] = "hinge"
    ) -> None:
        positive(weight=weight)
        self.weight, self.form, self.ends = weight, form, ends_of(windows)
        low = next((end for end in self.ends if end.sign < 0), None)
        if low is not None and form != TWO_ENDED:
            raise ValueError(f"form={form}: needs upper bounds only, and {low.measure} has a lower end; use form=hinge")

    def term(self, expected: Mapping[str, Tensor]) -> Tensor:
        total = nothing(expected)
        for end in self.ends:
            if end.measure in expected:
                excess = end.excess(expected[end.measure])
                value = excess.log1p() if self.form == "log" else excess
                total = total + self.weight * (value.clamp(min=0) if self.form == "hinge" else value)
        return total

    def observe(self, expected: Mapping[str, Tensor]) -> None:
        """Nothing is learned."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing is restored."""

    def report(self) -> dict[str, float]:
        return {}
