"""Exponential moving average of the weights with a warmed-up decay."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Average(nn.Module):
    """A moving average of a network's parameters; its buffers are those of the last update.

    All numbers that an update needs are known on the host and its tensors go through a few joint kernels, so that
    nothing waits for a GPU. (torch's `AveragedModel` copies its count of updates to the device each time.)

    Attributes:
        module: the averaged network.
        n_averaged: number of updates so far, int64 []; always on the CPU.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(model)
        self.decay = decay
        self.n_averaged = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move towards `model`, a network of the same shapes; the first update copies it."""
        n = int(self.n_averaged)
        averages: list[Tensor] = list(self.module.parameters())
        current: list[Tensor] = list(model.parameters())
        if n:
            torch._foreach_lerp_(averages, current, 1.0 - min(self.decay, (1 + n) / (10 + n)))
        else:
            torch._foreach_copy_(averages, current)
        for old, new in zip(self.module.buffers(), model.buffers(), strict=True):
            old.copy_(new)
        self.n_averaged += 1


def averaged(model: nn.Module, decay: float) -> Average:
    """A moving average of `model`; call `.update_parameters(model)` after every step, read `.module`.

    The decay in use is min(decay, (1 + n) / (10 + n)) after n updates, so that short runs are not dominated by
    the initial weights.
    """
    return Average(model, decay)
