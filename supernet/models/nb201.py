"""NAS-Bench-201 (Dong and Yang, ICLR 2020): one cell, chosen once, stacked in three stages.

15,625 networks with published accuracies on CIFAR-10, CIFAR-100 and ImageNet16-120. `arch_string` and `parse`
translate to and from the benchmark's own names of its networks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from supernet.choices import Choice, Genes, options, unit, whole
from supernet.layers.cell import Cell, NormHead, Residual
from supernet.layers.conv import ConvNormAct
from supernet.models.operations import Around, Operation, edge_spec, edge_units, operations
from supernet.space import Arch, Space, Unit
from supernet.specs import (
    ConvSpec,
    JoinSpec,
    LinearSpec,
    NormHeadSpec,
    Plan,
    ResidualSpec,
    ShortcutSpec,
    most_held,
)

STAGES = 3
NODES = 3  # of a cell, its input left out
EDGES = NODES * (NODES + 1) // 2
OPERATION = re.compile(r"([a-z0-9_]+)~([0-9]+)")


def space(
    name: str,
    resolution: tuple[int, ...],
    channels: int = 16,
    cells: int = 5,
    ops: Sequence[str] = ("none", "skip_connect", "avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3"),
    entangled: bool = True,
    affine: bool = False,
    norm_eps: float = 1e-5,
    num_classes: int = 10,
    in_channels: int = 3,
) -> Space:
    """The NAS-Bench-201 space; an arch holds the operations of the six edges of its cell.

    Stem 3x3 and norm; three stages of cells, each after the first with twice the channels and half the side, joined
    by residual blocks of stride 2; norm, relu, global average pooling, classifier.

    Args:
        name: a word for logs and files.
        resolution: options of the input side, px.
        channels: of the first stage.
        cells: of every stage.
        ops: names of operations, see `supernet.models.operations`; from small to large, so that the largest subnet is.
        entangled: 1x1 kernels are the centres of the 3x3; otherwise every operation has weights of its own.
        affine: the norms on the edges have a scale and a shift, as in the benchmark's stand-alone training; those of
            stem, residual blocks and head always have.
        norm_eps: epsilon of the batch norms.

    Raises:
        ValueError: naming the entry that is unknown or impossible.
    """
    config = {
        "_target_": "supernet.models.nb201.space",
        **{key: value for key, value in locals().items() if key != "config"},
    }
    numbers = (channels, cells, num_classes, in_channels)
    whole("channels, cells, num_classes, in_channels", numbers)
    if norm_eps <= 0:
        raise ValueError(f"norm_eps={norm_eps}: must be positive")
    builder = _Builder(*numbers, operations("ops", ops), entangled, affine, norm_eps)
    genes = Genes()
    side = genes.add("resolution", options("resolution", resolution))
    edges = [genes.add("edges", [op.name for op in builder.ops], i) for i in range(EDGES)]
    return Space(name, genes, builder.units(side, edges), partial(CellNet, cells=cells), config)


def arch_string(arch: Arch) -> str:
    """The benchmark's name: "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|", edges by target, then by source."""
    names = iter(arch["edges"])
    nodes = [[f"{next(names)}~{source}" for source in range(target)] for target in range(1, NODES + 1)]
    return "+".join(f"|{'|'.join(node)}|" for node in nodes)


def parse(text: str) -> dict[str, Any]:
    """The readable form of an arch (see `Space.from_json`) that has the benchmark's name `text`.

    Raises:
        ValueError: if it is no such name.
    """
    edges = []
    nodes = text.strip().split("+")
    for target, node in enumerate(nodes, start=1):
        matches = [OPERATION.fullmatch(word) for word in node[1:-1].split("|")]
        found = [(match[1], int(match[2])) for match in matches if match]
        framed = len(node) > 1 and node[0] == node[-1] == "|"
        if not framed or len(nodes) != NODES or [source for _, source in found] != list(range(target)):
            raise ValueError(f"{text!r}: not of the form |op~0|+|op~0|op~1|+|op~0|op~1|op~2|")
        edges += [op for op, _ in found]
    return {"edges": edges}


