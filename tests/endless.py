"""Plain values that are small, and take for ever to go through."""

from __future__ import annotations

from typing import Any


def shared_lists() -> dict[str, Any]:
    """Lists that hold one list several times, again and again: 2 to the 40th, and 1,000 to the 6th values."""
    twice: Any = [0]
    for _ in range(40):
        twice = [twice, twice]
    wide: Any = [0] * 1000
    for _ in range(5):
        wide = [wide] * 1000
    return {"twice": twice, "wide": wide}
