"""A teacher that is trained already: the largest network of another run, or of this run at an earlier time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from supernet.build import changed_splits, open_run
from supernet.data.base import resize
from supernet.errors import UserError
from supernet.net import Supernet

if TYPE_CHECKING:
    from supernet.data import Data


class Teacher:
    """The logits of a frozen network. It normalises with the statistics of its batch, as it did when it was trained.

    Once-for-All's teacher does so too. A network that holds running statistics (imported weights) uses those.
    """

    def __init__(self, network: nn.Module, resolution: int) -> None:
        self.network, self.resolution = network.eval().requires_grad_(False), resolution

    @torch.no_grad()
    def __call__(self, images: Tensor, autocast: bool = False) -> Tensor:
        """Images [B, C, S, S] -> logits [B, K]."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
            logits: Tensor = self.network(resize(images, self.resolution))
        return logits


def largest_of(net: Supernet) -> Teacher:
    """The largest subnet as it is now; a copy."""
    largest = net.space.largest()
    return Teacher(net.extract(largest), net.space.resolution(largest))


def load_teacher(source: str, data: Data, device: torch.device) -> Teacher:
    """The largest subnet of the run or checkpoint at `source`.

    Raises:
        UserError: if there is none, or it has other classes or channels than the data.
    """
    try:
        run = open_run(Path(source), device)
    except UserError as error:
        raise UserError(f"teacher={source}: {error}; give the folder of a finished run, or a checkpoint") from None
    net, info = run.net, data.info
    config = net.space.description
    have, need = (config.get("num_classes"), config.get("in_channels")), (info.num_classes, info.channels)
    if have != need:
        raise UserError(
            f"teacher={source}: it has {have[0]} classes and {have[1]} channels, but data {info.name!r} has "
            f"{need[0]} and {need[1]}"
        )
    if "dataset" in changed_splits(run, data):
        print(f"warning: teacher={source} was trained on other data", file=sys.stderr)
    return largest_of(net)
