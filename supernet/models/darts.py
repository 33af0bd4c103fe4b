"""The DARTS space (Liu et al., ICLR 2019): a normal and a reduction cell whose graphs are chosen, stacked.

Of every node of a cell two inputs are chosen, and the operations on these; an edge that is not chosen has no layers.
`arch_string` and `parse` translate to and from the published genotypes.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from supernet.choices import Choice, Genes, options, unit, whole
from supernet.layers.bottleneck import PooledHead
from supernet.layers.conv import ConvNormAct
from supernet.layers.darts import INPUTS, NODES, TwoInputCell
from supernet.models.operations import Around, Operation, edge_spec, operations
from supernet.space import Arch, Space, Unit
from supernet.specs import (
    ConvSpec,
    FactorizedReduceSpec,
    JoinSpec,
    LinearSpec,
    NormedPoolSpec,
    Plan,
    PooledHeadSpec,
    PoolSpec,
)

KINDS = ("normal", "reduce")
STEM = 3  # the stem's width, in widths of the first cell
CELLS = 3  # the fewest with both kinds
EDGES = tuple((node, source) for node in range(NODES) for source in range(INPUTS + node))  # in their order
CONCAT = f"range({INPUTS}, {INPUTS + NODES})"


def space(
    name: str,
    resolution: tuple[int, ...],
    channels: int = 16,
    cells: int = 8,
    ops: Sequence[str] = (
        *("max_pool_3x3", "avg_pool_3x3", "skip_connect"),
        *("dil_conv_3x3", "dil_conv_5x5", "sep_conv_3x3", "sep_conv_5x5"),
    ),
    entangled: bool = True,
    affine: bool = False,
    pool_norm: bool = True,
    norm_eps: float = 1e-5,
    num_classes: int = 10,
    in_channels: int = 3,
) -> Space:
    """The DARTS space: stem 3x3 and norm, cells, global average pooling, classifier.

    The cells after a third and after two thirds of the depth are reduction cells: they double the width and halve the
    side. An arch holds for both kinds of cell `<kind>_inputs`, of every node the two nodes that feed it ("0-2": 0 and 1
    are the cell's inputs, 2 its first node), and `<kind>`, the operation of all 14 edges, by target, then by source;
    those of edges that are not among the inputs do not count.

    Args:
        name: a word for logs and files.
        resolution: options of the input side, px.
        channels: width of the first cells.
        cells: how many, at least 3.
        ops: names of operations, see `supernet.models.operations`; from small to large, so that the largest subnet is.
            A `skip_connect` with a stride is a factorised reduction.
        entangled: kernels of one kind are centres of the largest; otherwise every operation has weights of its own.
        affine: the norms in the cells have a scale and a shift, as in training one network alone; the stem's always
            has.
        pool_norm: a norm without scale and shift after every pooling, as in the search.
        norm_eps: epsilon of the batch norms.

    Raises:
        ValueError: naming the entry that is unknown or impossible.
    """
    config = {
        "_target_": "supernet.models.darts.space",
        **{key: value for key, value in locals().items() if key != "config"},
    }
    whole("num_classes, in_channels", (num_classes, in_channels))
    whole("channels", (channels,), least=2)
    whole("cells", (cells,), least=CELLS)
    if norm_eps <= 0:
        raise ValueError(f"norm_eps={norm_eps}: must be positive")
    sides = options("resolution", resolution)
    whole("resolution", sides, least=3)  # the second reduction halves what the first leaves
    parsed = operations("ops", ops, connected=True)
    builder = _Builder(channels, cells, parsed, entangled, affine, pool_norm, norm_eps)
    genes = Genes()
    side = genes.add("resolution", sides)
    chosen = {kind: _choices(genes, kind, parsed) for kind in KINDS}
    return Space(name, genes, builder.units(side, chosen, in_channels, num_classes), DartsNet, config)


def _choices(genes: Genes, kind: str, ops: Sequence[Operation]) -> list[tuple[Choice, Choice]]:
    """(inputs of its target, operation) of every edge of a kind of cell."""
    pairs = [[f"{a}-{b}" for a, b in combinations(range(INPUTS + node), 2)] for node in range(NODES)]
    inputs = [genes.add(f"{kind}_inputs", words, node) for node, words in enumerate(pairs)]
    names = [op.name for op in ops]
    found = []
    for edge, (node, source) in enumerate(EDGES):
        among = [word for word in pairs[node] if source in _sources(word)]
        found.append((inputs[node], genes.add(kind, names, edge, inputs[node], among=among)))
    return found


def _sources(word: str) -> tuple[int, ...]:
    """The nodes of a word such as "0-2"."""
    return tuple(map(int, word.split("-")))


def arch_string(arch: Arch) -> str:
    """The published form: "Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1), ...], ...)"; sources ascend."""
    parts = []
    for kind in KINDS:
        names = dict(zip(EDGES, arch[kind], strict=True))
        chosen = [(node, source) for node, word in enumerate(arch[f"{kind}_inputs"]) for source in _sources(word)]
        pairs = [(names[edge], edge[1]) for edge in chosen]
        parts += [f"{kind}={pairs}", f"{kind}_concat={CONCAT}"]
    return f"Genotype({', '.join(parts)})"


def parse(text: str) -> dict[str, Any]:
    """The readable form of an arch (see `Space.from_json`) from its published genotype. Nothing is executed.

    Raises:
        ValueError: if it is not of the form "Genotype(normal=[(operation, source), ...], normal_concat=range(2, 6),
            reduce=[...], reduce_concat=range(2, 6))" with two sources for each of four nodes.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or ast.unparse(call.func) != "Genotype" or call.args:
            raise ValueError("another expression")
        given = {str(entry.arg): entry.value for entry in call.keywords}
        if given.keys() != {*KINDS, *(f"{kind}_concat" for kind in KINDS)}:
            raise ValueError("other parts")
        cells = [_cell(kind, ast.literal_eval(given[kind])) for kind in KINDS]
        if not all(_joins_all_nodes(given[f"{kind}_concat"]) for kind in KINDS):
            raise ValueError("other nodes")
    except (SyntaxError, ValueError, TypeError, RecursionError) as error:
        form = f"Genotype(normal=[(operation, source), ...], normal_concat={CONCAT}, reduce=[...], ...)"
        raise ValueError(f"{text!r}: not of the form {form} with two sources for each of {NODES} nodes") from error
    return {key: value for cell in cells for key, value in cell.items()}


