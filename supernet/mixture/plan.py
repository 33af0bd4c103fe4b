"""`SoftPlan`: the plan of a mixture. Modules read it as they read the plan of one subnet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from torch import Tensor

from supernet.mixture.gates import Weights
from supernet.mixture.grid import Grid, grid_of
from supernet.mixture.soften import Build, soften
from supernet.space import Space

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Supports = tuple[tuple[int, ...], ...]


class SoftPlan:
    """Every layer that some option in play has, with gates, under the names of `Plan`.

    Args:
        probs: for every gene the probabilities of the options in `support`.
        support: for every gene the options that are run; one resolution.
        partial: operations on edges run on one channel in so many, see `supernet.layers.partial`.
    """

    def __init__(self, space: Space, probs: Sequence[Tensor], support: Supports, partial: int = 1) -> None:
        self.space, self.support, self.partial = space, support, partial
        self.side = next((support[i][0] for i, gene in enumerate(space.genes) if gene.key == "resolution"), None)
        self._positions = _positions(space)
        self._weights = Weights(probs)
        self._specs: dict[str, Any] = {}

    @property
    def resolution(self) -> int:
        """The side of the square input, px."""
        return self.space.resolution(self.space.decode([options[0] for options in self.support]))

    def get(self, name: str) -> Any:
        """The spec of the layer called `name`, see `supernet.specs.soft`; None where no option in play has it."""
        if name not in self._specs:
            position = self._positions.get(name)
            build = None if position is None else self._build(position)
            self._specs[name] = None if build is None else build(self._weights)
        return self._specs[name]

    def __getitem__(self, name: str) -> Any:
        return self.get(name)

    def weight(self, present: Iterable[str] = (), absent: Iterable[str] = ()) -> float | Tensor:
        """See `Plan.weight`. Certain and impossible are so whatever the probabilities are."""
        signs = [(self._positions[name], True) for name in present]
        signs += [(self._positions[name], False) for name in absent if name in self._positions]
        support = self._of([position for position, _ in signs])
        found = _event(self.space, self.side, tuple(signs), support)
        return found if isinstance(found, float) else self._weights.total(*found)

    def _build(self, position: int) -> Build | None:
        return _build(self.space, position, self.side, self._of([position]))

    def _of(self, units: Sequence[int]) -> Supports:
        """The support of the genes that these units read; nothing of the others, so that caches find equal cases."""
        reads = {gene for unit in units for gene in self.space.units[unit].reads}
        return tuple(options if gene in reads else () for gene, options in enumerate(self.support))


@lru_cache(maxsize=32)
def _positions(space: Space) -> dict[str, int]:
    return {unit.name: i for i, unit in enumerate(space.units)}


@lru_cache(maxsize=2048)
def _grid(space: Space, unit: int, side: int | None) -> Grid:
    return grid_of(space, unit, side)


@lru_cache(maxsize=8192)
def _build(space: Space, unit: int, side: int | None, support: Supports) -> Build | None:
    grid = _grid(space, unit, side)
    return soften(grid, support) if grid.within(support).distinct() else None


@lru_cache(maxsize=8192)
def _event(
    space: Space, side: int | None, signs: tuple[tuple[int, bool], ...], support: Supports
) -> float | tuple[tuple[int, ...], tuple[int, ...]]:
    """Whether layers are there and others are not: 0.0, 1.0, or (genes, their combinations for which it is so)."""
    import numpy as np

    grids = [(_grid(space, unit, side), wanted) for unit, wanted in signs]
    genes = tuple(sorted({gene for grid, _ in grids for gene in grid.genes}))
    shape = [len(space.genes[gene].options) for gene in genes]
    holds = np.ones(shape, dtype=bool)
    for grid, wanted in grids:
        holds &= _over(grid.genes, grid.present, genes) == wanted
    if holds.all():
        return 1.0
    deciding = [axis for axis in range(holds.ndim) if (holds.any(axis) != holds.all(axis)).any()]
    rest = tuple(axis for axis in range(holds.ndim) if axis not in deciding)
    inside: NDArray[np.bool_] = np.asarray(holds.any(rest))[np.ix_(*(support[genes[axis]] for axis in deciding))]
    if not inside.any():
        return 0.0
    return tuple(genes[axis] for axis in deciding), tuple(np.flatnonzero(inside).tolist())


def _over(own: tuple[int, ...], values: NDArray[np.bool_], genes: tuple[int, ...]) -> NDArray[np.bool_]:
    """An array with axes for `own` genes as one with axes for all of `genes`."""
    order = sorted(range(len(own)), key=lambda axis: genes.index(own[axis]))
    lengths = dict(zip(own, values.shape, strict=True))
    return values.transpose(order).reshape([lengths.get(gene, 1) for gene in genes])
