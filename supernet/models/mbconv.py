"""The MobileNet-like family: MobileNetV2/V3, EfficientNet, BigNAS, AttentiveNAS and AlphaNet spaces.

A stem, stages of inverted residual blocks, and a head. Resolution, depth and widths are chosen per stage, kernel
and expand ratio per stage or per block; everything else (stride, squeeze-excite, activation, shortcut) is fixed
data of a stage. One YAML file in `configs/space/` is one space.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from supernet.layers.conv import ACTIVATIONS, ConvNormAct
from supernet.layers.head import Head
from supernet.layers.mbconv import MBConv
from supernet.space import Gene, Option, Space, Unit
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


@dataclass(frozen=True)
class SqueezeExciteRule:
    """reduced = make_divisible(ratio * expanded channels, 8); relu inside, hard sigmoid gate unless said."""

    ratio: float = 0.25
    act: str = "relu"
    gate: str = "hsigmoid"

    def __post_init__(self) -> None:
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, int | float) or self.ratio <= 0:
            raise ValueError(f"se.ratio={self.ratio!r}: give a positive number such as 0.25")
        for key, value in (("act", self.act), ("gate", self.gate)):
            if value not in ACTIVATIONS:
                raise ValueError(f"se.{key}={value!r}: choose one of {list(ACTIVATIONS)}")


@dataclass(frozen=True)
class Stage:
    """The options and fixed facts of one stage. The first block has the stride; depth counts blocks."""

    width: tuple[int, ...]
    depth: tuple[int, ...]
    kernel: tuple[int, ...]
    expand: tuple[float, ...]
    stride: int
    act: str
    se: SqueezeExciteRule | None

    @property
    def has_expand(self) -> bool:
        """False where the only expand ratio is 1: the block then has no expanding 1x1 conv."""
        return self.expand != (1,)


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
    num_classes: int = 1000,
    in_channels: int = 3,
) -> Space:
    """A MobileNet-like search space.

    Args:
        name: a word for logs and files.
        resolution: input sides, px.
        stem: `width` (options), `kernel`, `stride`, `act` of the first conv.
        stages: for each, options `width`, `depth`, `kernel`, `expand`; and `stride`, `act`, `se` (true, false, or
            a mapping of `ratio`, `act`, `gate`).
        head: `width` options and `act`. With `expand: n` the 1x1 conv before pooling has n times the last stage's
            width and a second 1x1 conv without norm follows it (MobileNetV3); without, it has `width` itself.
        choose: whether kernel and expand ratio are chosen once per stage or for every block.
        shortcut: "residual": identity where stride is 1 and the widths are equal (MobileNetV2/V3);
            "always": else average pooling by the stride and a bare 1x1 conv (AttentiveNAS).
        norm_eps: epsilon of the batch norms.
        drop_path_stages: drop-path acts in this many last stages, growing with the block's position.

    Raises:
        ValueError: naming the entry that is missing, unknown or impossible.
    """
    config = {
        "_target_": "supernet.models.mbconv.space",
        **{key: value for key, value in locals().items() if key != "config"},
    }
    parsed = [_stage(data, i) for i, data in enumerate(stages)]
    if not parsed:
        raise ValueError("a space needs at least one stage")
    builder = _Builder(
        stem=_entries(stem, "stem", {"width": None, "kernel": 3, "stride": 2, "act": "swish"}),
        stages=parsed,
        head=_entries(head, "head", {"width": None, "expand": None, "act": "swish"}),
        shortcut=shortcut,
        norm_eps=norm_eps,
        drop_path_stages=drop_path_stages,
        num_classes=num_classes,
        in_channels=in_channels,
    )
    _check(builder)
    genes = _genes(tuple(resolution), builder, choose)
    return Space(name, genes, builder.units(genes), MBConvNet, config)


class MBConvNet(nn.Module):
    """The network of a plan: `stem`, `stages.<s>.<b>`, `head`.

    Built from `space.widest` and called with a plan it is the supernet; built from a subnet's plan and called
    without one it is that subnet.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.stem = ConvNormAct(plan["stem"])
        blocks: dict[int, list[MBConv]] = defaultdict(list)
        for name, spec in plan.layers:
            if name.startswith("stages."):
                _, stage, _ = name.split(".")
                blocks[int(stage)].append(MBConv(spec))
        self.stages = nn.ModuleList(nn.ModuleList(blocks[s]) for s in sorted(blocks))
        self.head = Head(plan["head"])

    def forward(self, x: Tensor, plan: Plan | None = None, dropout: float = 0.0, drop_path: float = 0.0) -> Tensor:
        """Images [B, C, S, S] -> logits [B, classes]."""
        x = self.stem(x, plan["stem"] if plan else None)
        for s, stage in enumerate(self.stages):
            for b, block in enumerate(stage.children()):
                spec = plan.get(f"stages.{s}.{b}") if plan else None
                if plan is None or spec is not None:
                    x = block(x, spec, drop_path)
        return self.head(x, plan["head"] if plan else None, dropout)


