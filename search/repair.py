"""Local moves on gene rows: into a budget, or towards one bound while the others hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from supernet.neighbours import changed, changes
from supernet.space import Space

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Violations = Callable[[NDArray[np.integer]], NDArray[np.float64]]  # [N, G] -> [N]
    Around = Callable[[NDArray[np.integer]], NDArray[np.float64]]  # [N, G] -> [N, K], after each of the K changes

BLOCK = 64  # rows that move at once
PAIRS = 1024  # random pairs of changes tried where no single one helps
ROUNDS = 64  # of a descent


def repaired(
    space: Space,
    violations: Violations,
    rows: NDArray[np.int64],
    rng: np.random.Generator,
    around: Around | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Change genes of rows [N, G], one or two at a time, until nothing is violated.

    A change is drawn from those that make the row feasible at once; else from all that lower the violation; else
    1,024 random pairs of changes are tried in the same way. Every step lowers the violation, so there are finitely
    many. Returns the rows, and which of them are feasible now [N].

    Args:
        violations: by how much rows are outside.
        around: the same of all rows with one gene changed (see `supernet.neighbours.changes`), where there is a
            faster way than to make these rows.
    """
    import numpy as np

    rows = rows.copy()
    left = violations(rows)
    genes, options = changes(space)
    moving = np.flatnonzero(left > 0) if len(genes) else np.zeros(0, dtype=np.int64)
    while len(moving):
        block, moving = moving[:BLOCK], moving[BLOCK:]
        while len(block):
            moved = rows[block]
            best, after = _pick(_around(space, violations, around, moved), left[block], rng)
            lower = after < left[block]
            stuck = np.flatnonzero(~lower)
            pairs = _pairs(space, moved[stuck], rng) if len(stuck) else None
            moved[np.arange(len(block)), genes[best]] = options[best]
            if pairs is not None:
                among, after[stuck] = _pick(_each(violations, pairs), left[block[stuck]], rng)
                moved[stuck] = pairs[np.arange(len(stuck)), among]
                lower = after < left[block]
                block, moved, after = block[lower], moved[lower], after[lower]
            rows[block], left[block] = moved, after
            block = block[after > 0]
    return rows, left == 0


def descended(space: Space, inside: Violations, objective: Violations, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows [N, G] after steepest descent on `objective` by single changes, up to 64 each, that keep `inside` at 0."""
    import numpy as np

    for _ in range(ROUNDS):
        moved = changed(space, rows)  # [N, K, G]
        flat = moved.reshape(-1, rows.shape[1])
        scores = np.where(inside(flat) == 0, objective(flat), np.inf).reshape(moved.shape[:2])
        best = scores.argmin(axis=1)
        every = np.arange(len(rows))
        lower = scores[every, best] < objective(rows)
        if not lower.any():
            break
        rows = np.where(lower[:, None], moved[every, best], rows)
    return rows


def _pairs(space: Space, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Every row [N, G] with 1,024 random pairs of genes changed: [N, 1024, G]."""
    import numpy as np

    genes, options = changes(space)
    moved = np.repeat(rows[:, None], PAIRS, axis=1)
    for _ in range(2):
        chosen = rng.integers(len(genes), size=PAIRS)
        moved[:, np.arange(PAIRS), genes[chosen]] = options[chosen]
    return moved


def _around(
    space: Space, violations: Violations, around: Around | None, rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    return _each(violations, changed(space, rows)) if around is None else around(rows)


def _each(violations: Violations, moved: NDArray[np.int64]) -> NDArray[np.float64]:
    """The violations [N, K] of candidates [N, K, G]."""
    return violations(moved.reshape(-1, moved.shape[2])).reshape(moved.shape[:2])


def _pick(
    after: NDArray[np.float64], left: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Of violations [N, K] a random feasible one of each row, else a random one below `left` [N], else any.

    Returns which [N], and the violation there [N].
    """
    import numpy as np

    rank = rng.random(after.shape) + (after < left[:, None]) + (after == 0)
    best = rank.argmax(axis=1)
    return best, after[np.arange(len(after)), best]
