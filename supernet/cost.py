"""MACs and parameters of a plan, and of whole populations at once.

Both read the specs' own formulae. A layer's cost depends on a handful of genes, so `cost.batch` tabulates every
unit over those genes once per space and then only looks up and adds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from supernet.space import Space
from supernet.specs import Plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Cost(NamedTuple):
    """Multiply-accumulates for one image, and trainable parameters. Integers."""

    macs: int
    params: int


class _CostFunction:
    """Callable on a plan, with `.batch` for populations."""

    def __call__(self, plan: Plan) -> Cost:
        """The cost of one plan: convolutions and linear layers, no norm, activation or pooling."""
        return Cost(plan.macs, plan.params)

    def batch(self, space: Space, genes: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """MACs [N] and parameters [N] of N subnets given as option indices [N, G] (see `Space.encode`).

        The rows need not be canonical: genes that do not count change nothing.

        Raises:
            ValueError: if the shape does not fit the space, or an index is out of range.
        """
        import numpy as np

        genes = np.asarray(genes)
        limits = np.array([len(gene.options) for gene in space.genes])
        if genes.ndim != 2 or genes.shape[1] != len(limits):
            raise ValueError(f"expected genes of shape [N, {len(limits)}], got {list(genes.shape)}")
        if genes.size and ((genes < 0).any() or (genes >= limits).any()):
            raise ValueError("an option index is out of range")
        total = np.zeros((len(genes), 2), dtype=np.int64)
        columns = np.ascontiguousarray(genes.T.astype(np.intp))
        for reads, strides, table in _tables(space):
            row = np.zeros(len(genes), dtype=np.intp)
            for gene, stride in zip(reads, strides, strict=True):
                row += columns[gene] * stride
            total += table[row]
        return total[:, 0].copy(), total[:, 1].copy()


@lru_cache(maxsize=16)
def _tables(space: Space) -> list[tuple[tuple[int, ...], tuple[int, ...], NDArray[np.int64]]]:
    """(gene positions, strides, [options.., 2] flattened) per set of genes; units that read the same are summed."""
    import numpy as np

    merged: dict[tuple[int, ...], NDArray[np.int64]] = {}
    for position, unit in enumerate(space.units):
        shape = tuple(len(space.genes[i].options) for i in unit.reads)
        table = merged.setdefault(unit.reads, np.zeros((*shape, 2), dtype=np.int64))
        for codes, spec in space.specs(position):
            if spec is not None:
                table[codes] += (spec.macs, spec.params)
    rows = []
    for reads, table in merged.items():
        shape = table.shape[:-1]
        strides = tuple(int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape)))
        rows.append((reads, strides, table.reshape(-1, 2)))
    return rows


cost = _CostFunction()
