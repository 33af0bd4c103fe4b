"""Batch norm over a batch that several processes share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def synchronise(net: nn.Module) -> None:
    """Let every batch norm that normalises with a batch's statistics use those of all processes' images.

    All processes then have to make the same forward and backward passes. Subnets that are extracted are new modules,
    and not concerned.
    """
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            setattr(module, "synchronised", True)  # noqa: B010 - torch's class has no such attribute for mypy


def is_synchronised(norm: nn.BatchNorm2d) -> bool:
    """Whether `synchronise` was called on it."""
    return getattr(norm, "synchronised", False)


def whole_batch_norm(x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float) -> Tensor:
    """Batch norm of x [B, C, S, S], whose batch is the B images of every process; scale, shift: [C] or None.

    One exchange forward and one backward, each of three numbers or two for every channel. The variance is put together
    from the processes' own, without a difference of large sums (Chan, Golub and LeVeque, 1983).
    """
    found: Tensor = _WholeBatchNorm.apply(x, scale, shift, eps)
    return found


class _WholeBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float) -> Tensor:
        import torch.distributed as dist

        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        var, mean = torch.var_mean(wide, dim=(0, 2, 3), correction=0)
        count = torch.full_like(mean, x.numel() / x.shape[1])
        own = torch.stack([count, mean, var])
        everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, own)
        counts, means, variances = torch.stack(everyone, dim=1)  # [processes, C] each
        total = counts.sum(0)
        mean = (counts * means).sum(0) / total
        var = (counts * (variances + (means - mean).square())).sum(0) / total
        inverse = torch.rsqrt(var + eps)
        ctx.save_for_backward(x, scale, mean, inverse, total)
        factor = inverse if scale is None else inverse * scale
        offset = -mean * factor if shift is None else shift - mean * factor
        return torch.addcmul(_along(offset), wide, _along(factor)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, by: Tensor) -> tuple[Tensor | None, ...]:
        import torch.distributed as dist

        x, scale, mean, inverse, total = ctx.saved_tensors
        wide, by_wide = (t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in (x, by))
        normal = (wide - _along(mean)) * _along(inverse)
        sums = torch.stack([by_wide.sum((0, 2, 3)), (by_wide * normal).sum((0, 2, 3))])
        # Of this process's images: like all gradients of weights, they are summed after the step's last pass.
        by_shift, by_scale = sums.clone() if scale is not None else (None, None)
        dist.all_reduce(sums)
        mean_by, mean_product = sums / total
        factor = inverse if scale is None else inverse * scale
        by_x = (by_wide - _along(mean_by) - normal * _along(mean_product)) * _along(factor)
        return by_x.to(x.dtype), by_scale, by_shift, None


def _along(channels: Tensor) -> Tensor:
    """[C] so that it broadcasts over [B, C, S, S]."""
    return channels.view(1, -1, 1, 1)
