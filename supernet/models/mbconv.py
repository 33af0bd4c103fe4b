"""The MobileNet-like family: MobileNetV2/V3, EfficientNet, BigNAS, AttentiveNAS/AlphaNet, Once-for-All spaces.

A stem, stages of inverted residual blocks, and a head. Resolution, depth and widths are chosen per stage, kernel
and expand ratio per stage or per block; everything else (stride, squeeze-excite, activation, shortcut) is fixed
data of a stage. One YAML file in `configs/space/` is one space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from torch import Tensor, nn

from supernet.choices import Choice, Genes, fixed, options, scaled, unit, whole
from supernet.layers.conv import ConvNormAct
from supernet.layers.head import Head
from supernet.layers.mbconv import MBConv
from supernet.layers.stages import Stages
from supernet.models.stages import SqueezeExciteRule, Stage, parse_entries, parse_stage
from supernet.space import Space, Unit
from supernet.specs import (
    ConvSpec,
    HeadSpec,
    LinearSpec,
    MBConvSpec,
    Plan,
    ShortcutSpec,
    SqueezeExciteSpec,
    make_divisible,
)

ShortcutRule = Literal["residual", "always"]


def space(
    name: str,
    resolution: tuple[int, ...],
    stem: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
    head: Mapping[str, Any],
    choose: Literal["stage", "block"] = "stage",
    shortcut: ShortcutRule = "residual",
    norm_eps: float = 1e-5,
    drop_path_stages: int = 2,
    kernel_transform: bool = False,
    width_mult: tuple[float, ...] | None = None,
    num_classes: int = 1000,
    in_channels: int = 3,
) -> Space:
    """A MobileNet-like search space.

    The genes: resolution; width of stem, stages and head, unless all are fixed; depth per stage; kernel and expand
    ratio per stage or per block.

    Args:
        name: a word for logs and files.
        resolution: input sides, px.
        stem: `width` (options), `kernel`, `stride`, `act` of the first conv.
        stages: for each, options `width`, `depth`, `kernel`, `expand`; and `stride`, `act`, `se` (true, false, or
            a mapping of `ratio`, `act`, `gate`); `fixed: true` where nothing of it is to be chosen or listed.
        head: `width` options and `act`. With `expand: n` the 1x1 conv before pooling has n times the last stage's
            width and a second 1x1 conv without norm follows it (MobileNetV3); without, it has `width` itself.
        choose: whether kernel and expand ratio are chosen once per stage or for every block.
        shortcut: "residual": identity where stride is 1 and the widths are equal (MobileNetV2/V3);
            "always": else average pooling by the stride and a bare 1x1 conv (AttentiveNAS).
        norm_eps: epsilon of the batch norms.
        drop_path_stages: drop-path acts in this many last stages, growing with the block's position.
        kernel_transform: smaller depthwise kernels are learned maps of the larger ones (Once-for-All), not centre
            crops.
        width_mult: options of one multiplier of the widths of stem and stages, each of which is then a single number
            (slimmable networks); the head keeps its width.

    Raises:
        ValueError: naming the entry that is missing, unknown or impossible.
    """
    config = {
        "_target_": "supernet.models.mbconv.space",
        **{key: value for key, value in locals().items() if key != "config"},
    }
    parsed = [parse_stage(data, i) for i, data in enumerate(stages)]
    if not parsed:
        raise ValueError("a space needs at least one stage")
    builder = _Builder(
        stem=parse_entries(stem, "stem", {"width": None, "kernel": 3, "stride": 2, "act": "swish"}),
        stages=parsed,
        head=parse_entries(head, "head", {"width": None, "expand": None, "act": "swish"}),
        shortcut=shortcut,
        norm_eps=norm_eps,
        drop_path_stages=drop_path_stages,
        kernel_transform=kernel_transform,
        num_classes=num_classes,
        in_channels=in_channels,
    )
    _check(builder, width_mult)
    choices = _choose(tuple(resolution), builder, choose, width_mult)
    return Space(name, choices.genes, builder.units(choices), MBConvNet, config)


class MBConvNet(nn.Module):
    """The network of a plan: `stem`, `stages.<s>.<b>`, `head`.

    Built from `space.widest` and called with a plan it is the supernet; built from a subnet's plan and called
    without one it is that subnet.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.stem = ConvNormAct(plan["stem"])
        self.stages = Stages(plan, MBConv)
        self.head = Head(plan["head"])

    def forward(self, x: Tensor, plan: Plan | None = None, dropout: float = 0.0, drop_path: float = 0.0) -> Tensor:
        """Images [B, C, S, S] -> logits [B, classes]."""
        x = self.stem(x, plan["stem"] if plan else None)
        x = self.stages(x, plan, drop_path)
        return self.head(x, plan["head"] if plan else None, dropout)


