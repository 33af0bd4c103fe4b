"""The ResNet family: Once-for-All's ResNet50-D space and slimmable ResNets.

A stem, stages of bottleneck blocks, and a classifier. Resolution, the number of blocks of a stage, the ratio of
every block's middle width, and a width multiplier (of each part or of the whole network) are chosen; the rest is
fixed data. One YAML file in `configs/space/` is one space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from supernet.choices import Choice, Genes, entries, fixed, options, scaled, unit, whole
from supernet.layers.bottleneck import Bottleneck, PooledHead
from supernet.layers.conv import ConvNormAct
from supernet.layers.stages import Stages
from supernet.space import Space, Unit
from supernet.specs import BottleneckSpec, ConvSpec, LinearSpec, Plan, PooledHeadSpec, ShortcutSpec, make_divisible

ShortcutRule = Literal["pool", "conv"]


@dataclass(frozen=True)
class Stem:
    """The first layers, before a 3x3 max pooling of stride 2.

    Without `middle`: one conv of stride 2. With it: a conv of stride 2 to `middle` channels, a residual conv
    where the chosen `depth` is not 0, and a conv to `width` channels (ResNet-D).
    """

    width: int
    kernel: int
    middle: int | None
    depth: tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """`blocks` that every subnet has, and options for how many more (`depth`). The first block has the stride.

    The middle width of a block is make_divisible(output width x a ratio out of `expand`), or else the base width
    `middle` times the width multiplier.
    """

    width: int
    middle: int | None
    expand: tuple[float, ...]
    blocks: int
    depth: tuple[int, ...]
    stride: int

    @property
    def most(self) -> int:
        """Blocks of the deepest subnet."""
        return self.blocks + self.depth[-1]


def space(
    name: str,
    resolution: tuple[int, ...],
    stem: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
    width_mult: tuple[float, ...],
    choose: Literal["part", "network"] = "part",
    shortcut: ShortcutRule = "pool",
    norm_eps: float = 1e-5,
    num_classes: int = 1000,
    in_channels: int = 3,
) -> Space:
    """A ResNet search space. Every width is make_divisible(base width x multiplier, 8).

    Args:
        name: a word for logs and files.
        resolution: input sides, px.
        stem: base widths `width` and `middle` (optional), `kernel`, options `depth`; see `Stem`.
        stages: for each, the base `width`, `blocks`, `stride`, options `depth` of further blocks (default 0), and
            options `expand` or, with choose="network", a base width `middle`; see `Stage`.
        width_mult: options of the width multipliers.
        choose: "part": the stem's middle, the stem and each stage choose a multiplier of their own, and an arch
            holds its index in `width_mult` (Once-for-All); "network": one multiplier for all (slimmable networks).
        shortcut: in the first block of a stage, "pool": average pooling by the stride and a 1x1 conv with norm
            (ResNet-D); "conv": a strided 1x1 conv with norm.
        norm_eps: epsilon of the batch norms.

    Drop-path grows linearly with a block's position in the largest network, from 0 at the first.

    Raises:
        ValueError: naming the entry that is missing, unknown or impossible.
    """
    config = {
        "_target_": "supernet.models.resnet.space",
        **{key: value for key, value in locals().items() if key != "config"},
    }
    whole("num_classes, in_channels", (num_classes, in_channels))
    if norm_eps <= 0:
        raise ValueError(f"norm_eps={norm_eps}: must be positive")
    if choose not in ("part", "network"):
        raise ValueError(f"choose={choose!r}: part or network")
    parsed = [_stage(data, i, "expand" if choose == "part" else "middle") for i, data in enumerate(stages)]
    if not parsed:
        raise ValueError("a space needs at least one stage")
    builder = _Builder(_stem(stem), parsed, shortcut, norm_eps, num_classes, in_channels)
    choices = _choose(builder, options("resolution", resolution), options("width_mult", width_mult), choose)
    return Space(name, choices.genes, builder.units(choices), ResNet, config)


class ResNet(nn.Module):
    """The network of a plan: `stem.<i>`, `stages.<s>.<b>`, `head`.

    Built from `space.widest` and called with a plan it is the supernet; built from a subnet's plan and called
    without one it is that subnet.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.stem = nn.ModuleDict()  # by number, since subnets without the residual conv lack stem.1
        for name, spec in plan.layers:
            if name.startswith("stem."):
                self.stem[name.split(".")[1]] = ConvNormAct(spec)
        self.stages = Stages(plan, Bottleneck)
        self.head = PooledHead(plan["head"])

    def forward(self, x: Tensor, plan: Plan | None = None, dropout: float = 0.0, drop_path: float = 0.0) -> Tensor:
        """Images [B, C, S, S] -> logits [B, classes]."""
        for key, conv in self.stem.items():
            spec = plan.get(f"stem.{key}") if plan else None
            if plan is None or spec is not None:
                out = conv(x, spec)
                weight = plan.weight([f"stem.{key}"]) if plan else 1.0  # in a mixture, of the one that can be skipped
                x = x + (out if isinstance(weight, float) else out * weight) if key == "1" else out
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = self.stages(x, plan, drop_path)
        return self.head(x, plan["head"] if plan else None, dropout)


