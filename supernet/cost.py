"""What a subnet costs: MACs and parameters of a plan, and any additive cost of whole populations at once.

A cost that is a sum over layers depends on a handful of genes per layer. `Additive` tabulates the layers over those
genes once per space and then only looks up and adds. MACs and parameters read the specs' own formulae.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from supernet.space import Space
from supernet.specs import Plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Cost(NamedTuple):
    """Multiply-accumulates for one image, and trainable parameters. Integers."""

    macs: int
    params: int


class Measure(Protocol):
    """One number per subnet, known without running it: MACs, parameters, predicted latency, memory."""

    def batch(self, genes: NDArray[np.integer]) -> NDArray[Any]:
        """Its values [N] for N subnets given as option indices [N, G] (see `Space.encode`), canonical or not."""


@dataclass(frozen=True)
class Factor:
    """A function of a few genes: `table` has one axis for each gene in `reads`, as long as the gene has options."""

    reads: tuple[int, ...]
    table: NDArray[Any]


class Additive:
    """A measure that is a constant plus a sum of factors."""

    def __init__(self, space: Space, factors: Iterable[Factor], offset: float = 0) -> None:
        self.space, self.offset = space, offset
        self.factors = merged(factors)

    @staticmethod
    def of_units(space: Space, part: Callable[[str, Any], float], dtype: Any, offset: float = 0) -> Additive:
        """The sum over units of `part(name of the unit, spec)`; units that a subnet skips count nothing."""
        return Additive(space, unit_factors(space, part, dtype), offset)

    def batch(self, genes: NDArray[np.integer]) -> NDArray[Any]:
        """See `Measure.batch`.

        Raises:
            ValueError: if the shape does not fit the space, or an index is out of range.
        """
        return total(self.space, self.factors, genes) + self.offset


def unit_factors(space: Space, part: Callable[[str, Any], float], dtype: Any) -> list[Factor]:
    """One factor per unit: `part(name, spec)` over the options of the genes that it reads."""
    import numpy as np

    factors = []
    for position, unit in enumerate(space.units):
        table = np.zeros([len(space.genes[i].options) for i in unit.reads], dtype=dtype)
        for codes, spec in space.specs(position):
            if spec is not None:
                table[codes] = part(unit.name, spec)
        factors.append(Factor(unit.reads, table))
    return factors


def merged(factors: Iterable[Factor]) -> tuple[Factor, ...]:
    """The same sum in fewer factors: those that read the same genes are added up."""
    tables: dict[tuple[int, ...], NDArray[Any]] = {}
    for factor in factors:
        tables[factor.reads] = tables[factor.reads] + factor.table if factor.reads in tables else factor.table
    return tuple(Factor(reads, table) for reads, table in tables.items())


def total(space: Space, factors: Sequence[Factor], genes: NDArray[np.integer]) -> NDArray[Any]:
    """The sum of factors [N] for option indices [N, G]."""
    import numpy as np

    genes = np.asarray(genes)
    limits = np.array([len(gene.options) for gene in space.genes])
    if genes.ndim != 2 or genes.shape[1] != len(limits):
        raise ValueError(f"expected genes of shape [N, {len(limits)}], got {list(genes.shape)}")
    if genes.size and ((genes < 0).any() or (genes >= limits).any()):
        raise ValueError("an option index is out of range")
    columns = np.ascontiguousarray(genes.T.astype(np.intp))
    sums = np.zeros(len(genes), dtype=np.result_type(*(factor.table for factor in factors)))
    for factor in factors:
        row = np.zeros(len(genes), dtype=np.intp)
        for gene, length in zip(factor.reads, factor.table.shape, strict=True):
            row = row * length + columns[gene]
        sums += factor.table.reshape(-1)[row]
    return sums


@lru_cache(maxsize=32)
def macs_of(space: Space) -> Additive:
    """Multiply-accumulates for one image."""
    import numpy as np

    return Additive.of_units(space, lambda name, spec: spec.macs, np.int64)


@lru_cache(maxsize=32)
def params_of(space: Space) -> Additive:
    """Trainable parameters."""
    import numpy as np

    return Additive.of_units(space, lambda name, spec: spec.params, np.int64)


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
        return macs_of(space).batch(genes), params_of(space).batch(genes)


cost = _CostFunction()
