"""What the YAML of a MobileNet-like space says about its stages, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from supernet.choices import entries, options, whole
from supernet.layers.conv import ACTIVATIONS


@dataclass(frozen=True)
class SqueezeExciteRule:
    """reduced = make_divisible(ratio * expanded channels, 8); relu inside, hard sigmoid gate unless said."""

    ratio: float = 0.25
    act: str = "relu"
    gate: str = "hsigmoid"

    def __post_init__(self) -> None:
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, int | float) or self.ratio <= 0:
            raise ValueError(f"se.ratio={self.ratio!r}: give a positive number such as 0.25")
        for key, value in (("act", self.act), ("gate", self.gate)):
            if value not in ACTIVATIONS:
                raise ValueError(f"se.{key}={value!r}: choose one of {list(ACTIVATIONS)}")


@dataclass(frozen=True)
class Stage:
    """The options and fixed facts of one stage. The first block has the stride; depth counts blocks."""

    width: tuple[int, ...]
    depth: tuple[int, ...]
    kernel: tuple[int, ...]
    expand: tuple[float, ...]
    stride: int
    act: str
    se: SqueezeExciteRule | None
    fixed: bool  # nothing in it is a gene

    @property
    def has_expand(self) -> bool:
        """False where the only expand ratio is 1: the block then has no expanding 1x1 conv."""
        return self.expand != (1,)


def parse_stage(data: Mapping[str, Any], index: int) -> Stage:
    """One entry of `stages`.

    Raises:
        ValueError: naming the entry that is missing, unknown or impossible.
    """
    where = f"stages[{index}]"
    given = parse_entries(
        data,
        where,
        {
            **dict.fromkeys(("width", "depth", "kernel", "expand")),
            **{"stride": 1, "act": "swish", "se": False, "fixed": False},
        },
    )
    choices = {key: options(f"{where}.{key}", given[key]) for key in ("width", "depth", "kernel", "expand")}
    for key in ("width", "depth", "kernel"):
        whole(f"{where}.{key}", choices[key], odd=key == "kernel")
    whole(f"{where}.stride", (given["stride"],))
    if type(given["fixed"]) is not bool:
        raise ValueError(f"{where}.fixed={given['fixed']!r}: give true or false")
    if given["fixed"] and any(len(values) > 1 for values in choices.values()):
        raise ValueError(f"{where}: has something to choose and is fixed; give single values, or drop fixed")
    se = given["se"]
    if not isinstance(se, bool | Mapping):
        raise ValueError(f"{where}.se={se!r}: give true, false, or a mapping of ratio, act and gate")
    rule = SqueezeExciteRule(**(se if isinstance(se, Mapping) else {})) if se is not False else None
    rest = {key: given[key] for key in ("stride", "act", "fixed")}
    return Stage(**choices, se=rule, **rest)  # type: ignore[arg-type]


def parse_entries(data: Mapping[str, Any], where: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`data` over `defaults`, with unknown keys, missing widths and unknown activations refused."""
    given = entries(data, where, defaults)
    if given["act"] not in ACTIVATIONS:
        raise ValueError(f"{where}.act={given['act']!r}: choose one of {list(ACTIVATIONS)}")
    if given["width"] is None:
        raise ValueError(f"{where}.width is missing: give a list of channels such as [16, 24]")
    return given
