"""Exponential moving average of the weights, torch's `AveragedModel` with a warmed-up decay."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[Tensor, ...] | list[Tensor]


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A moving average of `model`; call `.update_parameters(model)` after every step, read `.module`.

    The decay in use is min(decay, (1 + n) / (10 + n)) after n updates, so that short runs are not dominated by
    the initial weights.
    """

    def average(ema: Tensors, current: Tensors, count: Tensor | int) -> None:
        n = torch.as_tensor(count, dtype=torch.float64)  # stays on the device: reading it would wait for the GPU
        weight = 1.0 - ((1.0 + n) / (10.0 + n)).clamp(max=decay)
        for old, new in zip(ema, current, strict=True):
            old.lerp_(new, weight.to(old.dtype))

    return AveragedModel(model, multi_avg_fn=average)
