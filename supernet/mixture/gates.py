"""Gates on weights: with what probability the options in play use each entry, given that its output is used at all.

For nested slices the mixture sum_i p_i pad(slice_i(W)) is W times a mask: channel c is in every option wider than c,
so its factor is the tail probability S(c) = P(width > c); a ring of a kernel likewise. Independent axes multiply. Where
one gene decides several axes (embedding width and MLP ratio, say) the mask is their joint probability.

The gate of an axis acts once, where the axis is read: rows (output channels) of a weight are not gated, because what
reads them is. Hence a mask is conditional: P(column and ring in use | row in use). Two linear layers then give the very
sum over the subnets that differ in the axis between them; and a norm in between cannot cancel the gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from supernet.mixture.grid import projected, varying

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROW, COLUMN, RING = "row", "column", "ring"


class Weights:
    """The probabilities of one mixture, as far as its options are run.

    Args:
        probs: one vector per gene of the space, of the options that are run.
    """

    def __init__(self, probs: Sequence[Tensor]) -> None:
        self.probs = probs
        self._joint: dict[tuple[int, ...], Tensor] = {}
        self._masks: dict[tuple[object, ...], Tensor] = {}
        self._totals: dict[tuple[tuple[int, ...], tuple[int, ...]], Tensor] = {}

    def joint(self, genes: tuple[int, ...]) -> Tensor:
        """Probabilities of all combinations of independent genes, flat, the last gene fastest."""
        if genes not in self._joint:
            if not genes:
                return self.probs[0].new_ones(1)
            last = self.probs[genes[-1]]
            head = self.joint(genes[:-1])
            self._joint[genes] = last if len(genes) == 1 else (head[:, None] * last).flatten()
        return self._joint[genes]

    def total(self, genes: tuple[int, ...], cases: tuple[int, ...]) -> Tensor:
        """The probability that the genes' combination is one of `cases`, 0-d; cells that agree in it share it."""
        if (genes, cases) not in self._totals:
            joint = self.joint(genes)
            every = len(cases) == len(joint)
            part = joint if every else joint[torch.tensor(cases).to(joint.device, non_blocking=True)]
            self._totals[genes, cases] = part.sum()
        return self._totals[genes, cases]

    def mask(self, term: Term) -> Tensor:
        """The term's factor of a mask; layers that agree in it share it."""
        if term.key not in self._masks:
            self._masks[term.key] = term.mask(self)
        return self._masks[term.key]


