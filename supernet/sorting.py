"""Channel sorting: the most important channels of every block first, so that narrower subnets keep them.

Done once, on a trained supernet whose expand ratios are about to become elastic (Once-for-All, section 3.3: the
importance of a channel is the L1 norm of the weights that read it). Only the middle channels of blocks move, so
the largest subnet computes the same function. In the middle of a run, what the optimizer and the moving average hold
for a channel moves along: training then goes on as it would have, but for the names of the channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from supernet.errors import UserError
from supernet.layers.bottleneck import Bottleneck
from supernet.layers.conv import ConvNormAct
from supernet.layers.mbconv import MBConv
from supernet.layers.se import SqueezeExcite
from supernet.net import Supernet
from supernet.space import Space
from supernet.specs import BottleneckSpec, MBConvSpec

# By name of a parameter or buffer of the supernet: the axes along which its channels move, and their new order [C].
Orders = dict[str, list[tuple[int, Tensor]]]


def sort_channels(net: Supernet, stage: int = 0) -> None:
    """Sort the middle channels of every block by importance, in place; running statistics move along.

    An optimizer's state does not: see `sort_training_state`. Blocks whose middle channels are those of the
    layer before them (without an expanding conv) stay as they are.

    Args:
        stage: how many smaller expand ratios the supernet supports already. Their channels stay among
            themselves, so the subnets of these ratios keep their function; 0 sorts all channels freely. What
            squeeze-excite layers have inside is always sorted freely, as in the original code: where subnets
            differ in these widths, theirs changes.

    Raises:
        ValueError: if `stage` does not fit the space, see `check_stage`.
    """
    apply_orders(net, channel_orders(net, stage))


@torch.no_grad()
def sort_training_state(
    net: Supernet, optimizer: torch.optim.Optimizer, ema_net: nn.Module | None = None, stage: int = 0
) -> None:
    """`sort_channels` in the middle of a run, to be called between two steps.

    What the optimizer holds for each entry of a parameter (momentum, second moments), and the moving average
    `ema_net`, get the very order of the live weights.

    Raises:
        ValueError: if `stage` does not fit the space, see `check_stage`.
        UserError: if the optimizer keeps a state that is not one number for each entry; nothing has moved then.
    """
    orders = channel_orders(net, stage)
    held: list[tuple[Tensor, list[tuple[int, Tensor]]]] = []
    for name, parameter in net.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if name not in orders or not isinstance(value, Tensor) or value.numel() <= 1 < parameter.numel():
                continue
            if value.shape != parameter.shape:
                raise UserError(
                    f"sort_channels={stage}: {type(optimizer).__name__}'s {key} is not one number for each weight, so "
                    "its channels cannot be sorted; give another optim, or sort_channels=null"
                )
            held.append((value, orders[name]))
    for tensor, moves in held:
        _move(tensor, moves)
    for module in (net, ema_net):
        if module is not None:
            apply_orders(module, orders)


def check_stage(space: Space, stage: int) -> None:
    """Refuse to sort the supernet of `space` at `stage`, see `sort_channels`.

    Raises:
        ValueError: if `stage` is negative or not below the number of expand ratios, or no block has channels to sort.
    """
    if stage < 0:
        raise ValueError(f"sort_channels={stage}: how many smaller expand ratios are supported already; at least 0")
    ratios = max((len(_widths(space, position)) for position in range(len(space.units))), default=0)
    if ratios == 0:
        raise ValueError(f"sort_channels={stage}: space {space.name!r} has no blocks with channels of their own")
    if stage >= ratios:
        raise ValueError(
            f"sort_channels={stage}: it counts the smaller expand ratios that are supported already, and blocks of "
            f"space {space.name!r} have at most {ratios - 1}"
        )


@torch.no_grad()
def channel_orders(net: Supernet, stage: int = 0) -> Orders:
    """Where `sort_channels` moves the channels: a function of the weights, which stay as they are.

    Raises:
        ValueError: if `stage` does not fit the space, see `check_stage`.
    """
    check_stage(net.space, stage)
    blocks = dict(net.net.named_modules())
    moves = _Moves(net)
    for position, unit in enumerate(net.space.units):
        widths = _widths(net.space, position)
        if not widths:
            continue
        block, groups = blocks[unit.name], [0, *reversed(widths[: stage + 1])]
        if isinstance(block, MBConv):
            _sort_mbconv(block, groups, moves)
        elif isinstance(block, Bottleneck):
            _sort_bottleneck(block, groups, moves)
    return moves.orders


@torch.no_grad()
def apply_orders(module: nn.Module, orders: Orders) -> None:
    """Move the channels of `module`, in place: the supernet itself, or a copy of it such as its moving average."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, moves in orders.items():
        _move(tensors[name], moves)


