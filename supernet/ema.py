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
        n = int(count)
        torch._foreach_lerp_(list(ema), list(current), 1.0 - min(decay, (1.0 + n) / (10.0 + n)))

    return AveragedModel(model, multi_avg_fn=average)