@dataclass(frozen=True)
class _Choices:
    """What the layers read. `widths` are those of the stem, the stages and the head."""

    genes: Genes
    resolution: Choice
    widths: list[Choice]
    depths: list[Choice]
    kernels: list[list[Choice]]  # [stage][block]
    expands: list[list[Choice]]


@dataclass(frozen=True)
class _Builder:
    """Turns the data of a space into units. Every width, rounding, stride and size is resolved here."""

    stem: Mapping[str, Any]
    stages: Sequence[Stage]
    head: Mapping[str, Any]
    shortcut: ShortcutRule
    norm_eps: float
    drop_path_stages: int
    kernel_transform: bool
    num_classes: int
    in_channels: int

    def units(self, choices: _Choices) -> list[Unit]:
        side, widths = choices.resolution, choices.widths
        units = [unit("stem", [side, widths[0]], self._stem)]
        position = 0
        for s, stage in enumerate(self.stages):
            for b in range(stage.depth[-1]):
                shape = [choices.kernels[s][b], choices.expands[s][b]]
                width_in = widths[s] if b == 0 else widths[s + 1]
                depth = fixed(1) if b == 0 else choices.depths[s]
                reads = [side, widths[s + 1], *shape, width_in, depth]
                units.append(unit(f"stages.{s}.{b}", reads, self._block(s, b, position)))
                position += 1
        return [*units, unit("head", [side, widths[-2], widths[-1]], self._head)]

    def _size(self, resolution: int, stage: int) -> int:
        """The side of the feature map that enters `stage`, px. Strided layers round up."""
        size = -(-resolution // self.stem["stride"])
        for earlier in self.stages[:stage]:
            size = -(-size // earlier.stride)
        return size

    def _conv(self, in_channels: int, out_channels: int, size: int, act: str = "identity", **rest: Any) -> ConvSpec:
        return ConvSpec(in_channels, out_channels, size, act=act, norm_eps=self.norm_eps, **rest)

    def _stem(self, resolution: int, width: int) -> ConvSpec:
        return self._conv(
            self.in_channels,
            width,
            self._size(resolution, 0),
            self.stem["act"],
            kernel=self.stem["kernel"],
            stride=self.stem["stride"],
            size_in=resolution,
        )

    def _block(self, s: int, b: int, position: int) -> Callable[..., MBConvSpec | None]:
        stage = self.stages[s]
        total = sum(other.depth[-1] for other in self.stages)
        drop = position / total if s >= len(self.stages) - self.drop_path_stages else 0.0

        def spec(
            resolution: int, width: int, kernel: int, expand: float, width_in: int, depth: int
        ) -> MBConvSpec | None:
            if b >= depth:
                return None  # the stage is shallower
            size = self._size(resolution, s + 1)
            if b == 0:
                size_in = self._size(resolution, s)
                return self._mbconv(stage, width_in, width, size_in, size, kernel, expand, drop)
            return self._mbconv(stage, width_in, width, size, size, kernel, expand, drop, stride=1)

        return spec

    def _mbconv(
        self,
        stage: Stage,
        width_in: int,
        width: int,
        size_in: int,
        size: int,
        kernel: int,
        expand: float,
        drop_path: float,
        stride: int | None = None,
    ) -> MBConvSpec:
        stride = stage.stride if stride is None else stride
        middle = make_divisible(round(width_in * expand)) if stage.has_expand else width_in
        depthwise = self._conv(
            middle,
            middle,
            size,
            stage.act,
            kernel=kernel,
            stride=stride,
            depthwise=True,
            kernels=self._chain(stage, kernel),
            size_in=size_in,
        )
        return MBConvSpec(
            expand=self._conv(width_in, middle, size_in, stage.act) if stage.has_expand else None,
            depthwise=depthwise,
            se=_squeeze_excite(stage.se, middle) if stage.se else None,
            project=self._conv(middle, width, size),
            shortcut=self._shortcut(width_in, width, size_in, size, stride),
            drop_path=drop_path,
        )

    def _chain(self, stage: Stage, kernel: int) -> tuple[int, ...]:
        """The sizes from the largest to `kernel`, where smaller kernels are made of larger ones."""
        if not self.kernel_transform or kernel == stage.kernel[-1]:
            return ()
        return tuple(size for size in reversed(stage.kernel) if size >= kernel)

    def _shortcut(self, width_in: int, width: int, size_in: int, size: int, stride: int) -> ShortcutSpec | None:
        if stride == 1 and width_in == width:
            return ShortcutSpec()
        if self.shortcut == "residual":
            return None
        conv = ConvSpec(width_in, width, size, norm_eps=None) if width_in != width else None
        return ShortcutSpec(stride, size_in % 2 if stride > 1 else 0, conv)

    def _head(self, resolution: int, width_in: int, width: int) -> HeadSpec:
        size, act, expand = self._size(resolution, len(self.stages)), self.head["act"], self.head["expand"]
        middle = width if expand is None else width_in * expand
        mix = None if expand is None else ConvSpec(middle, width, size=1, norm_eps=None, act=act)
        return HeadSpec(self._conv(width_in, middle, size, act), mix, LinearSpec(width, self.num_classes))


def _squeeze_excite(rule: SqueezeExciteRule, channels: int) -> SqueezeExciteSpec:
    reduced = make_divisible(channels * rule.ratio)
    return SqueezeExciteSpec(
        reduce=ConvSpec(channels, reduced, size=1, bias=True, norm_eps=None, act=rule.act),
        expand=ConvSpec(reduced, channels, size=1, bias=True, norm_eps=None),
        gate=rule.gate,
    )


def _choose(
    resolution: tuple[int, ...], builder: _Builder, choose: str, width_mult: tuple[float, ...] | None
) -> _Choices:
    """The genes, in this order: resolution, width_mult or width[..], depth[..], kernel[..], expand[..]."""
    genes, stages = Genes(), builder.stages
    side = genes.add("resolution", options("resolution", resolution))
    widths = [options("stem.width", builder.stem["width"]), *(s.width for s in stages)]
    widths.append(options("head.width", builder.head["width"]))
    if width_mult is not None:
        factor = genes.add("width_mult", options("width_mult", width_mult))
        width_choices = [factor.map(scaled(base)) for (base,) in widths[:-1]]
        width_choices.append(fixed(widths[-1][0]))
    elif all(len(choice) == 1 for choice in widths):
        width_choices = [fixed(width) for (width,) in widths]
    else:
        width_choices = [genes.add("width", choice, i) for i, choice in enumerate(widths)]
    free = accumulate((not stage.fixed for stage in stages), initial=0)  # free stages before each
    depths = [
        fixed(stage.depth[0]) if stage.fixed else genes.add("depth", stage.depth, index)
        for stage, index in zip(stages, free, strict=False)
    ]
    kernels, expands = (_per_stage(genes, key, stages, depths, choose == "block") for key in ("kernel", "expand"))
    return _Choices(genes, side, width_choices, depths, kernels, expands)


def _per_stage(
    genes: Genes, key: str, stages: Sequence[Stage], depths: Sequence[Choice], per_block: bool
) -> list[list[Choice]]:
    """The choices of `key` for every block [stage][block]: one gene per stage, or one per block."""
    rows: list[list[Choice]] = []
    index = 0
    for stage, depth in zip(stages, depths, strict=True):
        blocks, values = range(stage.depth[-1]), getattr(stage, key)
        if stage.fixed:
            rows.append([fixed(values[0]) for _ in blocks])
        elif per_block:
            # Blocks below the smallest depth always count: "depth > b" holds for each of its options.
            rows.append([genes.add(key, values, index + b, depth, b) for b in blocks])
            index += len(blocks)
        else:
            rows.append([genes.add(key, values, index)] * len(blocks))
            index += 1
    return rows


def _check(builder: _Builder, width_mult: tuple[float, ...] | None) -> None:
    """Refuse single values that no network can be built from; `ValueError` names the entry."""
    if width_mult is not None:
        for name, width in (
            ("stem", builder.stem["width"]),
            *((f"stages[{i}]", s.width) for i, s in enumerate(builder.stages)),
        ):
            if len(options(f"{name}.width", width)) > 1:
                raise ValueError(f"{name}.width={list(width)}: a single number only, with width_mult")
        if len(options("head.width", builder.head["width"])) > 1:
            raise ValueError(f"head.width={builder.head['width']}: a single number only, with width_mult")
    for part, entries in (("stem", builder.stem), ("head", builder.head)):
        whole(f"{part}.width", options(f"{part}.width", entries["width"]))
    whole("stem.kernel", (builder.stem["kernel"],), odd=True)
    whole("stem.stride", (builder.stem["stride"],))
    if builder.head["expand"] is not None:
        whole("head.expand", (builder.head["expand"],))
    whole("num_classes", (builder.num_classes,))
    whole("in_channels", (builder.in_channels,))
    if builder.norm_eps <= 0:
        raise ValueError(f"norm_eps={builder.norm_eps}: must be positive")
    if builder.drop_path_stages < 0:
        raise ValueError(f"drop_path_stages={builder.drop_path_stages}: must not be negative")
    for i, stage in enumerate(builder.stages):
        if builder.shortcut == "always" and stage.stride > 2:
            raise ValueError(f"stages[{i}].stride={stage.stride}: with shortcut=always strides are 1 or 2")