@dataclass(frozen=True)
class _Builder:
    """Turns the data of a space into units. Every width, rounding, stride and size is resolved here."""

    stem: Mapping[str, Any]
    stages: Sequence[Stage]
    head: Mapping[str, Any]
    shortcut: ShortcutRule
    norm_eps: float
    drop_path_stages: int
    num_classes: int
    in_channels: int

    def units(self, genes: Sequence[Gene]) -> list[Unit]:
        at = {gene.name: i for i, gene in enumerate(genes)}
        per_block = any(gene.parent is not None for gene in genes)
        units = [Unit("stem", (at["resolution"], at["width[0]"]), self._stem)]
        block = 0
        for s, stage in enumerate(self.stages):
            first_gene = sum(other.depth[-1] for other in self.stages[:s])
            for b in range(stage.depth[-1]):
                choice = first_gene + b if per_block else s
                reads = [at["resolution"], at[f"width[{s + 1}]"], at[f"kernel[{choice}]"], at[f"expand[{choice}]"]]
                reads.append(at[f"width[{s}]"] if b == 0 else at[f"depth[{s}]"])
                units.append(Unit(f"stages.{s}.{b}", tuple(reads), self._block(s, b, block)))
                block += 1
        last = len(self.stages)
        reads = [at["resolution"], at[f"width[{last}]"], at[f"width[{last + 1}]"]]
        return [*units, Unit("head", tuple(reads), self._head)]

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
        )

    def _block(self, s: int, b: int, position: int) -> Callable[..., MBConvSpec | None]:
        stage = self.stages[s]
        total = sum(other.depth[-1] for other in self.stages)
        drop = position / total if s >= len(self.stages) - self.drop_path_stages else 0.0

        def spec(resolution: int, width: int, kernel: int, expand: float, width_in_or_depth: int) -> MBConvSpec | None:
            size_in = self._size(resolution, s)
            size = self._size(resolution, s + 1)
            if b == 0:
                return self._mbconv(stage, width_in_or_depth, width, size_in, size, kernel, expand, drop)
            if b >= width_in_or_depth:
                return None  # the stage is shallower
            return self._mbconv(stage, width, width, size, size, kernel, expand, drop, stride=1)

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
        return MBConvSpec(
            expand=self._conv(width_in, middle, size_in, stage.act) if stage.has_expand else None,
            depthwise=self._conv(middle, middle, size, stage.act, kernel=kernel, stride=stride, depthwise=True),
            se=_squeeze_excite(stage.se, middle) if stage.se else None,
            project=self._conv(middle, width, size),
            shortcut=self._shortcut(width_in, width, size_in, size, stride),
            drop_path=drop_path,
        )

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


def _genes(resolution: tuple[int, ...], builder: _Builder, choose: str) -> list[Gene]:
    """resolution, width[stem, stages.., head], depth[stage], kernel[..], expand[..]; the last two per `choose`."""
    stages = builder.stages
    genes = [Gene("resolution", None, _options("resolution", resolution))]
    widths = [_options("stem.width", builder.stem["width"]), *(s.width for s in stages)]
    widths.append(_options("head.width", builder.head["width"]))
    genes += [Gene("width", i, options) for i, options in enumerate(widths)]
    depth_at = len(genes)
    genes += [Gene("depth", i, stage.depth) for i, stage in enumerate(stages)]
    for key in ("kernel", "expand"):
        owners: list[tuple[Stage, int | None, float]] = [(stage, None, 0) for stage in stages]
        if choose == "block":
            # Blocks below the smallest depth always count: "depth > b" holds for each of its options.
            owners = [(stage, depth_at + i, b) for i, stage in enumerate(stages) for b in range(stage.depth[-1])]
        for i, (stage, parent, above) in enumerate(owners):
            genes.append(Gene(key, i, getattr(stage, key), parent, above))
    return genes


