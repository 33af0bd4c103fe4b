"""Batch norm and the activation after it as one compiled operation, with symbolic shapes: one for all layers.

What is left of a convolutional network when convolutions are library calls are passes over memory. Here the norm's
output is neither written nor kept for the backward pass: it is computed again from the norm's input.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from types import FunctionType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.layers.conv import ACTIVATIONS, ConvNormAct, batch_norm, conv2d
from supernet.slicing import take
from supernet.specs import ConvSpec

aten = torch.ops.aten
Compile = Callable[[Callable[..., Any]], Callable[..., Any]]

# activation, and its gradient: (gradient of the output, input) -> gradient of the input
KINDS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "relu": (F.relu, lambda gradient, x: aten.threshold_backward(gradient, x, 0)),
    "relu6": (F.relu6, lambda gradient, x: aten.hardtanh_backward(gradient, x, 0, 6)),
    "swish": (F.silu, aten.silu_backward),
    "hswish": (F.hardswish, aten.hardswish_backward),
}
NAMES = {ACTIVATIONS[name]: name for name in KINDS}


def fresh(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of a function, with a code object of its own.

    Graphs are kept, and their number is limited, per code object: several trainings in one process must not share one.
    """
    plain = cast(FunctionType, function)
    return FunctionType(
        plain.__code__.replace(), plain.__globals__, plain.__name__, plain.__defaults__, plain.__closure__
    )


class NormAct:
    """Batch norm with the batch's statistics, then an activation: [B, C, S, S] -> the same shape.

    On a CPU, PyTorch's own sums over channels are faster than compiled ones, so only what is elementwise is compiled:
    one graph for the forward and one for the backward pass. Elsewhere one graph holds it all.

    Args:
        kind: a key of `KINDS`.
        eps: added to the variance.
        layout: memory format of what it computes on, and returns.
        compiler: makes a compiled function of a function.
    """

    def __init__(self, kind: str, eps: float, layout: torch.memory_format, compiler: Compile) -> None:
        self.eps, self.layout = eps, layout
        act, gradient = KINDS[kind]

        def forward(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            return act(x * scale + shift)

        def backward(by: Tensor, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            return gradient(by, x * scale + shift)

        def whole(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return act(F.batch_norm(x, None, None, weight, bias, training=True, eps=eps))

        self.forward, self.backward, self.whole = (compiler(fresh(f)) for f in (forward, backward, whole))

    def takes(self, x: Tensor, weight: Tensor) -> bool:
        """Whether `x` [B, C, S, S] is computed here. Sides of 1 would need graphs of their own."""
        if x.device.type != "cpu":
            return min(x.shape) > 1
        known = x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)
        return known and min(self.table(x).shape) > 1

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """x: [B, C, S, S]; weight, bias: [C]."""
        x = x.contiguous(memory_format=self.layout)
        if x.device.type == "cpu":
            return _NormAct.apply(x, weight, bias, self)
        return self.whole(x, weight, bias)

    def prepare(self, device: torch.device, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
        """Compile. The sizes of the example all differ, so that none is taken for another's."""
        x = torch.ones(3, 5, 7, 11, dtype=dtype, device=device).contiguous(memory_format=self.layout)
        weight, bias = torch.ones(2, 5, dtype=weight_dtype, device=device)
        leaves = [tensor.requires_grad_() for tensor in (x, weight.clone(), bias.clone())]
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = self(*leaves)
        torch.autograd.grad(out.sum(), leaves)

    def table(self, x: Tensor) -> Tensor:
        """[B, C, S, S] -> [B * S * S, C] in channels_last, else [B * C, S * S]; in this layout a view."""
        last = self.layout == torch.channels_last
        return x.permute(0, 2, 3, 1).flatten(0, 2) if last else x.flatten(2).flatten(0, 1)

    def image(self, table: Tensor, shape: torch.Size) -> Tensor:
        """A table back as [B, C, S, S]."""
        batch, channels, height, width = shape
        last = self.layout == torch.channels_last
        return table.view(batch, height, width, channels).permute(0, 3, 1, 2) if last else table.view(shape)

    def vectors(self, batch: int, *vectors: Tensor) -> list[Tensor]:
        """Numbers by channel [C], so that they broadcast along a table."""
        last = self.layout == torch.channels_last
        return [vector if last else vector.repeat(batch)[:, None] for vector in vectors]


class FusedForward:
    """The `forward` of a `ConvNormAct` with the norm and the activation in one. An attribute of the instance."""

    def __init__(self, module: ConvNormAct, norm_act: NormAct) -> None:
        self.module, self.norm_act = module, norm_act

    def __call__(self, x: Tensor, spec: ConvSpec | None = None) -> Tensor:
        module, norm = self.module, self.module.norm
        assert norm is not None
        assert spec is not None
        x = conv2d(module.conv, x, spec)
        if not (module.training and self.norm_act.takes(x, norm.weight)):
            return module.act(batch_norm(norm, x, spec))
        channels = (spec.out_channels,)
        return self.norm_act(x, take(norm.weight, channels), take(norm.bias, channels))


def fused(net: nn.Module, layout: torch.memory_format, compiler: Compile) -> tuple[nn.Module, list[NormAct]]:
    """A network that has the very parameters of `net`, and norms and activations that are compiled.

    Returns it and what is compiled: an operation for each activation (and epsilon) that follows an affine batch norm.
    """
    shared = [*net.parameters(), *net.buffers()]
    twin = deepcopy(net, {id(tensor): tensor for tensor in shared})
    found: dict[tuple[str, float], NormAct] = {}
    for module in twin.modules():
        if not isinstance(module, ConvNormAct) or module.norm is None or not module.norm.affine:
            continue
        kind, eps = NAMES.get(type(module.act)), module.norm.eps
        if kind is None:
            continue
        if (kind, eps) not in found:
            found[kind, eps] = NormAct(kind, eps, layout, compiler)
        setattr(module, "forward", FusedForward(module, found[kind, eps]))  # noqa: B010 - mypy takes it for a method's
    return twin, list(found.values())


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, how: NormAct) -> Tensor:
        x = x.detach()  # graphs are asked for their inputs' history
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
        inverse = torch.rsqrt(variance + how.eps)
        scale = weight * inverse
        shift = bias - mean * scale
        ctx.save_for_backward(x, weight, mean, inverse, scale, shift)
        ctx.how = how
        return how.image(how.forward(how.table(x), *how.vectors(len(x), scale, shift)), x.shape)

    @staticmethod
    def backward(ctx: Any, by: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, scale, shift = ctx.saved_tensors
        how: NormAct = ctx.how
        table = how.table(by.detach().contiguous(memory_format=how.layout))
        by_norm = how.image(how.backward(table, how.table(x), *how.vectors(len(x), scale, shift)), x.shape)
        wanted = list(ctx.needs_input_grad[:3])
        found = aten.native_batch_norm_backward(by_norm, x, weight, None, None, mean, inverse, True, how.eps, wanted)
        return *found, None
