"""What a subnet costs: MACs, parameters, size, activations, and any sum or maximum over layers, of whole populations.

A cost that is a sum over layers depends on a handful of genes per layer. `Additive` tabulates the layers over those
genes once per space and then only looks up and adds; `Peak` does the same for maxima. What a layer costs is said by
the specs' own formulae.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from supernet.lookup import Factor, Lookup, merged
from supernet.neighbours import Neighbours, changed
from supernet.space import Space
from supernet.specs import Plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Additive", "Cost", "Factor", "Measure", "Peak", "cost", "macs_of", "memory_of", "params_of", "size_of"]

MEGABYTE = 1e6


class Cost(NamedTuple):
    """Multiply-accumulates for one image, and trainable parameters. Integers."""

    macs: int
    params: int


class Measure(Protocol):
    """One number per subnet, known without running it: MACs, parameters, predicted latency, memory."""

    def batch(self, genes: NDArray[np.integer]) -> NDArray[Any]:
        """Its values [N] for N subnets given as option indices [N, G] (see `Space.encode`), canonical or not."""


class Additive:
    """A measure that is a constant plus a sum of factors, in multiples of `unit`: (offset + sum) / unit."""

    def __init__(self, space: Space, factors: Iterable[Factor], offset: float = 0, unit: float = 1) -> None:
        import numpy as np

        self.space, self.offset, self.unit = space, offset, unit
        self.factors = merged(tuple(factors), np.add)

    @staticmethod
    def of_units(
        space: Space, part: Callable[[str, Any], float], dtype: Any, offset: float = 0, unit: float = 1
    ) -> Additive:
        """The sum over units of `part(name of the unit, spec)`; units that a subnet skips count nothing."""
        return Additive(space, unit_factors(space, part, dtype), offset, unit)

    def batch(self, genes: NDArray[np.integer]) -> NDArray[Any]:
        """See `Measure.batch`.

        Raises:
            ValueError: if the shape does not fit the space, or an index is out of range.
        """
        (total,) = self._lookup(genes)
        return self.of_total(total)

    def around(self, genes: NDArray[np.integer]) -> NDArray[Any]:
        """Its values [N, K] after each change of one gene, see `supernet.neighbours.changes`, of N subnets [N, G].

        The same numbers as `batch` has of the changed rows, for rows in range; whole numbers are had from the few
        factors that change.
        """
        import numpy as np

        if np.issubdtype(self._lookup.dtypes[0], np.integer):
            return self.of_total(self._neighbours(np.asarray(genes)))
        return self.batch(changed(self.space, genes).reshape(-1, len(self.space.genes))).reshape(len(genes), -1)

    def of_total(self, total: NDArray[Any]) -> NDArray[Any]:
        """The measure's values where the factors add up to `total`. Whole numbers stay whole without a unit."""
        if self.offset:
            total = total + self.offset
        return total if self.unit == 1 else total / self.unit

    @cached_property
    def _lookup(self) -> Lookup:
        import numpy as np

        return Lookup(self.space, [(self.factors, np.add)])

    @cached_property
    def _neighbours(self) -> Neighbours:
        return Neighbours(self.space, self._lookup)


class Peak:
    """A measure that is the maximum of its factors, in multiples of `unit`."""

    def __init__(self, space: Space, factors: Iterable[Factor], unit: float = 1) -> None:
        import numpy as np

        self.space, self.unit = space, unit
        self.factors = merged(tuple(factors), np.maximum)

    @staticmethod
    def of_units(space: Space, part: Callable[[str, Any], float], dtype: Any, unit: float = 1) -> Peak:
        """The maximum over units of `part(name of the unit, spec)`, not below 0."""
        return Peak(space, unit_factors(space, part, dtype), unit)

    def batch(self, genes: NDArray[np.integer]) -> NDArray[Any]:
        """See `Measure.batch`.

        Raises:
            ValueError: if the shape does not fit the space, or an index is out of range.
        """
        (most,) = self._lookup(genes)
        return self.of_total(most)

    def of_total(self, most: NDArray[Any]) -> NDArray[Any]:
        """The measure's values where `most` is the largest factor."""
        return most if self.unit == 1 else most / self.unit

    @cached_property
    def _lookup(self) -> Lookup:
        import numpy as np

        return Lookup(self.space, [(self.factors, np.maximum)])


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


@lru_cache(maxsize=32)
def size_of(space: Space) -> Additive:
    """MB (10^6 bytes) of the exported tensors: parameters and norm statistics in fp32."""
    import numpy as np

    return Additive.of_units(space, lambda name, spec: spec.bytes, np.int64, unit=MEGABYTE)


@lru_cache(maxsize=32)
def memory_of(space: Space) -> Peak:
    """MB (10^6 bytes) of the activations held at a time on one image, in fp32: the most over all layers.

    What is held: the input and output of the layer that runs, and what a residual keeps. The rules are those at the
    top of `supernet.specs.base`; weights, and the workspace of a particular kernel, do not count.
    """
    import numpy as np

    return Peak.of_units(space, lambda name, spec: 4 * spec.activations, np.int64, unit=MEGABYTE)


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
        macs, params = _both(space)(genes)
        return macs, params


@lru_cache(maxsize=32)
def _both(space: Space) -> Lookup:
    import numpy as np

    return Lookup(space, [(macs_of(space).factors, np.add), (params_of(space).factors, np.add)])


cost = _CostFunction()
