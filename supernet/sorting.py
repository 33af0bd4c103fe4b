"""Channel sorting: the most important channels of every block first, so that narrower subnets keep them.

Done once, on a trained supernet whose expand ratios are about to become elastic (Once-for-All, section 3.3: the
importance of a channel is the L1 norm of the weights that read it). Only the middle channels of blocks move, so
the largest subnet computes the same function.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from supernet.layers.bottleneck import Bottleneck
from supernet.layers.conv import ConvNormAct
from supernet.layers.mbconv import MBConv
from supernet.layers.se import SqueezeExcite
from supernet.net import Supernet


@torch.no_grad()
def sort_channels(net: Supernet, stage: int = 0) -> None:
    """Sort the middle channels of every block by importance, in place; running statistics move along.

    Sort before the optimiser is made: its state does not move. Blocks whose middle channels are those of the
    layer before them (without an expanding conv) stay as they are.

    Args:
        stage: how many smaller expand ratios the supernet supports already. Their channels stay among
            themselves, so the subnets of these ratios keep their function; 0 sorts all channels freely. What
            squeeze-excite layers have inside is always sorted freely, as in the original code: where subnets
            differ in these widths, theirs changes.

    Raises:
        ValueError: if `stage` is negative, or no block has channels to sort.
    """
    if stage < 0:
        raise ValueError(f"sort_channels={stage}: how many smaller expand ratios are supported already; at least 0")
    blocks = dict(net.net.named_modules())
    sortable: list[tuple[MBConv | Bottleneck, list[int]]] = []
    for position, unit in enumerate(net.space.units):
        block = blocks.get(unit.name)
        if isinstance(block, MBConv) and block.expand is not None:
            sortable.append((block, _groups(net, position, "project", stage)))
        elif isinstance(block, Bottleneck):
            sortable.append((block, _groups(net, position, "conv3", stage)))
    if not sortable:
        raise ValueError(f"sort_channels={stage}: space {net.space.name!r} has no blocks with channels of their own")
    for block, groups in sortable:
        if isinstance(block, MBConv):
            _sort_mbconv(block, groups)
        else:
            _sort_bottleneck(block, groups)


def _groups(net: Supernet, position: int, last: str, stage: int) -> list[int]:
    """Bounds of the groups of channels that stay among themselves, ascending from 0 to the full width.

    The supported widths are those that the block has inside where its input and output are the widest.
    """
    first = "expand" if last == "project" else "conv1"
    specs = [spec for _, spec in net.space.specs(position) if spec is not None]

    def outer(spec: Any) -> tuple[int, int]:
        return getattr(spec, first).in_channels, getattr(spec, last).out_channels

    widest = (max(outer(spec)[0] for spec in specs), max(outer(spec)[1] for spec in specs))
    widths = sorted({getattr(spec, last).in_channels for spec in specs if outer(spec) == widest}, reverse=True)
    return [0, *reversed(widths[: stage + 1])]


def _sort_mbconv(block: MBConv, groups: Sequence[int]) -> None:
    assert block.expand is not None
    order = _order(block.project, groups)
    _permute_inputs(block.project, order)
    _permute_outputs(block.depthwise, order)
    if block.se is not None:
        _sort_squeeze_excite(block.se, order)
    _permute_outputs(block.expand, order)


def _sort_squeeze_excite(se: SqueezeExcite, order: Tensor) -> None:
    _permute_outputs(se.expand, order)
    _permute_inputs(se.reduce, order)
    hidden = _order(se.expand, [0, se.expand.conv.in_channels])
    _permute_inputs(se.expand, hidden)
    _permute_outputs(se.reduce, hidden)


def _sort_bottleneck(block: Bottleneck, groups: Sequence[int]) -> None:
    """The middle of conv3's inputs first, then that of the reordered conv2's."""
    for reader, writer in ((block.conv3, block.conv2), (block.conv2, block.conv1)):
        order = _order(reader, groups)
        _permute_inputs(reader, order)
        _permute_outputs(writer, order)


def _order(reader: ConvNormAct, groups: Sequence[int]) -> Tensor:
    """The channels that `reader` reads, the most important of each group first: indices [C]."""
    importance = reader.conv.weight.abs().sum((0, 2, 3))
    parts = [low + importance[low:high].argsort(descending=True, stable=True) for low, high in pairwise(groups)]
    return torch.cat(parts)


def _permute_inputs(layer: ConvNormAct, order: Tensor) -> None:
    weight = layer.conv.weight
    weight.copy_(weight[:, order])


def _permute_outputs(layer: ConvNormAct, order: Tensor) -> None:
    tensors = [layer.conv.weight, layer.conv.bias]
    if layer.norm is not None:
        tensors += [layer.norm.weight, layer.norm.bias, layer.norm.running_mean, layer.norm.running_var]
    for tensor in tensors:
        if tensor is not None:
            tensor.copy_(tensor[order])