def _stage(data: Mapping[str, Any], index: int) -> Stage:
    where = f"stages[{index}]"
    entries = _entries(
        data,
        where,
        {"width": None, "depth": None, "kernel": None, "expand": None, "stride": 1, "act": "swish", "se": False},
    )
    options = {key: _options(f"{where}.{key}", entries[key]) for key in ("width", "depth", "kernel", "expand")}
    for key in ("width", "depth", "kernel"):
        _whole(f"{where}.{key}", options[key], odd=key == "kernel")
    _whole(f"{where}.stride", (entries["stride"],))
    se = entries["se"]
    if not isinstance(se, bool | Mapping):
        raise ValueError(f"{where}.se={se!r}: give true, false, or a mapping of ratio, act and gate")
    rule = SqueezeExciteRule(**(se if isinstance(se, Mapping) else {})) if se is not False else None
    return Stage(**options, stride=entries["stride"], act=entries["act"], se=rule)  # type: ignore[arg-type]


def _check(builder: _Builder) -> None:
    """Refuse single values that no network can be built from; `ValueError` names the entry."""
    for part, entries in (("stem", builder.stem), ("head", builder.head)):
        _whole(f"{part}.width", _options(f"{part}.width", entries["width"]))
    _whole("stem.kernel", (builder.stem["kernel"],), odd=True)
    _whole("stem.stride", (builder.stem["stride"],))
    if builder.head["expand"] is not None:
        _whole("head.expand", (builder.head["expand"],))
    _whole("num_classes", (builder.num_classes,))
    _whole("in_channels", (builder.in_channels,))
    if builder.norm_eps <= 0:
        raise ValueError(f"norm_eps={builder.norm_eps}: must be positive")
    if builder.drop_path_stages < 0:
        raise ValueError(f"drop_path_stages={builder.drop_path_stages}: must not be negative")
    for i, stage in enumerate(builder.stages):
        if builder.shortcut == "always" and stage.stride > 2:
            raise ValueError(f"stages[{i}].stride={stage.stride}: with shortcut=always strides are 1 or 2")


def _whole(where: str, values: Sequence[Any], odd: bool = False) -> None:
    if any(type(value) is not int or value < 1 for value in values):
        raise ValueError(f"{where}: whole numbers of at least 1 only, got {list(values)}")
    if odd and any(value % 2 == 0 for value in values):
        raise ValueError(f"{where}: kernels must be odd, got {list(values)}")


def _entries(data: Mapping[str, Any], where: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`data` over `defaults`, with unknown keys, missing widths and unknown activations refused."""
    unknown = set(data) - set(defaults)
    if unknown:
        raise ValueError(f"{where}: unknown entries {sorted(unknown)}; known are {list(defaults)}")
    entries = {**defaults, **data}
    if entries["act"] not in ACTIVATIONS:
        raise ValueError(f"{where}.act={entries['act']!r}: choose one of {list(ACTIVATIONS)}")
    if entries["width"] is None:
        raise ValueError(f"{where}.width is missing: give a list of channels such as [16, 24]")
    return entries


def _options(where: str, values: Any) -> tuple[Option, ...]:
    """A tuple of positive numbers, ascending and distinct; a single number counts as a list of one."""
    if values is None:
        raise ValueError(f"{where} is missing: give a list of options")
    options = tuple(values) if isinstance(values, Sequence) and not isinstance(values, str) else (values,)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in options)
    if not options or not numbers or list(options) != sorted(set(options)):
        raise ValueError(f"{where}={values!r}: give positive numbers, ascending and without repeats")
    return options