@dataclass(frozen=True)
class _Choices:
    """What the layers read."""

    genes: Genes
    resolution: Choice
    stem: tuple[Choice, Choice, Choice]  # middle width, depth, width
    depths: list[Choice]
    expands: list[list[Choice]]  # [stage][block]; of None where the block has a base width instead
    middles: list[Choice]  # of None where the ratio decides
    widths: list[Choice]


@dataclass(frozen=True)
class _Builder:
    """Turns the data of a space into units. Every width, rounding, stride and size is resolved here."""

    stem: Stem
    stages: Sequence[Stage]
    shortcut: ShortcutRule
    norm_eps: float
    num_classes: int
    in_channels: int

    def units(self, choices: _Choices) -> list[Unit]:
        side, widths = choices.resolution, choices.widths
        middle, depth, stem_width = choices.stem
        image = fixed(self.in_channels)
        if self.stem.middle is None:
            units = [unit("stem.0", [side, image, stem_width], self._stem_conv(stride=2, last=True))]
        else:
            units = [
                unit("stem.0", [side, image, middle], self._stem_conv(stride=2)),
                unit("stem.1", [side, middle, middle, depth], self._stem_conv(stride=1)),
                unit("stem.2", [side, middle, stem_width], self._stem_conv(stride=1, last=True)),
            ]
        position = 0
        for s, stage in enumerate(self.stages):
            width_in = widths[s - 1] if s else stem_width
            for b in range(stage.most):
                shape = [choices.expands[s][b], choices.middles[s]]
                more = choices.depths[s] if b >= stage.blocks else fixed(stage.depth[-1])
                reads = [side, width_in if b == 0 else widths[s], widths[s], *shape, more]
                units.append(unit(f"stages.{s}.{b}", reads, self._block(s, b, position)))
                position += 1
        return [*units, unit("head", [widths[-1]], self._head)]

    def _size(self, resolution: int, stage: int) -> int:
        """The side of the feature map that enters `stage`, px. Strided layers and poolings round up."""
        size = -(-resolution // 4)
        for earlier in self.stages[:stage]:
            size = -(-size // earlier.stride)
        return size

    def _conv(self, in_channels: int, out_channels: int, size: int, act: str = "relu", **rest: Any) -> ConvSpec:
        return ConvSpec(in_channels, out_channels, size, act=act, norm_eps=self.norm_eps, **rest)

    def _stem_conv(self, stride: int, last: bool = False) -> Callable[..., ConvSpec | None]:
        def spec(resolution: int, width_in: int, width: int, depth: int = 1) -> ConvSpec | None:
            if not depth:
                return None
            size = -(-resolution // 2)
            return self._conv(
                width_in,
                width,
                size,
                kernel=self.stem.kernel,
                stride=stride,
                size_in=resolution if stride > 1 else None,
                pooled=-(-size // 2) if last else None,
            )

        return spec

    def _block(self, s: int, b: int, position: int) -> Callable[..., BottleneckSpec | None]:
        stage = self.stages[s]
        drop_path = position / sum(other.most for other in self.stages)
        stride = stage.stride if b == 0 else 1

        def spec(
            resolution: int, width_in: int, width: int, expand: float | None, middle: int | None, more: int
        ) -> BottleneckSpec | None:
            if b >= stage.blocks + more:
                return None  # the stage is shallower
            size_in, size = self._size(resolution, s + (b > 0)), self._size(resolution, s + 1)
            inner = middle if expand is None else make_divisible(round(width * expand))
            assert inner is not None
            return BottleneckSpec(
                conv1=self._conv(width_in, inner, size_in),
                conv2=self._conv(inner, inner, size, kernel=3, stride=stride, size_in=size_in),
                conv3=self._conv(inner, width, size, "identity"),
                shortcut=self._around(width_in, width, size_in, size, stride) if b == 0 else ShortcutSpec(),
                drop_path=drop_path,
            )

        return spec

    def _around(self, width_in: int, width: int, size_in: int, size: int, stride: int) -> ShortcutSpec:
        pool = stride if self.shortcut == "pool" else 1
        before = size_in if pool == 1 else size
        conv = self._conv(width_in, width, size, "identity", stride=stride // pool, size_in=before)
        return ShortcutSpec(pool, conv=conv)

    def _head(self, width: int) -> PooledHeadSpec:
        return PooledHeadSpec(LinearSpec(width, self.num_classes))


def _choose(
    builder: _Builder, resolution: Sequence[int | float | str], factors: Sequence[Any], choose: str
) -> _Choices:
    """The genes, in this order: resolution, depth[stem, stages..], expand[block], width[..] or width_mult."""
    genes, stem, stages = Genes(), builder.stem, builder.stages
    side = genes.add("resolution", resolution)
    depth_options = [stem.depth, *(stage.depth for stage in stages)]
    if any(len(values) > 1 for values in depth_options):
        depths = [genes.add("depth", values, i) for i, values in enumerate(depth_options)]
    else:
        depths = [fixed(value) for (value,) in depth_options]
    expands = _expands(genes, stages, depths[1:])
    bases = [stem.width, *(stage.width for stage in stages)]
    bases = bases if stem.middle is None else [stem.middle, *bases]
    if choose == "network":
        factor = genes.add("width_mult", factors)
        widths = [factor.map(scaled(base)) for base in bases]
        middles = [fixed(None) if s.middle is None else factor.map(scaled(s.middle)) for s in stages]
    else:
        index = range(len(factors))
        widths = [genes.add("width", index, i).map(_indexed(base, factors)) for i, base in enumerate(bases)]
        middles = [fixed(None) for _ in stages]
    first = 0 if stem.middle is None else 1
    around_stem = (widths[0], depths[0], widths[first])  # the first is not read without a middle
    return _Choices(genes, side, around_stem, depths[1:], expands, middles, widths[first + 1 :])


def _expands(genes: Genes, stages: Sequence[Stage], depths: Sequence[Choice]) -> list[list[Choice]]:
    """The ratio of every block, one gene each; a block's gene counts while its stage is deep enough."""
    if all(len(stage.expand) <= 1 for stage in stages):  # an empty one: base widths instead
        return [[fixed(next(iter(stage.expand), None))] * stage.most for stage in stages]
    rows: list[list[Choice]] = []
    for stage, depth in zip(stages, depths, strict=True):
        index = sum(len(row) for row in rows)
        row: list[Choice] = []
        for b in range(stage.most):
            parent = depth if b >= stage.blocks else None
            row.append(genes.add("expand", stage.expand, index + b, parent, b - stage.blocks))
        rows.append(row)
    return rows


def _indexed(base: int, factors: Sequence[float]) -> Callable[[int], int]:
    return lambda index: make_divisible(base * factors[index])


def _stem(data: Mapping[str, Any]) -> Stem:
    given = entries(data, "stem", {"width": None, "kernel": 3, "middle": None, "depth": (0,)})
    whole("stem.width", (given["width"],))
    whole("stem.kernel", (given["kernel"],), odd=True)
    depth = _depths("stem.depth", given["depth"])
    if given["middle"] is not None:
        whole("stem.middle", (given["middle"],))
    elif depth != (0,):
        raise ValueError(f"stem.depth={list(depth)}: only a stem with a middle width has a residual conv to choose")
    return Stem(given["width"], given["kernel"], given["middle"], depth)


def _stage(data: Mapping[str, Any], index: int, inside: str) -> Stage:
    """One stage, whose middle widths are said by the entry called `inside`."""
    where = f"stages[{index}]"
    defaults = {"width": None, "middle": None, "expand": None, "blocks": None, "depth": (0,), "stride": 1}
    given = entries(data, where, defaults)
    for key in ("width", "blocks", "stride"):
        whole(f"{where}.{key}", (given[key],))
    other = "middle" if inside == "expand" else "expand"
    if given[inside] is None or given[other] is not None:
        raise ValueError(f"{where}: needs {inside} and no {other}; choose=part goes with expand, network with middle")
    if inside == "middle":
        whole(f"{where}.middle", (given["middle"],))
    ratios: Any = options(f"{where}.expand", given["expand"]) if inside == "expand" else ()
    depth = _depths(f"{where}.depth", given["depth"])
    return Stage(given["width"], given["middle"], ratios, given["blocks"], depth, given["stride"])


def _depths(where: str, values: Any) -> tuple[int, ...]:
    """Ascending and distinct whole numbers, 0 included."""
    result = tuple(values) if isinstance(values, Sequence) and not isinstance(values, str) else (values,)
    whole(where, result, least=0)
    if not result or list(result) != sorted(set(result)):
        raise ValueError(f"{where}={values!r}: give whole numbers, ascending and without repeats")
    return result
