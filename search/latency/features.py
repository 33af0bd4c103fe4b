"""What a linear model of latency is made of: functions of one unit's genes each, so that every fit is additive.

Two families of columns. `gene_columns`: presence of each unit and its options one by one, each alone and times the
squared input side, which is how work grows; two-way products for small units. `layer_columns`: per kind of primitive
layer in a unit's spec, how often it occurs, its MACs, weights, and the numbers it reads and writes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from supernet.cost import Factor, macs_of
from supernet.space import Space
from supernet.specs import AttentionSpec, ConvSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIDE = "resolution"


@dataclass(frozen=True)
class Columns:
    """Columns of a design matrix, in blocks: each block is a function of the same genes.

    `tables` [(genes read, table [options of each ..., columns of the block])].
    """

    space: Space
    tables: tuple[tuple[tuple[int, ...], NDArray[np.float64]], ...]

    @property
    def count(self) -> int:
        return sum(table.shape[-1] for _, table in self.tables)

    def matrix(self, genes: NDArray[np.integer]) -> NDArray[np.float64]:
        """The columns [N, count] of subnets [N, G]."""
        import numpy as np

        return np.concatenate([table[tuple(genes[:, i] for i in reads)] for reads, table in self.tables], axis=1)

    def factors(self, weights: NDArray[np.float64]) -> list[Factor]:
        """The weighted sum of the columns as factors."""
        factors, first = [], 0
        for reads, table in self.tables:
            last = first + table.shape[-1]
            factors.append(Factor(reads, table @ weights[first:last]))
            first = last
        return factors


def gene_columns(space: Space) -> Columns:
    """Presence and single options of units, by input side; of genes, where a space has no units.

    The columns of units that read the same genes and are present together are the same: they are kept once.
    """
    import numpy as np

    blocks: dict[tuple[int, ...], list[NDArray[np.float64]]] = defaultdict(list)
    seen: set[tuple[tuple[int, ...], bytes]] = set()
    for reads, present in _presences(space):
        for column in _unit_columns(space, reads, present):
            own = tuple(i for axis, i in enumerate(reads) if _varies(column, axis))
            squeezed = column[tuple(slice(None) if i in own else 0 for i in reads)]
            key = (own, squeezed.round(12).tobytes())
            if own and key not in seen:  # what never varies belongs to the intercept
                seen.add(key)
                blocks[own].append(squeezed)
    return Columns(space, tuple((reads, np.stack(columns, axis=-1)) for reads, columns in blocks.items()))


def _presences(space: Space) -> list[tuple[tuple[int, ...], NDArray[np.bool_]]]:
    """(genes read, whether the unit exists for their options) of every unit; of genes in a space without units."""
    import numpy as np

    found = []
    for position, unit in enumerate(space.units):
        present = np.zeros([len(space.genes[i].options) for i in unit.reads], dtype=bool)
        for codes, spec in space.specs(position):
            present[codes] = spec is not None
        found.append((unit.reads, present))
    if found:
        return found
    for i, gene in enumerate(space.genes):
        reads = (i,) if gene.parent is None else (gene.parent, i)
        present = np.ones([len(space.genes[j].options) for j in reads], dtype=bool)
        if gene.parent is not None:
            for code in range(len(space.genes[gene.parent].options)):
                present[code] = gene.counts_at(space.genes[gene.parent].options[code])
        found.append((reads, present))
    return found


def _unit_columns(space: Space, reads: Sequence[int], present: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Tables [options of each gene in `reads`]: see `gene_columns`."""
    import numpy as np

    shape = present.shape
    ones = present.astype(float)
    sides, indicators = [np.ones(shape)], []
    for axis, i in enumerate(reads):
        gene = space.genes[i]
        if gene.key == SIDE:
            work = (np.array(gene.options, dtype=float) / float(gene.options[-1])) ** 2
            powers = [work, work**2, *np.eye(len(work))[1:]] if len(work) <= 8 else [work, work**2]
            sides += [np.broadcast_to(_along(p, axis, len(shape)), shape) for p in powers]
            continue
        choice = np.eye(len(gene.options))[1:]
        indicators.append([np.broadcast_to(_along(row, axis, len(shape)), shape) for row in choice])
    singles = [column for group in indicators for column in group]
    pairs = [a * b for one, other in combinations(indicators, 2) for a in one for b in other]
    slopes = sides[:2]
    columns = [ones * side for side in sides]
    columns += [ones * column * side for column in singles for side in slopes]
    columns += [ones * column * slopes[-1] for column in pairs]
    return columns


