"""Local moves on gene rows: into a budget, or towards one bound while the others hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from supernet.space import Space

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Violations = Callable[[NDArray[np.integer]], NDArray[np.float64]]

BLOCK = 64  # rows that move at once
PAIRS = 1024  # random pairs of changes tried where no single one helps
ROUNDS = 64  # of a descent


def repaired(
    space: Space, violations: Violations, rows: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Change genes of rows [N, G], one or two at a time, until nothing is violated.

    A change is drawn from those that make the row feasible at once; else from all that lower the violation; else
    1,024 random pairs of changes are tried in the same way. Every step lowers the violation, so there are finitely
    many. Returns the rows, and which of them are feasible now [N].
    """
    import numpy as np

    rows = rows.copy()
    left = violations(rows)
    moving = np.flatnonzero(left > 0)
    while len(moving):
        block, moving = moving[:BLOCK], moving[BLOCK:]
        while len(block):
            better = _step(single_changes(space, rows[block]), left[block], violations, rng)
            stuck = np.flatnonzero(better[1] >= left[block])
            if len(stuck):
                pairs = _step(_pairs(space, rows[block[stuck]], rng), left[block[stuck]], violations, rng)
                better[0][stuck], better[1][stuck] = pairs
            lower = better[1] < left[block]
            block = block[lower]
            rows[block], left[block] = better[0][lower], better[1][lower]
            block = block[left[block] > 0]
    return rows, left == 0


def descended(space: Space, inside: Violations, objective: Violations, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows [N, G] after steepest descent on `objective` by single changes, up to 64 each, that keep `inside` at 0."""
    import numpy as np

    for _ in range(ROUNDS):
        moved = single_changes(space, rows)  # [N, K, G]
        flat = moved.reshape(-1, rows.shape[1])
        scores = np.where(inside(flat) == 0, objective(flat), np.inf).reshape(moved.shape[:2])
        best = scores.argmin(axis=1)
        every = np.arange(len(rows))
        lower = scores[every, best] < objective(rows)
        if not lower.any():
            break
        rows = np.where(lower[:, None], moved[every, best], rows)
    return rows


def single_changes(space: Space, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Every row [N, G] with one gene set to one of its options: [N, K, G]; K is the number of all options."""
    import numpy as np

    genes, options = _changes(space)
    moved = np.repeat(rows[:, None], len(genes), axis=1)
    moved[:, np.arange(len(genes)), genes] = options
    return moved


def _pairs(space: Space, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Every row [N, G] with 1,024 random pairs of genes changed: [N, 1024, G]."""
    import numpy as np

    genes, options = _changes(space)
    moved = np.repeat(rows[:, None], PAIRS, axis=1)
    for _ in range(2):
        chosen = rng.integers(len(genes), size=PAIRS)
        moved[:, np.arange(PAIRS), genes[chosen]] = options[chosen]
    return moved


def _changes(space: Space) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(gene, option) of all genes with something to choose."""
    import numpy as np

    lengths = [len(gene.options) for gene in space.genes]
    pairs = [(gene, option) for gene, length in enumerate(lengths) if length > 1 for option in range(length)]
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _step(
    moved: NDArray[np.int64], left: NDArray[np.float64], violations: Violations, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Of the candidates [N, K, G] a random feasible one for each row, else a random better one, else any."""
    import numpy as np

    after = violations(moved.reshape(-1, moved.shape[2])).reshape(moved.shape[:2])
    if not moved.shape[1]:
        return moved[:, :0].sum(axis=1), np.full(len(moved), np.inf)
    rank = rng.random(after.shape) + (after < left[:, None]) + (after == 0)
    best = rank.argmax(axis=1)
    every = np.arange(len(moved))
    return moved[every, best], after[every, best]
