"""Stacked cells: convolutional networks whose cells are small graphs with a chosen operation on every edge.

The toy cell space of TangleNAS (three cells for Fashion-MNIST, 4,096 networks with published accuracies) is one; other
lists of operations, numbers of nodes and cells are others. One YAML file in `configs/space/` is one space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from supernet.choices import Choice, Genes, entries, options, unit, whole
from supernet.layers.cell import Cell, FlatHead
from supernet.models.operations import Around, Operation, edge_spec, edge_units, operations
from supernet.space import Space, Unit
from supernet.specs import ConvSpec, FlatHeadSpec, JoinSpec, LinearSpec, Plan, most_held

KINDS = ("normal", "reduce")


@dataclass(frozen=True)
class CellData:
    """One cell: `kind` says whose choices it follows, and that operations on the input of a "reduce" cell stride by 2.

    `width`: channels of every node; the cell's output has those of all its nodes together.
    """

    kind: str
    width: int

    @property
    def stride(self) -> int:
        return 2 if self.kind == "reduce" else 1


def space(
    name: str,
    resolution: tuple[int, ...],
    cells: Sequence[Mapping[str, Any]],
    ops: Sequence[str],
    nodes: int = 2,
    hidden: int = 128,
    entangled: bool = True,
    affine: bool = False,
    norm_eps: float = 1e-5,
    num_classes: int = 10,
    in_channels: int = 1,
) -> Space:
    """A space of stacked cells; an arch holds the operations of a normal and of a reduction cell.

    Every cell is relu, 1x1, norm to its width, then the nodes, each with an edge from every node before it, then
    dropout. The head is max pooling, a hidden linear layer, dropout and the classifier.

    Args:
        name: a word for logs and files.
        resolution: the input side, px: one, because the hidden layer reads every pixel.
        cells: for each, `kind` ("normal" or "reduce") and `width`; see `CellData`.
        ops: names of operations, see `supernet.models.operations`; from small to large, so that the largest subnet is.
        nodes: of a cell, its input left out.
        hidden: width of the hidden layer.
        entangled: kernels of one kind are centres of the largest; otherwise every operation has weights of its own.
        affine: norms have a scale and a shift.
        norm_eps: epsilon of the batch norms.

    Raises:
        ValueError: naming the entry that is missing, unknown or impossible.
    """
    config = {
        "_target_": "supernet.models.cell.space",
        **{key: value for key, value in locals().items() if key != "config"},
    }
    whole("nodes, hidden, num_classes, in_channels", (nodes, hidden, num_classes, in_channels))
    if norm_eps <= 0:
        raise ValueError(f"norm_eps={norm_eps}: must be positive")
    sides = options("resolution", resolution)
    if len(sides) != 1:
        raise ValueError(f"resolution={list(sides)}: this family has weights for one resolution only")
    parsed = [_cell(data, i) for i, data in enumerate(cells)]
    if not parsed:
        raise ValueError("a space needs at least one cell")
    builder = _Builder(parsed, operations("ops", ops, connected=True), nodes, hidden, entangled, affine, norm_eps)
    if builder.size(int(sides[0]), len(parsed)) < 2:
        raise ValueError(f"resolution={list(sides)}: too small for these cells and a pooling by 2; use a larger one")
    genes = Genes()
    side = genes.add("resolution", sides)
    edges = range(nodes * (nodes + 1) // 2)
    kinds = [kind for kind in KINDS if any(cell.kind == kind for cell in parsed)]
    chosen = {kind: [genes.add(kind, [op.name for op in builder.ops], i) for i in edges] for kind in kinds}
    return Space(name, genes, builder.units(side, chosen, in_channels, num_classes), CellNet, config)


class CellNet(nn.Module):
    """The network of a plan: `cells.<i>.pre`, `cells.<i>.edges.<e>.<operation>`, `cells.<i>.join`, `head`.

    Built from `space.widest` and called with a plan it is the supernet; built from a subnet's plan and called
    without one it is that subnet. Dropout acts after every cell and in the head.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        joins = [spec for name, spec in plan.layers if name.endswith(".join")]
        self.cells = nn.ModuleList(Cell(plan, f"cells.{i}", spec.count) for i, spec in enumerate(joins))
        self.head = FlatHead(plan["head"])

    def forward(self, x: Tensor, plan: Plan | None = None, dropout: float = 0.0, drop_path: float = 0.0) -> Tensor:
        """Images [B, C, S, S] -> logits [B, classes]; `drop_path` is not used."""
        for cell in self.cells:
            x = cell(x, plan, dropout)
        return self.head(x, plan["head"] if plan else None, dropout)


