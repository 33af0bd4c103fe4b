"""What a layer's sizes depend on: values over all combinations of a few genes, and which of the genes matter.

Everything here is on the host and free of probabilities, so it is worked out once per space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from supernet.space import Space

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ABSENT = -1


@dataclass(frozen=True, eq=False)
class Grid:
    """All combinations of the genes that one unit reads, at one resolution.

    Attributes:
        genes: their positions, that of the resolution left out.
        specs: the unit's spec, or part of a spec, for every combination: an array of objects, one axis per gene; None
            where the subnet has no such layer.
    """

    genes: tuple[int, ...]
    specs: NDArray[np.object_]

    @property
    def present(self) -> NDArray[np.bool_]:
        """Where there is a spec."""
        import numpy as np

        return np.array([spec is not None for spec in self.specs.flat], dtype=bool).reshape(self.specs.shape)

    def part(self, get: Callable[[Any], Any]) -> Grid:
        """`get(spec)` in place of every spec."""
        import numpy as np

        out = np.empty(self.specs.shape, dtype=object)
        for at in np.ndindex(*self.specs.shape):
            out[at] = None if self.specs[at] is None else get(self.specs[at])
        return Grid(self.genes, out)

    def only(self, keep: Callable[[Any], bool]) -> Grid:
        """The specs for which `keep(spec)`; None in place of the others."""
        return self.part(lambda spec: spec if keep(spec) else None)

    def distinct(self) -> list[Any]:
        """The different specs."""
        return list(dict.fromkeys(spec for spec in self.specs.flat if spec is not None))

    def values(self, get: Callable[[Any], int]) -> NDArray[np.int64]:
        """A whole number of every spec; `ABSENT` where there is none."""
        import numpy as np

        found = [ABSENT if spec is None else int(get(spec)) for spec in self.specs.flat]
        return np.array(found, dtype=np.int64).reshape(self.specs.shape)

    def within(self, support: Sequence[Sequence[int]]) -> Grid:
        """Only the options in `support`, given for every gene of the space."""
        import numpy as np

        if not self.genes:
            return self
        return Grid(self.genes, self.specs[np.ix_(*(support[gene] for gene in self.genes))])


def grid_of(space: Space, unit: int, resolution: int | None) -> Grid:
    """The specs of unit number `unit`; `resolution` is the option that the gene of that key has, if there is one."""
    import numpy as np

    reads = space.units[unit].reads
    is_side = [space.genes[gene].key == "resolution" for gene in reads]
    genes = tuple(gene for gene, side in zip(reads, is_side, strict=True) if not side)
    specs = np.empty([len(space.genes[gene].options) for gene in genes], dtype=object)
    for codes, spec in space.specs(unit):
        if all(not side or code == resolution for code, side in zip(codes, is_side, strict=True)):
            specs[tuple(code for code, side in zip(codes, is_side, strict=True) if not side)] = spec
    return Grid(genes, specs)


def varying(values: NDArray[np.int64], present: NDArray[np.bool_]) -> frozenset[int]:
    """The axes along which present values differ, other axes held."""
    import numpy as np

    high = np.where(present, values, np.iinfo(np.int64).min)
    low = np.where(present, values, np.iinfo(np.int64).max)
    found = frozenset(axis for axis in range(values.ndim) if (low.min(axis) < high.max(axis)).any())
    rest = tuple(axis for axis in range(values.ndim) if axis not in found)
    unique = not (low.min(rest) < high.max(rest)).any() if rest else True
    return found if unique else frozenset(range(values.ndim))


def projected(
    values: NDArray[np.int64], present: NDArray[np.bool_], axes: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Values and presence as functions of `axes` alone."""
    import numpy as np

    rest = tuple(axis for axis in range(values.ndim) if axis not in axes)
    return np.asarray(np.where(present, values, ABSENT).max(rest)), np.asarray(present.any(rest))
