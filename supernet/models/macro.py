"""The space of NAS-Bench-Macro (Su et al., CVPR 2021): a chain of layers, each with an operation of its own.

A stem, stages of layers, and a head. Every layer chooses to be an identity or one of some MobileNetV2 blocks. The
blocks of a layer are slices of one block (centre of the kernel, leading expanded channels), or have their own
weights. All 6,561 networks were trained alone on CIFAR-10 by the authors. One YAML file in `configs/space/` is one
space.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from supernet.choices import Choice, Genes, entries, options, unit, whole
from supernet.layers.conv import ConvNormAct
from supernet.layers.head import Head
from supernet.layers.macro import Alternatives
from supernet.space import Arch, Option, Space, Unit
from supernet.specs import ConvSpec, HeadSpec, LinearSpec, MBConvSpec, Plan, ShortcutSpec

IDENTITY = "identity"
BLOCK = re.compile(r"k(\d+)_e(\d+)")  # kernel and expand ratio
PUBLISHED = (IDENTITY, "k3_e3", "k5_e6")  # the digits 0, 1, 2 of the published table


def space(
    name: str,
    resolution: tuple[int, ...],
    operations: tuple[str, ...],
    stem: int,
    stages: Sequence[Mapping[str, Any]],
    head: int,
    entangled: bool = True,
    norm_eps: float = 1e-5,
    num_classes: int = 10,
    in_channels: int = 3,
) -> Space:
    """A search space of chains: the genes are the resolution and, under `blocks`, the operation of every layer.

    An identity in a layer that changes the shape is a 1x1 conv with the layer's stride and a norm. A block is
    1x1 expand, k x k depthwise, 1x1 project, each with a norm, relu after the first two, and an identity shortcut
    where the shapes agree.

    Args:
        name: a word for logs and files.
        resolution: input sides, px.
        operations: what every layer chooses from, small to large: `identity`, and blocks such as `k3_e3`
            (kernel 3, expand ratio 3).
        stem: width of the first 3x3 conv, which has stride 1.
        stages: for each, `width`, the number of layers `blocks`, and the `stride` of the first (default 2).
        head: width of the 1x1 conv before pooling.
        entangled: whether the blocks of a layer share their weights.
        norm_eps: epsilon of the batch norms.

    Drop-path grows linearly with a layer's position, from 0 at the first.

    Raises:
        ValueError: naming the entry that is missing, unknown or impossible.
    """
    config = {"_target_": f"{__name__}.space", **locals()}
    sides = options("resolution", resolution)
    whole("resolution", sides)
    whole("stem, head", (stem, head))
    whole("num_classes, in_channels", (num_classes, in_channels))
    if norm_eps <= 0:
        raise ValueError(f"norm_eps={norm_eps}: must be positive")
    builder = _Builder(
        blocks=_blocks(operations),
        stem=stem,
        layers=_layers(stages, stem),
        head=head,
        entangled=entangled,
        norm_eps=norm_eps,
        num_classes=num_classes,
        in_channels=in_channels,
    )
    genes = Genes()
    side = genes.add("resolution", sides)
    chosen = [genes.add("blocks", operations, i) for i in range(len(builder.layers))]
    return Space(name, genes, builder.units(side, chosen), MacroNet, config)


def parse(text: str, resolution: int = 32) -> Arch:
    """The arch of a key of the published table: one digit for each layer, such as "01202211".

    Raises:
        ValueError: if it holds anything but the digits 0 (identity), 1 (k3_e3) and 2 (k5_e6).
    """
    if not text or set(text) - set("012"):
        raise ValueError(f"{text!r}: a key has one digit for each layer, each 0, 1 or 2, such as 01202211")
    return Arch((("resolution", resolution), ("blocks", tuple(PUBLISHED[int(digit)] for digit in text))))


def arch_string(arch: Arch) -> str:
    """The key of an arch in the published table; see `parse`.

    Raises:
        ValueError: if the arch has an operation that the table has no digit for.
    """
    if other := set(arch["blocks"]) - set(PUBLISHED):
        raise ValueError(f"{sorted(other)[0]} has no digit in the published table, which knows {list(PUBLISHED)}")
    return "".join(str(PUBLISHED.index(operation)) for operation in arch["blocks"])


class MacroNet(nn.Module):
    """The network of a plan: `stem`, `blocks.<i>.<candidate>`, `head`.

    Candidates are `identity` where it is a conv, and `block`, or without sharing the names of all blocks. Built
    from `space.widest` and called with a plan it is the supernet; built from a subnet's plan and called without
    one it is that subnet.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.stem = ConvNormAct(plan["stem"])
        candidates: dict[str, dict[str, ConvSpec | MBConvSpec]] = {}
        for name, spec in plan.layers:
            if name.startswith("blocks."):
                _, layer, candidate = name.split(".")
                candidates.setdefault(layer, {})[candidate] = spec
        # By number, since subnets lack the layers that they skip.
        self.blocks = nn.ModuleDict({i: Alternatives(f"blocks.{i}", specs) for i, specs in candidates.items()})
        self.head = Head(plan["head"])

    def forward(self, x: Tensor, plan: Plan | None = None, dropout: float = 0.0, drop_path: float = 0.0) -> Tensor:
        """Images [B, C, S, S] -> logits [B, classes]."""
        x = self.stem(x, plan["stem"] if plan else None)
        for block in self.blocks.values():
            x = block(x, plan, drop_path)
        return self.head(x, plan["head"] if plan else None, dropout)