@dataclass(frozen=True)
class _Builder:
    """Turns the data of a space into units. Every width, stride and size is resolved here."""

    cells: Sequence[CellData]
    ops: Sequence[Operation]
    nodes: int
    hidden: int
    entangled: bool
    affine: bool
    norm_eps: float

    def units(
        self, side: Choice, chosen: Mapping[str, Sequence[Choice]], in_channels: int, num_classes: int
    ) -> list[Unit]:
        units = []
        width_in = in_channels
        for i, cell in enumerate(self.cells):
            units.append(unit(f"cells.{i}.pre", [side], self._pre(i, width_in)))
            for edge, choice in enumerate(chosen[cell.kind]):
                around = self._around(i, from_input=self._from_input(edge))
                units += edge_units(f"cells.{i}.edges.{edge}", side, choice, self.ops, self.entangled, around)
            units.append(unit(f"cells.{i}.join", [side, *chosen[cell.kind]], self._join(i)))
            width_in = self.nodes * cell.width
        return [*units, unit("head", [side], self._head(width_in, num_classes))]

    def _from_input(self, edge: int) -> bool:
        """Whether an edge starts at the cell's input: the first of every node's."""
        return edge in {node * (node + 1) // 2 for node in range(self.nodes)}

    def size(self, resolution: int, cell: int) -> int:
        """The side of the feature map that enters `cell`, px. Strided operations round up."""
        for earlier in self.cells[:cell]:
            resolution = -(-resolution // earlier.stride)
        return resolution

    def _pre(self, i: int, width_in: int) -> Callable[[int], ConvSpec]:
        width = self.cells[i].width
        return lambda resolution: ConvSpec(
            width_in, width, self.size(resolution, i), affine=self.affine, norm_eps=self.norm_eps
        )

    def _around(self, i: int, from_input: bool) -> Callable[[int], Around]:
        cell = self.cells[i]
        stride = cell.stride if from_input else 1

        def around(resolution: int) -> Around:
            size_in, size = self.size(resolution, i + (not from_input)), self.size(resolution, i + 1)
            return Around(cell.width, size_in, size, stride, self.affine, self.norm_eps)

        return around

    def _join(self, i: int) -> Callable[..., JoinSpec]:
        by_name = {op.name: op for op in self.ops}
        width = self.cells[i].width

        def spec(resolution: int, *names: str) -> JoinSpec:
            edges = [
                edge_spec(by_name[name], self._around(i, self._from_input(e))(resolution))
                for e, name in enumerate(names)
            ]
            held_in, held = (width * self.size(resolution, at) ** 2 for at in (i, i + 1))
            return JoinSpec(self.nodes, most_held(edges, held_in, held, self.nodes))

        return spec

    def _head(self, channels: int, num_classes: int) -> Callable[[int], FlatHeadSpec]:
        def spec(resolution: int) -> FlatHeadSpec:
            size = self.size(resolution, len(self.cells))
            hidden = LinearSpec(channels * (size // 2) ** 2, self.hidden)
            return FlatHeadSpec(channels, size, hidden, LinearSpec(self.hidden, num_classes))

        return spec


def _cell(data: Mapping[str, Any], index: int) -> CellData:
    where = f"cells[{index}]"
    given = entries(data, where, {"kind": None, "width": None})
    if given["kind"] not in KINDS:
        raise ValueError(f"{where}.kind={given['kind']!r}: {' or '.join(KINDS)}")
    whole(f"{where}.width", (given["width"],))
    return CellData(given["kind"], given["width"])
