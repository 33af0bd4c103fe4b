"""Rows of option indices with one gene changed, and what they cost: the moves of a local search."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from supernet.lookup import Lookup
from supernet.space import Space

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@lru_cache(maxsize=32)
def changes(space: Space) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(genes [K], options [K]): every option of every gene with something to choose, in order."""
    import numpy as np

    lengths = [len(gene.options) for gene in space.genes]
    pairs = [(gene, option) for gene, length in enumerate(lengths) if length > 1 for option in range(length)]
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def changed(space: Space, rows: NDArray[np.integer]) -> NDArray[Any]:
    """Every row [N, G] after each of the K `changes`: [N, K, G]."""
    import numpy as np

    genes, options = changes(space)
    moved = np.repeat(np.asarray(rows)[:, None], len(genes), axis=1)
    moved[:, np.arange(len(genes)), genes] = options
    return moved


class Neighbours:
    """One sum of whole numbers after every change: looked up is only what the changed gene is read by.

    Args:
        lookup: of one measure, combined by addition.
    """

    def __init__(self, space: Space, lookup: Lookup) -> None:
        import numpy as np

        (tables,) = lookup.tables
        whole = lookup.dtypes[0]
        # A table of one zero stands last, for genes that no factor reads.
        parts = [np.zeros(1, whole) if table is None else table for table in tables] + [np.zeros(1, whole)]
        self.flat = np.concatenate(parts).astype(whole)
        strides = np.concatenate([lookup.strides, np.zeros((1, len(space.genes)))])
        strides[[i for i, table in enumerate(tables) if table is None]] = 0
        offsets = np.cumsum([0, *(len(part) for part in parts[:-1])])
        genes, options = changes(space)
        reads = strides != 0
        reads[-1, ~reads.any(axis=0)] = True
        change, self.group = np.nonzero(reads[:, genes].T)  # one entry for each table that a change leads elsewhere in
        self.starts = np.searchsorted(change, np.arange(len(genes)))
        gene, option = genes[change], options[change]
        # Places as a matrix product, first those of the rows as they are, then without the changed gene, and its new
        # option's part as a constant.
        others = strides[self.group]
        others[np.arange(len(gene)), gene] = 0
        constants = np.concatenate([offsets, offsets[self.group] + strides[self.group, gene] * option])
        exact = np.float32 if len(self.flat) < 2**24 else np.float64
        self.weights = np.ascontiguousarray(np.concatenate([strides, others]).T, dtype=exact)
        self.constants = constants.astype(exact)

    def __call__(self, rows: NDArray[np.integer]) -> NDArray[Any]:
        """The sums [N, K] for rows [N, G], whose entries must be in range."""
        import numpy as np

        places = rows.astype(self.weights.dtype) @ self.weights
        places += self.constants
        found = self.flat.take(places.astype(np.intp))
        before = found[:, : found.shape[1] - len(self.group)]
        gained = found[:, before.shape[1] :] - before.take(self.group, axis=1)
        if not len(self.starts):
            return gained
        sums: NDArray[Any] = np.add.reduceat(gained, self.starts, axis=1)
        sums += before.sum(axis=1, keepdims=True)
        return sums
