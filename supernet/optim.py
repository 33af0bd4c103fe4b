"""Weight decay where it belongs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def parameter_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two optimizer groups: weights of convolutions and linear layers decay, norms and biases do not.

    Nor do the parameters that a module names in its `no_weight_decay` (tokens, positions, biases of more than one
    axis). The largest subnet holds every weight (but a shortcut's 1x1 conv that only smaller ones need) and is trained
    in every sandwich step, so decaying all weights once a step is decay "on the largest only" (BigNAS, section 3.1).
    """
    exempt = {id(getattr(m, name)) for m in net.modules() for name in getattr(m, "no_weight_decay", ())}
    decayed = [p for p in net.parameters() if p.ndim > 1 and id(p) not in exempt]
    plain = [p for p in net.parameters() if p.ndim <= 1 or id(p) in exempt]
    assert len(decayed) + len(plain) == sum(1 for _ in net.parameters())
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def for_members(optim: Mapping[str, Any], members: int) -> dict[str, Any]:
    """The settings of an optimizer for so many supernets trained at once.

    Where some of them rest in a step (see `supernet.sharing.members.Resting`) their weights have no gradient, and
    PyTorch's fused kernels then fail on the momentum that they do not have yet.
    """
    return {key: value for key, value in optim.items() if key != "fused" or members == 1}


def zero_gradients(net: nn.Module) -> None:
    """Give every parameter a gradient of zeros.

    A weight that no subnet of a step uses then has a zero gradient like the unused part of a slice, not none at all:
    decay and momentum treat both alike, also in the first step after a restart.
    """
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
