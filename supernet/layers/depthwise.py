"""Depthwise convolution whose weight gradient is fast on a CPU, too.

oneDNN has a kernel of its own for the weight gradient of depthwise convolutions up to 3 wide. For wider ones it falls
back to one that treats every channel as a block of 16 x 16, most of it zeros: with 5 x 5 kernels that is a third of
AlphaNet's training step. But the weight gradient is itself a depthwise convolution, of the image by the output's
gradient, and those are fast forwards.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NARROW = 3  # oneDNN's own gradient is fast up to this width of the kernel
LARGE = 24 * 24  # pixels of the output from which images are taken one by one
# Read here, because torch.compile cannot trace the questions.
CAPABILITY = torch.backends.cpu.get_cpu_capability() if torch.backends.mkldnn.is_available() else ""
Pair = tuple[int, ...]  # of height and width


def slow_gradient(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether `depthwise_conv2d` should stand in for `F.conv2d`.

    Decided by properties, not by a clock, so that a run repeats itself bit for bit; measured with AVX-512 and AVX2.
    """
    return (
        groups == x.shape[1] == weight.shape[0]
        and weight.shape[-1] > NARROW
        and x.device.type == "cpu"
        and torch.is_grad_enabled()
        and weight.requires_grad
        and x.dtype == weight.dtype == torch.float32
        and CAPABILITY in ("AVX512", "AVX2")
        and not torch.is_autocast_enabled("cpu")
    )


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """`F.conv2d` of x [B, C, H, W] with one kernel [C, 1, k, k] for each channel."""
    return _Depthwise.apply(x, weight, stride, padding, dilation)


def depthwise_weight_gradient(
    x: Tensor, out_gradient: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """[C, 1, k, k] from the layer's input [B, C, H, W] and the gradient of its output [B, C, H', W'].

    dW[c, i, j] = sum over images and positions of x[c, s p - padding + d i, ...] dY[c, p, ...]: a convolution of x by
    dY in which stride s and dilation d have changed places.
    """
    batch, channels, height, width = x.shape
    if not batch:
        return x.new_zeros(channels, 1, *kernel)
    if _one_by_one(x, out_gradient):
        # Views in channels_last: nothing is copied.
        parts = [
            F.conv2d(image[None], by[:, None], None, dilation, padding, stride, channels)
            for image, by in zip(x.unbind(), out_gradient.unbind(), strict=True)
        ]
        each = torch.cat(parts)
    else:
        images = x.contiguous().view(1, batch * channels, height, width)
        by = out_gradient.contiguous().view(batch * channels, 1, *out_gradient.shape[2:])
        each = F.conv2d(images, by, None, dilation, padding, stride, batch * channels)
        each = each.view(batch, channels, *each.shape[2:])
    return each[:, :, : kernel[0], : kernel[1]].sum(0)[:, None]


class _Depthwise(torch.autograd.Function):
    """Made of operations that have gradients themselves, so second derivatives work."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = stride, padding, dilation
        return F.conv2d(x, weight, None, stride, padding, dilation, x.shape[1])

    @staticmethod
    def backward(ctx: Any, out_gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        by_x = by_weight = None
        if ctx.needs_input_grad[0]:
            by_x = torch.ops.aten.convolution_backward(
                out_gradient, x, weight, None, *ctx.how, False, (0, 0), x.shape[1], (True, False, False)
            )[0]
        if ctx.needs_input_grad[1]:
            by_weight = depthwise_weight_gradient(x, out_gradient, tuple(weight.shape[2:]), *ctx.how)
        return by_x, by_weight, None, None, None


def _one_by_one(x: Tensor, out_gradient: Tensor) -> bool:
    large = out_gradient.shape[2] * out_gradient.shape[3] >= LARGE
    last = x.is_contiguous(memory_format=torch.channels_last)
    return large and last and CAPABILITY == "AVX512"
