"""Specs of layers in a mixture of subnets: the largest of the options that are run, with gates on weights.

They stand wherever the plain specs do. How the gates come about is said in `supernet.mixture.gates`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from supernet.specs.attention import AttentionSpec, TokenHeadSpec, TransformerSpec
from supernet.specs.conv import ConvSpec, LinearSpec, ShortcutSpec


@dataclass(frozen=True, eq=False)
class SoftConvSpec(ConvSpec):
    """A convolution with factors on its weight, [rows or 1, columns or 1, kernel or 1, kernel or 1] each.

    `sizes`: where smaller kernels are learned maps of the larger ones, these kernels and their probabilities [sizes];
    the factors then leave the kernel alone.
    """

    gates: tuple[Tensor, ...] = ()
    sizes: tuple[tuple[int, ...], Tensor] | None = None


@dataclass(frozen=True, eq=False)
class SoftLinearSpec(LinearSpec):
    """A linear layer with factors on its weight, [rows or 1, columns or 1] each."""

    gates: tuple[Tensor, ...] = ()


@dataclass(frozen=True, eq=False)
class SoftAttentionSpec(AttentionSpec):
    """Attention with factors [1, dim] on the columns of the weights of q, k and v, and on those of the projection.

    `scaled`: what the heads return is multiplied by this, 0-d; None: by `output_scale`. `inners`: where a flat bias has
    the parts of k and v at other places for other widths, these widths and their probabilities [widths].
    """

    gates: tuple[Tensor, ...] = ()
    inners: tuple[tuple[int, ...], Tensor] | None = None
    projection: LinearSpec | None = None
    scaled: Tensor | None = None

    @property
    def proj(self) -> LinearSpec:
        return super().proj if self.projection is None else self.projection


@dataclass(frozen=True, eq=False)
class SoftTransformerSpec(TransformerSpec):
    """A transformer block. `use` [dim]: with what probability the options use each number of a token; None: all do.

    `scaled`: the MLP's output is multiplied by this, 0-d; None: by `mlp_scale`.
    """

    use: Tensor | None = None
    scaled: Tensor | None = None


@dataclass(frozen=True, eq=False)
class SoftTokenHeadSpec(TokenHeadSpec):
    """The head of a transformer; `use` as in `SoftTransformerSpec`."""

    use: Tensor | None = None


@dataclass(frozen=True, eq=False)
class SoftShortcutSpec(ShortcutSpec):
    """Shortcuts of several kinds, summed: each with the probability that a channel of the block's output has it.

    `paths`: kinds and probabilities, [channels or 1, 1, 1]; `channels`: those of the block's output.
    """

    paths: tuple[tuple[ShortcutSpec, Tensor], ...] = ()
    channels: int = 0
    identity: ClassVar[bool] = False
