"""Initial weights of a supernet."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from supernet.layers.mbconv import MBConv
from supernet.net import Supernet

ZeroGamma = Literal["identity", "all", "none"]


@torch.no_grad()
def initialise(net: Supernet, seed: int, conv: Literal["fan_out", "torch"], zero_gamma: ZeroGamma) -> None:
    """Fill all weights from `seed`, whatever they held before.

    Args:
        conv: "fan_out": normal with variance 2 / (k^2 out / groups), classifier normal with sd 0.01
            (MobileNetV2 and descendants); "torch": PyTorch's defaults (AttentiveNAS, AlphaNet).
        zero_gamma: which blocks start with a zero scale in their last norm: those that have an identity
            shortcut at the largest widths (BigNAS), all (AlphaNet), or none. A zeroed block with an identity
            shortcut returns its input, so the deepest network starts as easy to train as the shallowest. Blocks
            that lack a shortcut in some subnet are left alone: that subnet would see nothing but zeros.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                module.reset_parameters()
            if conv == "fan_out" and isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                module.weight.normal_(0.0, math.sqrt(2.0 / fan_out))
                if module.bias is not None:
                    module.bias.zero_()
            elif conv == "fan_out" and isinstance(module, nn.Linear):
                module.weight.normal_(0.0, 0.01)
                module.bias.zero_()
    if zero_gamma == "none":
        return
    blocks = {name: module for name, module in net.net.named_modules() if isinstance(module, MBConv)}
    largest = net.space.plan(net.space.largest())
    for position, unit in enumerate(net.space.units):
        if unit.name in blocks:
            around = largest[unit.name].shortcut
            always = all(spec.shortcut for _, spec in net.space.specs(position) if spec is not None)
            norm = blocks[unit.name].project.norm
            assert norm is not None
            if zero_gamma == "all" or (around is not None and around.identity and always):
                norm.weight.zero_()
