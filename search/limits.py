"""Bounds as people write them, and costs as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from supernet.errors import UserError
from supernet.space import Window

Limit = int | float | str | None
UNITS = {"K": 1e3, "M": 1e6, "G": 1e9}
LABELS = {"macs": "MACs", "latency_ms": "latency", "memory_mb": "memory", "size_mb": "size"}
SUFFIXES = {"latency_ms": " ms", "memory_mb": " MB", "size_mb": " MB"}


def number(value: float) -> str:
    """A cost with four digits and a unit: 203.4M."""
    for unit, scale in sorted(UNITS.items(), key=lambda item: -item[1]):
        if abs(value) >= scale:
            return f"{value / scale:.4g}{unit}"
    return f"{value:g}"


def shown(name: str, value: float) -> str:
    """A value of the measure `name` with four digits and its unit: 203.4M, 25.13 ms."""
    return f"{value:.4g}{SUFFIXES[name]}" if name in SUFFIXES else number(value)


def exact(name: str, value: float) -> str:
    """`shown`, and all digits where it leaves some out, so that it can serve as a bound: 203.4M (203,389,568)."""
    short, digits = shown(name, value), f"{value:,}"
    return short if short.startswith(digits) else f"{short} ({digits})"


def bounds(name: str, window: Window) -> str:
    """A window in words: "<= 300M", "20 ms to 25 ms"."""
    low, high = window
    if math.isinf(low):
        return f"<= {shown(name, high)}"
    return f">= {shown(name, low)}" if math.isinf(high) else f"{shown(name, low)} to {shown(name, high)}"


def window(name: str, value: Limit | Sequence[Limit], largest: float) -> Window | None:
    """One bound or a pair of them as (lowest, highest) in the measure's own unit; None: no bound.

    Args:
        name: the measure, an entry of `constraint`.
        largest: its value for the largest subnet, to which fractions refer.

    Raises:
        UserError: if a value cannot be read or is not positive, or the window is empty.
    """
    key = f"constraint.{name}"
    if value is None:
        return None
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != 2:
            raise UserError(f"{key}={list(value)}: give one upper bound, or a window [low, high]")
        low = -math.inf if value[0] is None else _absolute(name, value[0], largest)
        high = math.inf if value[1] is None else _absolute(name, value[1], largest)
        if low > high:
            raise UserError(f"{key}={list(value)}: the window is empty, give the lower end first")
        return (low, high) if math.isfinite(low) or math.isfinite(high) else None
    return -math.inf, _absolute(name, value, largest)


def _absolute(name: str, value: int | float | str, largest: float) -> float:
    """A bound as an absolute number. Counts up to 1 are fractions of `largest`; ms and MB are so only with a %."""
    counted = name not in SUFFIXES
    example = "0.5 or 50% (of the largest), 300e6 or 300M" if counted else f"25 (in{SUFFIXES[name]}) or 50%"
    parsed: float
    try:
        if isinstance(value, bool):
            raise ValueError
        text = str(value).strip().upper().replace("_", "")
        if text.endswith("%"):
            parsed, counted = float(text[:-1]) / 100 * largest, False
        elif counted and text[-1:] in UNITS:
            parsed = float(text[:-1]) * UNITS[text[-1]]
        else:
            parsed = float(text)
    except ValueError:
        raise UserError(f"constraint.{name}={value}: not a number; give {example}") from None
    if not 0 < parsed < math.inf:
        raise UserError(f"constraint.{name}={value}: must be positive and finite, or null for no bound")
    return parsed * largest if counted and parsed <= 1 else parsed