class CellNet(nn.Module):
    """The network of a plan: `stem`, `stages.<s>.<c>.edges.<e>.<operation>`, `reductions.<s>`, `head`.

    Built from `space.widest` and called with a plan it is the supernet; built from a subnet's plan and called
    without one it is that subnet.

    Args:
        cells: of every stage; a plan does not tell, because a cell whose edges are all "none" has no layers.
    """

    def __init__(self, plan: Plan, cells: int) -> None:
        super().__init__()
        self.stem = ConvNormAct(plan["stem"])
        self.stages = nn.ModuleList(
            nn.ModuleList(Cell(plan, f"stages.{s}.{c}", NODES) for c in range(cells)) for s in range(STAGES)
        )
        self.reductions = nn.ModuleList(Residual(plan[f"reductions.{s}"]) for s in range(STAGES - 1))
        self.head = NormHead(plan["head"])

    def forward(self, x: Tensor, plan: Plan | None = None, dropout: float = 0.0, drop_path: float = 0.0) -> Tensor:
        """Images [B, C, S, S] -> logits [B, classes]; dropout acts in the head, `drop_path` is not used."""
        x = self.stem(x, plan["stem"] if plan else None)
        for s, stage in enumerate(self.stages):
            if s:
                x = self.reductions[s - 1](x, plan[f"reductions.{s - 1}"] if plan else None)
            for cell in stage.children():
                x = cell(x, plan)
        return self.head(x, plan["head"] if plan else None, dropout)


@dataclass(frozen=True)
class _Builder:
    """Turns the data of a space into units. Every width, stride and size is resolved here."""

    channels: int
    cells: int
    num_classes: int
    in_channels: int
    ops: Sequence[Operation]
    entangled: bool
    affine: bool
    norm_eps: float

    def units(self, side: Choice, edges: Sequence[Choice]) -> list[Unit]:
        units = [unit("stem", [side], lambda size: self._conv(self.in_channels, self.channels, size, kernel=3))]
        for s in range(STAGES):
            if s:
                units.append(unit(f"reductions.{s - 1}", [side], self._reduction(s)))
            for c in range(self.cells):
                for e, choice in enumerate(edges):
                    name = f"stages.{s}.{c}.edges.{e}"
                    units += edge_units(name, side, choice, self.ops, self.entangled, self._around(s))
                if s == c == 0:  # all cells hold the same number of maps, and the first stage's are the largest
                    units.append(unit("stages.0.0.join", [side, *edges], self._join()))
        return [*units, unit("head", [side], self._head)]

    def _width(self, stage: int) -> int:
        return self.channels * 2**stage

    def _size(self, resolution: int, stage: int) -> int:
        """The side of a stage's feature maps, px. Strided layers round up."""
        return -(-resolution // 2**stage)

    def _conv(self, in_channels: int, out_channels: int, size: int, **rest: Any) -> ConvSpec:
        return ConvSpec(in_channels, out_channels, size, norm_eps=self.norm_eps, **rest)

    def _around(self, stage: int) -> Callable[[int], Around]:
        def around(resolution: int) -> Around:
            size = self._size(resolution, stage)
            return Around(self._width(stage), size, size, 1, self.affine, self.norm_eps)

        return around

    def _join(self) -> Callable[..., JoinSpec]:
        by_name = {op.name: op for op in self.ops}

        def spec(resolution: int, *names: str) -> JoinSpec:
            around = self._around(0)(resolution)
            held = self.channels * resolution**2
            return JoinSpec(1, most_held([edge_spec(by_name[name], around) for name in names], held, held, 1))

        return spec

    def _reduction(self, stage: int) -> Callable[[int], ResidualSpec]:
        def spec(resolution: int) -> ResidualSpec:
            width_in, width = self._width(stage - 1), self._width(stage)
            size_in, size = self._size(resolution, stage - 1), self._size(resolution, stage)
            shortcut = ConvSpec(width_in, width, size, norm_eps=None)
            return ResidualSpec(
                conv1=self._conv(width_in, width, size, kernel=3, stride=2, size_in=size_in),
                conv2=self._conv(width, width, size, kernel=3),
                shortcut=ShortcutSpec(pool=2, conv=shortcut),
            )

        return spec

    def _head(self, resolution: int) -> NormHeadSpec:
        width = self._width(STAGES - 1)
        norm = self._conv(width, width, self._size(resolution, STAGES - 1))
        return NormHeadSpec(norm, LinearSpec(width, self.num_classes))