@dataclass(frozen=True)
class _Layer:
    """Fixed facts of one layer. `shrink` is by how much the layers before it have divided the side."""

    width_in: int
    width: int
    stride: int
    shrink: int

    @property
    def keeps_shape(self) -> bool:
        return self.stride == 1 and self.width_in == self.width

    def sides(self, resolution: int) -> tuple[int, int]:
        """Of input and output, px. Strided layers round up."""
        return -(-resolution // self.shrink), -(-resolution // (self.shrink * self.stride))


@dataclass(frozen=True)
class _Builder:
    """Turns the data of a space into units."""

    blocks: Mapping[str, tuple[int, int]]  # kernel and expand ratio of every operation that is a block
    stem: int
    layers: Sequence[_Layer]
    head: int
    entangled: bool
    norm_eps: float
    num_classes: int
    in_channels: int

    def units(self, side: Choice, chosen: Sequence[Choice]) -> list[Unit]:
        units = [unit("stem", [side], self._stem)]
        for i, (layer, choice) in enumerate(zip(self.layers, chosen, strict=True)):
            if not layer.keeps_shape:
                units.append(unit(f"blocks.{i}.identity", [side, choice], self._identity(layer)))
            groups = {"block": self.blocks} if self.entangled else {key: {key: self.blocks[key]} for key in self.blocks}
            for name, members in groups.items():
                units.append(unit(f"blocks.{i}.{name}", [side, choice], self._block(i, members)))
        return [*units, unit("head", [side], self._head)]

    def _conv(self, in_channels: int, out_channels: int, size: int, act: str = "identity", **rest: Any) -> ConvSpec:
        return ConvSpec(in_channels, out_channels, size, act=act, norm_eps=self.norm_eps, **rest)

    def _stem(self, resolution: int) -> ConvSpec:
        return self._conv(self.in_channels, self.stem, resolution, "relu", kernel=3)

    def _identity(self, layer: _Layer) -> Callable[..., ConvSpec | None]:
        def spec(resolution: int, operation: Option) -> ConvSpec | None:
            if operation != IDENTITY:
                return None
            size_in, size = layer.sides(resolution)
            return self._conv(layer.width_in, layer.width, size, stride=layer.stride, size_in=size_in)

        return spec

    def _block(self, index: int, members: Mapping[str, tuple[int, int]]) -> Callable[..., MBConvSpec | None]:
        layer = self.layers[index]

        def spec(resolution: int, operation: str) -> MBConvSpec | None:
            if operation not in members:
                return None
            kernel, expand = members[operation]
            size_in, size = layer.sides(resolution)
            middle = layer.width_in * expand
            depthwise = self._conv(
                middle, middle, size, "relu", kernel=kernel, stride=layer.stride, depthwise=True, size_in=size_in
            )
            return MBConvSpec(
                expand=self._conv(layer.width_in, middle, size_in, "relu"),
                depthwise=depthwise,
                se=None,
                project=self._conv(middle, layer.width, size),
                shortcut=ShortcutSpec() if layer.keeps_shape else None,
                drop_path=index / len(self.layers),
            )

        return spec

    def _head(self, resolution: int) -> HeadSpec:
        last = self.layers[-1]
        conv = self._conv(last.width, self.head, last.sides(resolution)[1], "relu")
        return HeadSpec(conv, None, LinearSpec(self.head, self.num_classes))


def _blocks(operations: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Kernel and expand ratio of the operations that are blocks."""
    blocks = {}
    for operation in operations:
        if operation == IDENTITY:
            continue
        match = BLOCK.fullmatch(operation)
        if match is None:
            raise ValueError(f"operations: {operation!r} is unknown; give {IDENTITY}, or blocks such as k3_e3")
        kernel, expand = int(match[1]), int(match[2])
        whole(f"operations: {operation}", (kernel,), odd=True)
        whole(f"operations: {operation}", (expand,))
        blocks[operation] = (kernel, expand)
    return blocks


def _layers(stages: Sequence[Mapping[str, Any]], width_in: int) -> list[_Layer]:
    layers, shrink = [], 1
    for s, data in enumerate(stages):
        where = f"stages[{s}]"
        given = entries(data, where, {"width": None, "blocks": None, "stride": 2})
        for key, value in given.items():
            whole(f"{where}.{key}", (value,))
        for b in range(given["blocks"]):
            stride = given["stride"] if b == 0 else 1
            layers.append(_Layer(width_in, given["width"], stride, shrink))
            width_in, shrink = given["width"], shrink * stride
    if not layers:
        raise ValueError("a space needs at least one stage")
    return layers
