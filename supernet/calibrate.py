"""Batch-norm statistics for one subnet: measured, never inherited."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def track_statistics(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Give every batch norm of `model` fresh running statistics, in place; returns those norms."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = True
        norm.running_mean = torch.zeros_like(norm.weight, requires_grad=False)
        norm.running_var = torch.ones_like(norm.weight, requires_grad=False)
        norm.num_batches_tracked = torch.zeros((), dtype=torch.long, device=norm.weight.device)
    return norms


@torch.no_grad()
def calibrate(subnet: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Set the batch-norm statistics of an extracted subnet; returns it, in eval mode.

    Statistics are the cumulative average over `batches` ([B, C, S, S] at the subnet's resolution, plain training
    images). Only the norms are in train mode meanwhile, so dropout and drop-path stay off. Afterwards they are
    ordinary batch norms that fine-tuning updates as usual.

    Raises:
        ValueError: if `batches` is empty.
    """
    subnet.eval()
    norms = track_statistics(subnet)
    for norm in norms:
        norm.momentum = None  # cumulative average
        norm.train()
    count = 0
    for images in batches:
        subnet(images)
        count += 1
    if not count:
        raise ValueError("calibration needs at least one batch")
    for norm in norms:
        norm.momentum = 0.1
    return subnet.eval()
