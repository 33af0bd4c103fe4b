"""Specs of convolutions, linear layers and the blocks made of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class ConvSpec:
    """A square 2-d convolution, with its batch norm (if any) and activation.

    `size` is the side of the output in pixels. `padding` is (kernel - 1) * dilation // 2 unless given. `kernels` is for
    kernels that are made of a larger one by learned maps: all sizes on the way, from the largest to this one. `size_in`
    is the side of the input, to be given where a stride or padding makes it another than `size`; `pooled` the side
    after a max pooling that follows. `affine`: the norm has a scale and a shift.
    """

    in_channels: int
    out_channels: int
    size: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    bias: bool = False
    norm_eps: float | None = 1e-5  # None: no norm
    act: str = "identity"
    kernels: tuple[int, ...] = ()
    size_in: int | None = None
    pooled: int | None = None
    dilation: int = 1
    padding: int | None = None
    affine: bool = True

    @property
    def pad(self) -> int:
        """Zeros on every side of the input."""
        return (self.kernel - 1) * self.dilation // 2 if self.padding is None else self.padding

    @property
    def groups(self) -> int:
        return self.in_channels if self.depthwise else 1

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """[out, in / groups, kernel, kernel]."""
        return (self.out_channels, self.in_channels // self.groups, self.kernel, self.kernel)

    @cached_property
    def macs(self) -> int:
        out, inner, kh, kw = self.weight_shape
        return out * inner * kh * kw * self.size**2

    @cached_property
    def params(self) -> int:
        out, inner, kh, kw = self.weight_shape
        scales = self.norm_eps is not None and self.affine
        return out * inner * kh * kw + out * self.bias + 2 * out * scales

    @cached_property
    def bytes(self) -> int:
        return 4 * self.params + (8 * self.out_channels + 8) * (self.norm_eps is not None)

    @property
    def held_in(self) -> int:
        """Numbers of the input."""
        return self.in_channels * (self.size if self.size_in is None else self.size_in) ** 2

    @property
    def held_out(self) -> int:
        """Numbers of the output, before a pooling."""
        return self.out_channels * self.size**2

    @property
    def activations(self) -> int:
        after = 0 if self.pooled is None else self.out_channels * self.pooled**2
        return self.held_out + max(self.held_in, after)


@dataclass(frozen=True)
class LinearSpec:
    """A fully connected layer with bias."""

    in_features: int
    out_features: int

    @property
    def macs(self) -> int:
        return self.in_features * self.out_features

    @property
    def params(self) -> int:
        return (self.in_features + 1) * self.out_features

    @property
    def bytes(self) -> int:
        return 4 * self.params

    @property
    def activations(self) -> int:
        """Of one vector."""
        return self.in_features + self.out_features


@dataclass(frozen=True)
class SqueezeExciteSpec:
    """Squeeze-and-excitation: two 1x1 convolutions on the pooled features (Hu et al., CVPR 2018)."""

    reduce: ConvSpec
    expand: ConvSpec
    gate: str

    @property
    def macs(self) -> int:
        return self.reduce.macs + self.expand.macs

    @property
    def params(self) -> int:
        return self.reduce.params + self.expand.params

    @property
    def bytes(self) -> int:
        return self.reduce.bytes + self.expand.bytes

    @property
    def activations(self) -> int:
        """Beside the features that are pooled and scaled."""
        return max(self.reduce.activations, self.expand.activations)


@dataclass(frozen=True)
class ShortcutSpec:
    """The path around a block: identity, average pooling (where the block has a stride), a 1x1 conv, or both."""

    pool: int = 1  # pooling stride; 1: none
    pool_padding: int = 0
    conv: ConvSpec | None = None

    @property
    def identity(self) -> bool:
        """True where the block's input is added as it is."""
        return self.pool == 1 and self.conv is None

    @property
    def macs(self) -> int:
        return self.conv.macs if self.conv else 0

    @property
    def params(self) -> int:
        return self.conv.params if self.conv else 0

    @property
    def bytes(self) -> int:
        return self.conv.bytes if self.conv else 0

    def activations(self, held_in: int, channels: int, branch: ConvSpec) -> int:
        """Most numbers held at a time from the end of the branch on, which runs before the shortcut.

        Args:
            held_in: numbers of the block's input.
            channels: those of the block's input.
            branch: the branch's last layer, whose output is held.
        """
        pooling = held_in + channels * branch.size**2 if self.pool > 1 else 0
        return branch.held_out + max(pooling, self.conv.activations if self.conv else held_in)


@dataclass(frozen=True)
class MBConvSpec:
    """An inverted residual block (MobileNetV2/V3). `drop_path` scales the step's drop-path rate, 0 to 1."""

    expand: ConvSpec | None
    depthwise: ConvSpec
    se: SqueezeExciteSpec | None
    project: ConvSpec
    shortcut: ShortcutSpec | None
    drop_path: float = 0.0

    @cached_property
    def _parts(self) -> tuple[ConvSpec | SqueezeExciteSpec | ShortcutSpec, ...]:
        parts = (self.expand, self.depthwise, self.se, self.project, self.shortcut)
        return tuple(part for part in parts if part is not None)

    @cached_property
    def macs(self) -> int:
        return sum(part.macs for part in self._parts)

    @cached_property
    def params(self) -> int:
        return sum(part.params for part in self._parts)

    @cached_property
    def bytes(self) -> int:
        return sum(part.bytes for part in self._parts)

    @cached_property
    def activations(self) -> int:
        first = self.expand or self.depthwise
        kept = first.held_in if self.shortcut else 0  # for the shortcut
        held = [first.activations, kept + self.project.activations]
        if self.expand:
            held.append(kept + self.depthwise.activations)
        if self.se:
            held.append(kept + self.depthwise.held_out + self.se.activations)
        if self.shortcut:
            held.append(self.shortcut.activations(first.held_in, first.in_channels, self.project))
        return max(held)


@dataclass(frozen=True)
class HeadSpec:
    """1x1 conv, global average pooling, an optional 1x1 conv on the pooled features, dropout, classifier."""

    conv: ConvSpec
    mix: ConvSpec | None
    classifier: LinearSpec

    @property
    def macs(self) -> int:
        return self.conv.macs + (self.mix.macs if self.mix else 0) + self.classifier.macs

    @property
    def params(self) -> int:
        return self.conv.params + (self.mix.params if self.mix else 0) + self.classifier.params

    @property
    def bytes(self) -> int:
        return self.conv.bytes + (self.mix.bytes if self.mix else 0) + self.classifier.bytes

    @property
    def activations(self) -> int:
        pooling = self.conv.held_out + self.conv.out_channels
        mix = self.mix.activations if self.mix else 0
        return max(self.conv.activations, pooling, mix, self.classifier.activations)
