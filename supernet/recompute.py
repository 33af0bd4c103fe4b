"""Activation checkpointing: blocks forget what they computed, and compute it again in the backward pass.

Kept for the backward pass are the inputs of blocks only (Chen et al., "Training Deep Nets with Sublinear Memory
Cost", 2016). Weights, losses and gradients are the same bit for bit, dropout and drop-path included: torch restores
the states of the random generators. The price is one more forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recomputed:
    """The `forward` of a module whose activations are computed again in the backward pass.

    Acts in training mode with gradients enabled, and only then. It is an attribute of the instance and names the
    module, so that a deep copy of the module runs the copy's weights.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = type(self.module).forward
        if not (self.module.training and torch.is_grad_enabled()):
            return forward(self.module, *args, **kwargs)
        return checkpoint(forward, self.module, *args, use_reentrant=False, **kwargs)


def blocks_of(net: nn.Module) -> list[nn.Module]:
    """The parts that run one after another, in order: stem, blocks or cells, head. Lists of modules are opened."""
    return list(dict.fromkeys(_opened(net)))


def _opened(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList) or type(child) is nn.ModuleDict:
            yield from _opened(child)
        else:
            yield child


def recomputed_blocks(net: nn.Module) -> list[nn.Module]:
    """The blocks that are worth computing again: all but the last, whose backward pass comes first.

    Args:
        net: `Supernet.net`, or the network of an extracted subnet.
    """
    return blocks_of(net)[:-1]


def checkpoint_activations(net: nn.Module) -> None:
    """Make every block of `net` but its last compute its activations again in the backward pass; see `Recomputed`.

    Nothing else changes: names of parameters, results, evaluation, what is extracted. Modules that are treated
    already stay as they are. Batch norms must not keep running statistics in training mode, which would be updated
    twice; a supernet's keep none. Compile blocks afterwards, not before.

    Args:
        net: `Supernet.net`, or that of each member of a grouped supernet.
    """
    for block in recomputed_blocks(net):
        if not isinstance(block.forward, Recomputed):
            setattr(block, "forward", Recomputed(block))  # noqa: B010 - mypy takes an assignment for a method's


@contextmanager
def nothing_recomputed(net: nn.Module) -> Iterator[None]:
    """Undo `checkpoint_activations` for a while."""
    treated = {block: block.forward for block in blocks_of(net) if isinstance(block.forward, Recomputed)}
    for block in treated:
        delattr(block, "forward")
    try:
        yield
    finally:
        for block, forward in treated.items():
            setattr(block, "forward", forward)  # noqa: B010