def _joins_all_nodes(value: ast.expr) -> bool:
    """Whether it is "range(2, 6)" or such a list: another output of the cell is another space."""
    nodes = range(INPUTS, INPUTS + NODES)
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "range":
        return range(*(ast.literal_eval(argument) for argument in value.args)) == nodes
    return list(ast.literal_eval(value)) == list(nodes)


def _cell(kind: str, pairs: Any) -> dict[str, list[str]]:
    """The entries of a cell of 8 pairs (operation, source), two for each node."""
    if len(pairs) != 2 * NODES:
        raise ValueError("other nodes")
    inputs: list[str] = []
    chosen: dict[tuple[int, int], str] = {}
    for node in range(NODES):
        edges = {(node, source): str(name) for name, source in pairs[2 * node : 2 * node + 2]}
        if len(edges) != 2 or not edges.keys() <= set(EDGES):
            raise ValueError("other sources")
        inputs.append("-".join(str(source) for _, source in sorted(edges)))
        chosen |= edges
    # Any operation that the space knows will do for edges that do not count.
    return {f"{kind}_inputs": inputs, kind: [chosen.get(edge, pairs[0][0]) for edge in EDGES]}


class DartsNet(nn.Module):
    """The network of a plan: `stem`, `cells.<i>.pre0`, `.pre1`, `.edges.<e>.<operation>`, `.join`, and `head`.

    Built from `space.widest` and called with a plan it is the supernet; built from a subnet's plan and called
    without one it is that subnet.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.stem = ConvNormAct(plan["stem"])
        cells = sum(name.endswith(".join") for name, _ in plan.layers)
        self.cells = nn.ModuleList(TwoInputCell(plan, f"cells.{i}") for i in range(cells))
        self.head = PooledHead(plan["head"])

    def forward(self, x: Tensor, plan: Plan | None = None, dropout: float = 0.0, drop_path: float = 0.0) -> Tensor:
        """Images [B, C, S, S] -> logits [B, classes]; dropout in the head, drop-path on every edge but identities."""
        last = self.stem(x, plan["stem"] if plan else None)
        if last.device.type == "cpu" and last.stride(1) != 1:
            # Gradients of depthwise convolutions take half the time, or less, in this format; it stays to the end.
            last = last.clone(memory_format=torch.channels_last)
        before = last
        for cell in self.cells:
            before, last = last, cell(before, last, plan, drop_path)
        return self.head(last, plan["head"] if plan else None, dropout)


@dataclass(frozen=True)
class _Builder:
    """Turns the data of a space into units. Every width, stride and size is resolved here."""

    channels: int
    cells: int
    ops: Sequence[Operation]
    entangled: bool
    affine: bool
    pool_norm: bool
    norm_eps: float

    def units(
        self,
        side: Choice,
        chosen: Mapping[str, Sequence[tuple[Choice, Choice]]],
        in_channels: int,
        num_classes: int,
    ) -> list[Unit]:
        stem = partial(ConvSpec, in_channels, STEM * self.channels, kernel=3, norm_eps=self.norm_eps)
        units = [unit("stem", [side], stem)]
        for i in range(self.cells):
            units.append(unit(f"cells.{i}.pre0", [side], partial(self._pre, i, i - 2)))
            units.append(unit(f"cells.{i}.pre1", [side], partial(self._pre, i, i - 1)))
            for edge, (inputs, choice) in enumerate(chosen[KINDS[self._reduces(i)]]):
                for layer in dict.fromkeys(op.layer(self.entangled) for op in self.ops):
                    name = f"cells.{i}.edges.{edge}.{layer}"
                    units.append(unit(name, [side, inputs, choice], self._edge(i, EDGES[edge][1], layer)))
            units.append(unit(f"cells.{i}.join", [side], partial(self._join, i)))
        head = PooledHeadSpec(LinearSpec(self._out(self.cells - 1), num_classes))
        return [*units, unit("head", [side], lambda resolution: head)]

    def _reduces(self, cell: int) -> bool:
        return cell in (self.cells // 3, 2 * self.cells // 3)

    def _halvings(self, cell: int) -> int:
        """How often the side was halved when `cell` is through; the stem, before the first, counts as -1."""
        return sum(self._reduces(earlier) for earlier in range(cell + 1))

    def _width(self, cell: int) -> int:
        """Channels of the cell's nodes."""
        return self.channels * 2 ** self._halvings(cell)

    def _size(self, cell: int, resolution: int) -> int:
        """The side of the cell's output, px. Strided layers round up."""
        return -(-resolution // 2 ** self._halvings(cell))

    def _out(self, cell: int) -> int:
        """Channels of the cell's output; of the stem's before the first cell."""
        return STEM * self.channels if cell < 0 else NODES * self._width(cell)

    def _pre(self, cell: int, source: int, resolution: int) -> ConvSpec | FactorizedReduceSpec:
        """What brings the output of the cell `source` to the width of `cell`, and to the side of its other input."""
        width_in, width = self._out(source), self._width(cell)
        size_in, size = self._size(source, resolution), self._size(cell - 1, resolution)
        if self._halvings(source) < self._halvings(cell - 1):
            return self._reduce(width_in, width, size_in, size)
        return ConvSpec(width_in, width, size, norm_eps=self.norm_eps, affine=self.affine)

    def _reduce(self, width_in: int, width: int, size_in: int, size: int) -> FactorizedReduceSpec:
        half = partial(ConvSpec, width_in, stride=2, norm_eps=None, size_in=size_in)
        even = half(out_channels=width // 2, size=size)
        odd = half(out_channels=width - width // 2, size=size_in // 2)
        return FactorizedReduceSpec(even, odd, self.norm_eps, self.affine)

    def _edge(self, cell: int, source: int, layer: str) -> Callable[[int, str, str], Any]:
        by_name = {op.name: op for op in self.ops}

        def spec(resolution: int, inputs: str, chosen: str) -> Any:
            op = by_name[chosen]
            wanted = source in _sources(inputs) and op.layer(self.entangled) == layer
            return self._operation(cell, source, op, resolution) if wanted else None

        return spec

    def _operation(self, cell: int, source: int, op: Operation, resolution: int) -> Any:
        from_input = source < INPUTS
        size_in, size = self._size(cell - from_input, resolution), self._size(cell, resolution)
        stride, width = 2 if from_input and self._reduces(cell) else 1, self._width(cell)
        if op.kind == "skip_connect" and stride > 1:
            return self._reduce(width, width, size_in, size)
        spec = edge_spec(op, Around(width, size_in, size, stride, self.affine, self.norm_eps))
        return NormedPoolSpec(spec, self.norm_eps) if isinstance(spec, PoolSpec) and self.pool_norm else spec

    def _join(self, cell: int, resolution: int) -> JoinSpec:
        """What the cell holds hardly depends on its edges, since all nodes are kept for the join.

        Where the sides are even, one of these moments holds most, whatever is chosen: the preprocessing of either
        input, the end of the last node but one, the join. Where they are odd, this is at most a little too much.
        """
        before, last = (self._out(i) * self._size(i, resolution) ** 2 for i in (max(cell - 2, -1), cell - 1))
        inputs = self._width(cell) * self._size(cell - 1, resolution) ** 2
        node = self._width(cell) * self._size(cell, resolution) ** 2
        kept = 0 if cell == self.cells - 1 else last  # for the next cell
        first = last + max(before + inputs, 2 * inputs)
        inside = kept + max(3 * inputs + NODES * node, 2 * NODES * node)
        return JoinSpec(NODES, max(first, kept + last + 2 * inputs, inside))