@dataclass(frozen=True, eq=False)
class Term:
    """The factor of a mask that some axes have together, because the same genes decide them.

    Attributes:
        genes: those genes.
        lengths: for every axis the length that it has for each case.
        cases: the case that each combination of the options that are run belongs to; combinations without the layer
            are left out.
        combinations: the positions of these combinations; None: all.
    """

    genes: tuple[int, ...]
    lengths: Mapping[str, NDArray[np.int64]]
    cases: NDArray[np.int64]
    combinations: NDArray[np.int64] | None
    _constants: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = field(default_factory=dict)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for equal terms."""
        lengths = tuple((name, values.tobytes()) for name, values in self.lengths.items())
        kept = None if self.combinations is None else self.combinations.tobytes()
        return (self.genes, lengths, self.cases.tobytes(), kept)

    def probabilities(self, weights: Weights) -> Tensor:
        """Of the cases, given that there is the layer [cases]."""
        joint = weights.joint(self.genes)
        cases, combinations, *_ = self._on(joint)
        if self.combinations is not None:
            joint = joint[combinations]
            # A layer that no option in play has is run for its gradient: then as if all that have it were as probable.
            joint = joint + (joint.sum() == 0)
            joint = joint / joint.sum()
        first = next(iter(self.lengths.values()))
        return joint.new_zeros(len(first)).index_add(0, cases, joint)

    def mask(self, weights: Weights) -> Tensor:
        """[rows or 1, columns or 1, kernel or 1, kernel or 1]."""
        p = self.probabilities(weights)
        inside = dict(zip(self.lengths, self._on(p)[2:], strict=True))  # [cases, entries] of every axis
        row, column, ring = inside.get(ROW), inside.get(COLUMN), inside.get(RING)
        side = 1 if ring is None else round(ring.shape[1] ** 0.5)
        if row is None:
            parts = [x for x in (column, ring) if x is not None]
            both = p @ parts[0] if len(parts) == 1 else torch.einsum("k,kc,kt->ct", p, *parts)
            return both.reshape(1, 1 if column is None else column.shape[1], side, side)
        weighted = p[:, None] * row
        weighted = weighted + row * (weighted.sum(0) == 0)  # likewise for a row that is not used
        used = weighted.sum(0)
        if column is None or ring is None:
            other = column if ring is None else ring
            assert other is not None
            joint = weighted.T @ other
        else:
            joint = torch.einsum("kr,kc,kt->rct", weighted, column, ring).flatten(1)
        shape = (row.shape[1], 1 if column is None else column.shape[1], side, side)
        return (joint / used[:, None]).reshape(shape)

    def _on(self, like: Tensor) -> tuple[Tensor, ...]:
        """The constants on a device: cases, combinations, then for every axis which entries each case has."""
        key = (like.device, like.dtype)
        if key not in self._constants:
            no_choice = torch.zeros(0, dtype=torch.int64)
            kept = no_choice if self.combinations is None else torch.as_tensor(self.combinations)
            constants = [torch.as_tensor(self.cases), kept]
            constants += [_entries(name, values).to(like.dtype) for name, values in self.lengths.items()]
            self._constants[key] = tuple(constant.to(like.device) for constant in constants)
        return self._constants[key]


def _entries(axis: str, lengths: NDArray[np.int64]) -> Tensor:
    """Which entries of an axis each length holds [lengths, entries]: leading ones; of kernels, a centred square."""
    longest = int(lengths.max())
    ends = torch.as_tensor(lengths)[:, None]
    if axis != RING:
        return torch.arange(longest) < ends
    offset = torch.arange(longest) * 2 - (longest - 1)
    inside = offset.abs() < ends  # of one dimension, in half steps around the middle
    return (inside[:, :, None] & inside[:, None, :]).flatten(1)


def terms(
    genes: Sequence[int],
    axes: Mapping[str, NDArray[np.int64]],
    present: NDArray[np.bool_],
    support: Sequence[Sequence[int]],
) -> list[Term]:
    """The factors of a mask: one for every set of axes that have genes in common.

    Args:
        genes: positions of the genes that the arrays have axes for.
        axes: the length of each axis over all combinations.
        present: where there is the layer at all.
        support: for every gene of the space the options that are run.
    """
    import numpy as np

    condition = varying(present.astype(np.int64), np.ones_like(present))
    deciding: dict[str, frozenset[int]] = {}
    for name, values in axes.items():
        by = varying(values, present)
        if by:
            deciding[name] = by | condition if by & condition else by
    found = []
    for names, together in _connected(deciding):
        if names != [ROW]:
            found.append(_term(genes, {name: axes[name] for name in names}, present, sorted(together), support))
    return found


def _connected(sets: Mapping[str, frozenset[int]]) -> list[tuple[list[str], frozenset[int]]]:
    """The names whose sets overlap, directly or through others, with the union of their sets."""
    groups: list[tuple[list[str], frozenset[int]]] = []
    for name, members in sets.items():
        touching = [group for group in groups if group[1] & members]
        groups = [group for group in groups if not group[1] & members]
        names = [other for group in touching for other in group[0]]
        groups.append(([*names, name], members.union(*(group[1] for group in touching))))
    return groups


def _term(
    genes: Sequence[int],
    axes: Mapping[str, NDArray[np.int64]],
    present: NDArray[np.bool_],
    together: Sequence[int],
    support: Sequence[Sequence[int]],
) -> Term:
    import numpy as np

    read = tuple(genes[axis] for axis in together)
    kept = np.ix_(*(support[gene] for gene in read))
    columns, there = [], np.zeros(0, dtype=bool)
    for values in axes.values():
        lengths, exists = projected(values, present, together)
        columns.append(lengths[kept].reshape(-1))
        there = exists[kept].reshape(-1)
    rows = np.stack(columns, axis=1)[there]
    unique, cases = np.unique(rows, axis=0, return_inverse=True)
    combinations = None if there.all() and _always(present, together) else np.flatnonzero(there)
    lengths_by_name = {name: unique[:, i] for i, name in enumerate(axes)}
    return Term(read, lengths_by_name, cases.reshape(-1), combinations)


def _always(present: NDArray[np.bool_], together: Sequence[int]) -> bool:
    """Whether these genes leave the layer there whatever they are."""
    rest = tuple(axis for axis in range(present.ndim) if axis not in together)
    return bool(present.any(rest).all())
