"""Operations on the edges of cells. Each takes the features of one node: [B, C, S, S] -> [B, C', S', S']."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.layers.conv import ConvNormAct, leading_norm
from supernet.specs import (
    ConvSpec,
    FactorizedReduceSpec,
    IdentitySpec,
    NormedPoolSpec,
    PoolSpec,
    SeparableSpec,
    SepConvSpec,
)


class Identity(nn.Module):
    """Its input as it is."""

    def __init__(self, spec: IdentitySpec) -> None:
        super().__init__()

    def forward(self, x: Tensor, spec: IdentitySpec | None = None) -> Tensor:
        return x


class Pool(nn.Module):
    """3x3 pooling, padding 1: [B, C, S, S] -> [B, C, S', S']. An average leaves the padding out."""

    def __init__(self, spec: PoolSpec) -> None:
        super().__init__()
        self.kind, self.stride = spec.kind, spec.stride

    def forward(self, x: Tensor, spec: PoolSpec | None = None) -> Tensor:
        if self.kind == "max":
            return F.max_pool2d(x, 3, self.stride, padding=1)
        return F.avg_pool2d(x, 3, self.stride, padding=1, count_include_pad=False)


class ReluConv(nn.Module):
    """relu -> convolution -> norm: [B, C, S, S] -> [B, C', S', S'].

    Args:
        channels_last: on a CPU, bring features into that memory format; the layers after it follow.
    """

    def __init__(self, spec: ConvSpec, channels_last: bool = False) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.body = ConvNormAct(spec)

    def forward(self, x: Tensor, spec: ConvSpec | None = None) -> Tensor:
        x = F.relu(x)
        if self.channels_last and x.device.type == "cpu" and x.stride(1) != 1:
            x = x.clone(memory_format=torch.channels_last)  # one channel is contiguous in both formats already
        return self.body(x, spec)


class Separable(nn.Module):
    """relu -> depthwise k x k -> 1x1 -> norm: [B, C, S, S] -> [B, C', S', S']."""

    def __init__(self, spec: SeparableSpec) -> None:
        super().__init__()
        self.step = spec.step
        self.depthwise = ConvNormAct(spec.depthwise)
        self.pointwise = ConvNormAct(spec.pointwise)

    def forward(self, x: Tensor, spec: SeparableSpec | None = None) -> Tensor:
        if self.step > 1:
            x = F.avg_pool2d(x, 1, self.step)  # exact; the gradient of a slice would come in another memory format
        x = self.depthwise(F.relu(x), spec.depthwise if spec else None)
        return self.pointwise(x, spec.pointwise if spec else None)


class SepConv(nn.Module):
    """Two separable convolutions: [B, C, S, S] -> [B, C', S', S']."""

    def __init__(self, spec: SepConvSpec) -> None:
        super().__init__()
        self.first = Separable(spec.first)
        self.second = Separable(spec.second)

    def forward(self, x: Tensor, spec: SepConvSpec | None = None) -> Tensor:
        return self.second(self.first(x, spec.first if spec else None), spec.second if spec else None)


class FactorizedReduce(nn.Module):
    """relu -> 1x1 of the even and 1x1 of the odd pixels, side by side -> norm: [B, C, S, S] -> [B, C', S', S'].

    S' is S / 2, rounded up: an odd side is continued by one pixel of zeros.
    """

    def __init__(self, spec: FactorizedReduceSpec) -> None:
        super().__init__()
        self.even = ConvNormAct(spec.even)
        self.odd = ConvNormAct(spec.odd)
        self.norm = nn.BatchNorm2d(spec.out_channels, eps=spec.norm_eps, affine=spec.affine, track_running_stats=False)

    def forward(self, x: Tensor, spec: FactorizedReduceSpec | None = None) -> Tensor:
        x = F.relu(x)
        even, odd = self.even(x, spec.even if spec else None), self.odd(x[:, :, 1:, 1:], spec.odd if spec else None)
        if missing := even.shape[-1] - odd.shape[-1]:
            odd = F.pad(odd, (0, missing, 0, missing))  # what a convolution makes of zeros
        out = torch.cat([even, odd], dim=1)
        return leading_norm(self.norm, out, out.shape[1]) if spec else self.norm(out)


class NormedPool(nn.Module):
    """3x3 pooling, then a norm without scale and shift: [B, C, S, S] -> [B, C, S', S'].

    It keeps poolings from winning over convolutions, whose outputs are normalised, by their scale alone.
    """

    def __init__(self, spec: NormedPoolSpec) -> None:
        super().__init__()
        self.pool = Pool(spec.pool)
        self.norm = nn.BatchNorm2d(spec.pool.channels, eps=spec.norm_eps, affine=False, track_running_stats=False)

    def forward(self, x: Tensor, spec: NormedPoolSpec | None = None) -> Tensor:
        return leading_norm(self.norm, self.pool(x), x.shape[1]) if spec else self.norm(self.pool(x))


OPERATIONS: dict[type, type[nn.Module]] = {
    IdentitySpec: Identity,
    PoolSpec: Pool,
    ConvSpec: ReluConv,
    SeparableSpec: Separable,
    SepConvSpec: SepConv,
    FactorizedReduceSpec: FactorizedReduce,
    NormedPoolSpec: NormedPool,
}
