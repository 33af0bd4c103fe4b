"""Convolution, norm, activation; linear. The arithmetic of every elastic layer is here.

Each layer is built from a spec and holds plain torch layers. Called without a spec it runs them as they are:
this is an exported subnet. Called with a spec it uses the slice of their weights that the spec asks for: this is
a subnet inside the supernet. B: batch, C: channels, S: side in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.layers.depthwise import Pair, depthwise_conv2d, slow_gradient
from supernet.layers.kernel_transform import KernelTransformConv2d
from supernet.layers.synchronised import is_synchronised, whole_batch_norm
from supernet.slicing import slice_weight, take
from supernet.specs import ConvSpec, LinearSpec, SoftConvSpec, SoftLinearSpec


class HardSigmoid(nn.Module):
    """relu6(x + 3) / 6. PyTorch's own is the same, but its fp64 gradient has the precision of fp32 (1/6 rounded)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "swish": nn.SiLU,
    "hswish": nn.Hardswish,
    "sigmoid": nn.Sigmoid,
    "hsigmoid": HardSigmoid,
}


def conv2d(layer: nn.Conv2d, x: Tensor, spec: ConvSpec | None) -> Tensor:
    """[B, C, S, S] -> [B, C', S', S'] with the slice of the layer's weights that `spec` asks for."""
    if spec is None:
        watched = layer._forward_hooks or layer._forward_pre_hooks
        if layer.bias is None and not watched and slow_gradient(x, layer.weight, layer.groups):
            return depthwise_conv2d(x, layer.weight, layer.stride, cast(Pair, layer.padding), layer.dilation)
        return layer(x)
    weight = conv_weight(layer, spec)
    bias = None if layer.bias is None else take(layer.bias, (spec.out_channels,))
    if bias is None and slow_gradient(x, weight, spec.groups):
        return depthwise_conv2d(x, weight, *((n, n) for n in (spec.stride, spec.pad, spec.dilation)))
    return F.conv2d(x, weight, bias, spec.stride, spec.pad, spec.dilation, spec.groups)


def conv_weight(layer: nn.Conv2d, spec: ConvSpec) -> Tensor:
    """The slice of the weight that `spec` asks for; of a mixture the largest one, times its gates."""
    if not isinstance(spec, SoftConvSpec):
        return slice_weight(layer, spec.weight_shape)
    if spec.sizes is None:
        return gated(slice_weight(layer, spec.weight_shape), spec.gates)
    mixed = torch.zeros(())
    for size, probability in zip(spec.sizes[0], spec.sizes[1].unbind(), strict=True):
        small = slice_weight(layer, (*spec.weight_shape[:2], size, size))
        mixed = mixed + F.pad(small * probability, [(spec.kernel - size) // 2] * 4)
    return gated(mixed, spec.gates)


def gated(weight: Tensor, gates: Sequence[Tensor]) -> Tensor:
    """A weight times the factors that a mixture of subnets puts on it, each broadcast."""
    for gate in gates:
        weight = weight * gate
    return weight


def batch_norm(layer: nn.BatchNorm2d, x: Tensor, spec: ConvSpec | None) -> Tensor:
    """Batch norm over the leading channels that `spec` asks for, see `leading_norm`; over all without one."""
    if spec is None and not is_synchronised(layer):
        return layer(x)
    return leading_norm(layer, x, layer.num_features if spec is None else spec.out_channels)


def leading_norm(layer: nn.BatchNorm2d, x: Tensor, count: int) -> Tensor:
    """Batch norm over `count` leading channels.

    A supernet keeps no running statistics, because no subnet's would fit another: it always normalises with the
    batch's. A layer that holds some (a calibrated subnet, imported weights) uses them in eval mode.
    Over several processes it can normalise with those of the whole batch, see `supernet.layers.synchronised`.
    """
    channels = (count,)
    scale = take(layer.weight, channels) if layer.affine else None
    shift = take(layer.bias, channels) if layer.affine else None
    if layer.training or layer.running_mean is None or layer.running_var is None:
        if is_synchronised(layer):
            return whole_batch_norm(x, scale, shift, layer.eps)
        return F.batch_norm(x, None, None, scale, shift, training=True, eps=layer.eps)
    mean, var = take(layer.running_mean, channels), take(layer.running_var, channels)
    return F.batch_norm(x, mean, var, scale, shift, training=False, eps=layer.eps)


def linear(layer: nn.Linear, x: Tensor, spec: LinearSpec | None) -> Tensor:
    """[B, in] -> [B, out] with the leading rows and columns that `spec` asks for."""
    if spec is None:
        return layer(x)
    weight = slice_weight(layer, (spec.out_features, spec.in_features))
    if isinstance(spec, SoftLinearSpec):
        weight = gated(weight, spec.gates)
    return F.linear(x, weight, take(layer.bias, (spec.out_features,)))


class ConvNormAct(nn.Module):
    """conv -> batch norm -> activation, each as the spec says.

    The norm starts without running statistics: until `supernet.calibrate` gives it some, it normalises with the
    batch's, so wrong statistics can never be used by accident.
    """

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__()
        self.conv = _convolution(spec)
        self.norm: nn.BatchNorm2d | None = None
        if spec.norm_eps is not None:
            self.norm = nn.BatchNorm2d(
                spec.out_channels, eps=spec.norm_eps, affine=spec.affine, track_running_stats=False
            )
        self.act = ACTIVATIONS[spec.act]()

    def forward(self, x: Tensor, spec: ConvSpec | None = None) -> Tensor:
        x = conv2d(self.conv, x, spec)
        if self.norm is not None:
            x = batch_norm(self.norm, x, spec)
        return self.act(x)


def _convolution(spec: ConvSpec) -> nn.Conv2d:
    """A plain convolution, or one that smaller kernels are made of."""
    rest: dict[str, Any] = {"stride": spec.stride, "padding": spec.pad, "bias": spec.bias}
    if spec.kernels and spec.kernels[-1] < spec.kernel:
        chain = [kernel for kernel in spec.kernels if kernel <= spec.kernel]
        return KernelTransformConv2d(spec.out_channels, chain, **rest)
    rest |= {"groups": spec.groups, "dilation": spec.dilation}
    return nn.Conv2d(spec.in_channels, spec.out_channels, spec.kernel, **rest)
