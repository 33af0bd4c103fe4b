"""Initial weights of a supernet."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn

from supernet.net import Supernet

ZeroGamma = Literal["identity", "all", "none"]
Init = Literal["fan_out", "torch", "trunc_normal"]


@torch.no_grad()
def initialise(net: Supernet, seed: int, conv: Init, zero_gamma: ZeroGamma) -> None:
    """Fill all weights from `seed`, whatever they held before.

    Every layer starts with its own `reset_parameters`; `conv` then says what differs.

    Args:
        conv: "fan_out": convolutions normal with variance 2 / (k^2 out / groups), linear layers normal with sd 0.01
            (MobileNetV2 and descendants, whose classifier is the one linear layer); "torch": nothing, PyTorch's
            defaults (AttentiveNAS, AlphaNet); "trunc_normal": linear layers truncated normal with sd 0.02, their
            biases zero (vision transformers, AutoFormer).
        zero_gamma: which blocks start with a zero scale in their last norm: those that have an identity
            shortcut at the largest widths (BigNAS), all (AlphaNet), or none. A zeroed block with an identity
            shortcut returns its input, so the deepest network starts as easy to train as the shallowest. Blocks
            that lack a shortcut in some subnet are left alone: that subnet would see nothing but zeros. A block is
            a module with a `last_norm`; transformer blocks have none.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in net.modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
            if conv == "fan_out" and isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                module.weight.normal_(0.0, math.sqrt(2.0 / fan_out))
                if module.bias is not None:
                    module.bias.zero_()
            elif conv == "fan_out" and isinstance(module, nn.Linear):
                module.weight.normal_(0.0, 0.01)
                module.bias.zero_()
            elif conv == "trunc_normal" and isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                module.bias.zero_()
    if zero_gamma != "none":
        _zero_last_norms(net, zero_gamma)


def _zero_last_norms(net: Supernet, rule: ZeroGamma) -> None:
    """Zero the scale of the last norm of the blocks that `rule` names, see `initialise`."""
    last_norms = {name: getattr(module, "last_norm", None) for name, module in net.net.named_modules()}
    largest = net.space.plan(net.space.largest())
    for position, unit in enumerate(net.space.units):
        norm: Any = last_norms.get(unit.name)
        if norm is None or not norm.affine:
            continue
        around = (largest.get(unit.name) or net.space.widest[unit.name]).shortcut
        always = all(spec.shortcut for _, spec in net.space.specs(position) if spec is not None)
        if rule == "all" or (around is not None and around.identity and always):
            norm.weight.zero_()
