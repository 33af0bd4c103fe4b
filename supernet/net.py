"""`Supernet`: the largest network of a space, and every subnet inside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from supernet.calibrate import has_statistics, track_statistics
from supernet.mixture import Mixture
from supernet.slicing import copy_slices
from supernet.space import Arch, Space


def memory_format(module: nn.Module) -> torch.memory_format:
    """The memory format of a network's convolutions: `channels_last` after `.to(memory_format=...)`.

    Read off the strides of the first k x k conv, because 1x1 weights are contiguous in both formats.
    """
    weights = (m.weight for m in module.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1)
    first = next(weights, None)
    return torch.channels_last if first is not None and first.stride(1) == 1 else torch.contiguous_format


class Supernet(nn.Module):
    """One set of weights for all subnets of a space. The subnet is an argument of `forward`, never a state.

    Attributes:
        space: what can be chosen.
        net: the network of `space.widest`, built of the very classes that exported subnets are built of.
    """

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space
        self.net = space.module(space.widest)

    def forward(
        self, x: Tensor, arch: Arch | Mixture | None = None, dropout: float = 0.0, drop_path: float = 0.0
    ) -> Tensor:
        """Logits [B, classes] of subnet `arch` (None: the largest), or of a mixture, for images [B, C, S, S].

        Resize the images to the subnet's resolution beforehand (`supernet.data.resize`). `dropout` and
        `drop_path` are rates in [0, 1) and act in training mode only.
        """
        if isinstance(arch, Mixture):
            return self.net(x, arch.plan, dropout=dropout, drop_path=drop_path)
        plan = self.space.plan(self.space.largest() if arch is None else arch)
        return self.net(x, plan, dropout=dropout, drop_path=drop_path)

    def resize(self, x: Tensor, arch: Arch) -> Tensor:
        """Images [B, C, H, W] at the resolution of subnet `arch`, bicubic; the input itself if it has it already."""
        from supernet.data.base import resize  # an exported subnet is loaded without the data package

        return resize(x, self.space.resolution(arch))

    def extract(self, arch: Arch) -> nn.Module:
        """The subnet as a module of its own: plain torch layers, copied weights, the same numbers bit for bit.

        Its batch norms use batch statistics until `supernet.calibrate` has measured some; where the supernet holds
        running statistics (imported weights may), the subnet gets its slice of them.
        """
        with torch.random.fork_rng(devices=[]):  # construction draws weights that are overwritten at once
            subnet = self.space.module(self.space.plan(arch))
        if has_statistics(self.net):
            track_statistics(subnet)
        weight = next(self.parameters())
        target: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype, "memory_format": memory_format(self)}
        subnet.to(**target)  # all in one pass over the tensors
        copy_slices(self.net, subnet)
        return subnet.train(self.training)
