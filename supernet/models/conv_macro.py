"""The plain convolutional space of TangleNAS (Sukthanker et al., 2024): every width and every kernel is chosen.

Four convolutions with elastic kernel and width, a fixed fifth, and a classifier with hidden layers; biases instead
of norms. The authors trained its 6,561 networks alone on CIFAR-10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from supernet.choices import Genes, fixed, options, unit, whole
from supernet.layers.conv import ConvNormAct
from supernet.layers.macro import MLPHead
from supernet.space import Space
from supernet.specs import ConvSpec, LinearSpec, MLPHeadSpec, Plan

CONVS = 5
POOLED = (1, 2)  # the convolutions that a max pooling by 2 follows
DROPPED = (2, 4)  # those whose channels dropout can zero
LAST_KERNEL, LAST_PADDING = 7, 2
LEAST_SIDE = 12  # of the image, px: one pixel is left at the end


def space(
    name: str,
    resolution: tuple[int, ...],
    width: tuple[tuple[int, ...], ...],
    kernel: tuple[int, ...],
    last_width: int = 256,
    hidden: tuple[int, ...] = (256, 128, 64),
    num_classes: int = 10,
    in_channels: int = 3,
) -> Space:
    """A search space of plain convolutional networks. The genes: resolution (a single one), four widths, four kernels.

    Args:
        name: a word for logs and files.
        resolution: the input side, px: one number, because the classifier reads every pixel.
        width: options of the output channels of each of the four convolutions.
        kernel: options of their kernels.
        last_width: output channels of the fifth convolution, whose kernel is 7 and whose padding 2.
        hidden: widths of the classifier's hidden layers.

    Raises:
        ValueError: naming the entry that is impossible.
    """
    config = {"_target_": f"{__name__}.space", **locals()}
    sides = options("resolution", resolution)
    whole("resolution", sides, least=LEAST_SIDE)
    if len(sides) > 1:
        raise ValueError(f"resolution={list(sides)}: a single one, because the classifier reads every pixel")
    if len(width) != CONVS - 1:
        raise ValueError(f"width={[list(row) for row in width]}: give the options of each of {CONVS - 1} convolutions")
    width_options = [options(f"width[{i}]", row) for i, row in enumerate(width)]
    for i, row in enumerate(width_options):
        whole(f"width[{i}]", row)
    kernel_options = options("kernel", kernel)
    whole("kernel", kernel_options, odd=True)
    whole("last_width, hidden", (last_width, *hidden))
    whole("num_classes, in_channels", (num_classes, in_channels))
    builder = _Builder(last_width, hidden, num_classes)
    genes = Genes()
    side = genes.add("resolution", sides)
    widths = [fixed(in_channels), *(genes.add("width", row, i) for i, row in enumerate(width_options))]
    kernels = [genes.add("kernel", kernel_options, i) for i in range(CONVS - 1)]
    units = [
        unit(f"convs.{i}", [side, widths[i], widths[i + 1], kernels[i]], builder.conv(i)) for i in range(CONVS - 1)
    ]
    units += [unit(f"convs.{CONVS - 1}", [side, widths[-1]], builder.last), unit("head", [side], builder.head)]
    return Space(name, genes, units, ConvMacroNet, config)


class ConvMacroNet(nn.Module):
    """The network of a plan: `convs.<i>`, `head`.

    Built from `space.widest` and called with a plan it is the supernet; built from a subnet's plan and called
    without one it is that subnet.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.side = plan.resolution
        self.convs = nn.ModuleList(ConvNormAct(plan[f"convs.{i}"]) for i in range(CONVS))
        self.head = MLPHead(plan["head"])

    def forward(self, x: Tensor, plan: Plan | None = None, dropout: float = 0.0, drop_path: float = 0.0) -> Tensor:
        """Images [B, C, S, S] -> logits [B, classes]. Dropout zeroes whole channels; there is no drop-path.

        Raises:
            ValueError: if the images do not have the side that the classifier was made for.
        """
        if x.shape[2] != self.side or x.shape[3] != self.side:
            raise ValueError(
                f"this network takes images of {self.side} x {self.side} px, got {x.shape[2]} x {x.shape[3]}"
            )
        for i, conv in enumerate(self.convs):
            x = conv(x, plan[f"convs.{i}"] if plan else None)
            if i in POOLED:
                x = F.max_pool2d(x, 2)
            if i in DROPPED:
                x = F.dropout2d(x, dropout, self.training)
        return self.head(x, plan["head"] if plan else None)


@dataclass(frozen=True)
class _Builder:
    """Makes the specs. Every size is resolved here."""

    last_width: int
    hidden: Sequence[int]
    num_classes: int

    def conv(self, index: int) -> Callable[..., ConvSpec]:
        """The spec of one of the elastic convolutions."""

        def spec(resolution: int, width_in: int, width: int, kernel: int) -> ConvSpec:
            size = _side(resolution, index)
            pooled = size // 2 if index in POOLED else None
            return ConvSpec(width_in, width, size, kernel, bias=True, norm_eps=None, act="relu", pooled=pooled)

        return spec

    def last(self, resolution: int, width_in: int) -> ConvSpec:
        """The spec of the fixed convolution, whose padding makes the map smaller."""
        size_in = _side(resolution, CONVS - 1)
        return ConvSpec(
            width_in,
            self.last_width,
            size=_last_side(resolution),
            kernel=LAST_KERNEL,
            bias=True,
            norm_eps=None,
            act="relu",
            size_in=size_in,
            padding=LAST_PADDING,
        )

    def head(self, resolution: int) -> MLPHeadSpec:
        """The spec of the classifier."""
        features = [self.last_width * _last_side(resolution) ** 2, *self.hidden]
        hidden = tuple(LinearSpec(a, b) for a, b in zip(features, self.hidden, strict=False))
        return MLPHeadSpec(hidden, LinearSpec(features[-1], self.num_classes))


def _side(resolution: int, index: int) -> int:
    """The side of the map that enters a convolution, px. Poolings round down."""
    return resolution // 2 ** sum(pooled < index for pooled in POOLED)


def _last_side(resolution: int) -> int:
    """The side of the fifth convolution's output, px."""
    return _side(resolution, CONVS - 1) + 2 * LAST_PADDING - LAST_KERNEL + 1