def _move(tensor: Tensor, moves: Sequence[tuple[int, Tensor]]) -> None:
    for axis, order in moves:
        tensor.copy_(tensor.index_select(axis, order))


def _widths(space: Space, position: int) -> list[int]:
    """The inner widths of the block at a unit's position, descending; none where nothing can be sorted.

    They are those that the block has inside where its input and output are the widest.
    """
    specs: list[Any] = [spec for _, spec in space.specs(position) if spec is not None]
    if not all(isinstance(spec, MBConvSpec | BottleneckSpec) for spec in specs):
        return []
    ends: list[tuple[Any, Any]] = [
        (spec.expand, spec.project) if isinstance(spec, MBConvSpec) else (spec.conv1, spec.conv3) for spec in specs
    ]
    if not ends or any(first is None for first, _ in ends):
        return []
    outer = [(first.in_channels, last.out_channels) for first, last in ends]
    widest = (max(width for width, _ in outer), max(width for _, width in outer))
    inner = {last.in_channels for (_, last), around in zip(ends, outer, strict=True) if around == widest}
    return sorted(inner, reverse=True)


class _Moves:
    """Collects `Orders`; knows the names of a supernet's tensors."""

    def __init__(self, net: Supernet) -> None:
        self._names = {id(tensor): name for name, tensor in [*net.named_parameters(), *net.named_buffers()]}
        self.orders: Orders = {}

    def _add(self, tensor: Tensor | None, axis: int, order: Tensor) -> None:
        if tensor is not None:
            self.orders.setdefault(self._names[id(tensor)], []).append((axis, order))

    def inputs(self, layer: ConvNormAct, order: Tensor) -> None:
        self._add(layer.conv.weight, 1, order)

    def outputs(self, layer: ConvNormAct, order: Tensor) -> None:
        self._add(layer.conv.weight, 0, order)
        self._add(layer.conv.bias, 0, order)
        if layer.norm is not None:
            for tensor in (layer.norm.weight, layer.norm.bias, layer.norm.running_mean, layer.norm.running_var):
                self._add(tensor, 0, order)


def _sort_mbconv(block: MBConv, groups: Sequence[int], moves: _Moves) -> None:
    assert block.expand is not None
    order = _order(block.project, groups)
    moves.inputs(block.project, order)
    moves.outputs(block.depthwise, order)
    if block.se is not None:
        _sort_squeeze_excite(block.se, order, moves)
    moves.outputs(block.expand, order)


def _sort_squeeze_excite(se: SqueezeExcite, order: Tensor, moves: _Moves) -> None:
    hidden = _order(se.expand, [0, se.expand.conv.in_channels])
    moves.outputs(se.expand, order)
    moves.inputs(se.expand, hidden)
    moves.inputs(se.reduce, order)
    moves.outputs(se.reduce, hidden)


def _sort_bottleneck(block: Bottleneck, groups: Sequence[int], moves: _Moves) -> None:
    """The middle of conv3's inputs, and that of conv2's."""
    for reader, writer in ((block.conv3, block.conv2), (block.conv2, block.conv1)):
        order = _order(reader, groups)
        moves.inputs(reader, order)
        moves.outputs(writer, order)


def _order(reader: ConvNormAct, groups: Sequence[int]) -> Tensor:
    """The channels that `reader` reads, the most important of each group first: indices [C]."""
    importance = reader.conv.weight.abs().sum((0, 2, 3))
    parts = [low + importance[low:high].argsort(descending=True, stable=True) for low, high in pairwise(groups)]
    return torch.cat(parts)
