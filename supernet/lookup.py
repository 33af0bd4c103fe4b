"""Sums and maxima of factors for many gene rows at once, at the speed of the cache.

Factors are first joined into a few larger tables, as long as these stay small: a row of genes then costs a handful
of lookups. Several measures of one space share the work of finding their places in the tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

from supernet.space import Space

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

JOINED = 2**13  # entries of a joined table; numbers of 8 bytes: 64 kB
CHUNK = 8192  # rows whose intermediate results stay in the cache


@dataclass(frozen=True)
class Factor:
    """A function of a few genes: `table` has one axis for each gene in `reads`, as long as the gene has options."""

    reads: tuple[int, ...]
    table: NDArray[Any]

    def over(self, genes: Sequence[int]) -> NDArray[Any]:
        """The table with one axis for each of `genes`, which hold all that it reads; length 1 for the others."""
        order = sorted(range(len(self.reads)), key=lambda axis: genes.index(self.reads[axis]))
        lengths = dict(zip(self.reads, self.table.shape, strict=True))
        return self.table.transpose(order).reshape([lengths.get(gene, 1) for gene in genes])


def merged(factors: Iterable[Factor], combine: np.ufunc) -> tuple[Factor, ...]:
    """The same combination in fewer factors: one is absorbed by another that reads all its genes."""
    kept: list[Factor] = []
    for factor in sorted(factors, key=lambda factor: -len(factor.reads)):
        home = next((i for i, other in enumerate(kept) if set(factor.reads) <= set(other.reads)), None)
        if home is None:
            kept.append(factor)
        else:
            reads = kept[home].reads
            kept[home] = Factor(reads, combine(kept[home].table, factor.over(reads)))
    return tuple(sorted(kept, key=lambda factor: _first(factors, factor)))


class Lookup:
    """The values of some measures, each given as (its factors, np.add or np.maximum)."""

    def __init__(self, space: Space, measures: Sequence[tuple[Sequence[Factor], np.ufunc]]) -> None:
        import numpy as np

        self.limits = np.array([len(gene.options) for gene in space.genes], dtype=np.int64)
        self.combine = [combine for _, combine in measures]
        reads = [factor.reads for factors, _ in measures for factor in factors]
        self.groups = _groups(reads, self.limits.tolist())
        self.tables: list[list[NDArray[Any] | None]] = []  # [measure][group]; flat
        for factors, combine in measures:
            left = list(factors)
            row: list[NDArray[Any] | None] = []
            for group in self.groups:
                inside = [factor for factor in left if set(factor.reads) <= set(group)]
                left = [factor for factor in left if not set(factor.reads) <= set(group)]
                row.append(_joined(inside, group, self.limits[list(group)].tolist(), combine))
            self.tables.append(row)
        self.dtypes = [np.result_type(np.int64, *(f.table for f in factors)) for factors, _ in measures]
        # Places in tables as a matrix product: whole numbers below 2^13 are exact in single precision.
        self.strides = np.zeros((len(self.groups), len(space.genes)), dtype=np.float32)
        for strides, group in zip(self.strides, self.groups, strict=True):
            strides[list(group)] = np.cumprod([1, *self.limits[list(group)][:0:-1]])[::-1]

    def __call__(self, genes: NDArray[np.integer]) -> list[NDArray[Any]]:
        """[N] of each measure for option indices [N, G].

        Raises:
            ValueError: if the shape does not fit the space, or an index is out of range.
        """
        import numpy as np

        genes = np.asarray(genes)
        if genes.ndim != 2 or genes.shape[1] != len(self.limits):
            raise ValueError(f"expected genes of shape [N, {len(self.limits)}], got {list(genes.shape)}")
        values = [np.zeros(len(genes), dtype) for dtype in self.dtypes]
        for start in range(0, len(genes), CHUNK):
            places = self.places(genes[start : start + CHUNK])
            for out, tables, combine in zip(values, self.tables, self.combine, strict=True):
                found = [table.take(place) for table, place in zip(tables, places, strict=True) if table is not None]
                if found:
                    out[start : start + CHUNK] = reduce(combine, found)
        return values

    def places(self, genes: NDArray[np.integer]) -> NDArray[np.intp]:
        """Where in the table of each group the rows [N, G] are found: [groups, N].

        Raises:
            ValueError: if an index is out of range.
        """
        import numpy as np

        if (genes < 0).any() or (genes >= self.limits).any():
            raise ValueError("an option index is out of range")
        return (self.strides @ genes.astype(np.float32).T).astype(np.intp)


def _first(factors: Iterable[Factor], factor: Factor) -> int:
    """Where in `factors` the first stands that reads the same genes."""
    return next(i for i, other in enumerate(factors) if other.reads == factor.reads)


def _groups(reads: Sequence[tuple[int, ...]], limits: Sequence[int]) -> list[tuple[int, ...]]:
    """Sets of genes, each with few combinations, that together hold every entry of `reads`."""

    def size(genes: Iterable[int]) -> int:
        return math.prod(limits[gene] for gene in genes)

    groups: list[dict[int, None]] = []
    for entry in dict.fromkeys(reads):
        wider = [{**group, **dict.fromkeys(entry)} for group in groups]
        best = min(range(len(groups)), key=lambda i: size(wider[i]) / size(groups[i]), default=None)
        if best is not None and size(wider[best]) <= max(JOINED, size(groups[best])):
            groups[best] = wider[best]
        else:
            groups.append(dict.fromkeys(entry))
    return [tuple(group) for group in groups]


def _joined(
    factors: Sequence[Factor], group: tuple[int, ...], shape: Sequence[int], combine: np.ufunc
) -> NDArray[Any] | None:
    """One flat table over all combinations of the genes of `group`; None without factors."""
    import numpy as np

    if not factors:
        return None
    table = reduce(combine, (factor.over(group) for factor in factors))
    return np.ascontiguousarray(np.broadcast_to(table, shape)).reshape(-1)