def layer_columns(space: Space) -> Columns:
    """Counts and amounts of work of every kind of layer, summed over a unit; amounts in units of the largest subnet's.

    Which units contribute does not matter to a column: the same layer costs the same anywhere.
    """
    import numpy as np

    names: dict[str, int] = {}
    tables = []
    for position, unit in enumerate(space.units):
        shape = [len(space.genes[i].options) for i in unit.reads]
        cells = {codes: work_of(spec) for codes, spec in space.specs(position) if spec is not None}
        for cell in cells.values():
            for name in cell:
                names.setdefault(name, len(names))
        tables.append((unit.reads, shape, cells))
    filled = []
    for reads, shape, cells in tables:
        table = np.zeros([*shape, len(names)])
        for codes, cell in cells.items():
            for name, value in cell.items():
                table[codes][names[name]] = value
        filled.append((reads, table))
    return Columns(space, tuple(filled))


def summed(columns: Columns, genes: NDArray[np.integer]) -> NDArray[np.float64]:
    """Columns [N, C] of `layer_columns` for subnets [N, G]: the sum over units."""
    total: Any = 0
    for reads, table in columns.tables:
        total = total + table[tuple(genes[:, i] for i in reads)]
    return total


def work_of(spec: Any) -> dict[str, float]:
    """Kind of layer and measure -> amount, over everything inside a spec."""
    found: dict[str, float] = defaultdict(float)
    found[f"{type(spec).__name__}:count"] = 1
    for kind, amounts in _leaves(spec):
        for name, value in amounts.items():
            found[f"{kind}:{name}"] += value
    return dict(found)


def _leaves(spec: Any) -> list[tuple[str, Mapping[str, float]]]:
    if isinstance(spec, ConvSpec):
        write = spec.out_channels * spec.size**2
        read = spec.in_channels * (spec.size * spec.stride) ** 2
        if spec.depthwise:
            kind = f"depthwise{spec.kernel}s{spec.stride}"
        elif spec.kernel > 1:
            kind = f"conv{spec.kernel}"
        else:
            kind = "pooled" if spec.size == 1 else "pointwise"
        amounts = {"count": 1.0, "macs": spec.macs / 1e6, "write": write / 1e6, "read": read / 1e6}
        amounts |= {f"{spec.act}": write / 1e6, "weights": spec.params / 1e6}
        return [(kind, amounts)]
    if isinstance(spec, AttentionSpec):
        pairs = spec.tokens**2 * spec.heads
        return [("attention", {"macs": spec.macs / 1e6, "pairs": pairs / 1e6, "heads": spec.heads})]
    kind = type(spec).__name__
    parts = [getattr(spec, f.name) for f in fields(spec)] if is_dataclass(spec) else []
    inner = [part for part in parts if is_dataclass(part)]
    own = [(kind, {"macs": spec.macs / 1e6, "weights": spec.params / 1e6})] if _is_leaf(spec, inner) else []
    return [*own, *(leaf for part in inner for leaf in _leaves(part))]


def _is_leaf(spec: Any, inner: Sequence[Any]) -> bool:
    """Whether the parts of a spec do not already say all of its work: a transformer's layers run once per token."""
    return spec.macs != sum(part.macs for part in inner)


def key_of(spec: Any) -> str:
    """Equal for layers that take equal time: the spec without what acts in training only."""
    return repr(replace(spec, drop_path=0.0) if hasattr(spec, "drop_path") else spec)


def macs_column(space: Space) -> Columns:
    """The MACs in billions as one column, the same in every unit."""
    additive = macs_of(space)
    return Columns(space, tuple((f.reads, f.table[..., None] / 1e9) for f in additive.factors))


def _along(values: NDArray[np.float64], axis: int, rank: int) -> NDArray[np.float64]:
    return values.reshape([-1 if i == axis else 1 for i in range(rank)])


def _varies(table: NDArray[np.float64], axis: int) -> bool:
    import numpy as np

    return bool(np.ptp(table, axis=axis).any())
