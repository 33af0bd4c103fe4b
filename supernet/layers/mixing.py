"""Sums over what the options of a mixture give. Of one subnet, the sum has one summand, which comes back as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from supernet.specs import Plan


def add(total: Tensor | None, x: Tensor, weight: float | Tensor) -> Tensor | None:
    """`total` + `weight` * `x`; None is an empty sum, 1.0 and 0.0 are not computed (see `Plan.weight`)."""
    if isinstance(weight, float):
        if weight == 0.0:
            return total
        part = x if weight == 1.0 else x * weight
    else:
        part = x * weight
    return part if total is None else total + part


def fitted(x: Tensor, channels: int) -> Tensor:
    """[B, C, S, S] -> [B, channels, S, S]: leading channels, or zeros behind those that there are."""
    have = x.shape[1]
    return x[:, :channels] if have >= channels else F.pad(x, (0, 0, 0, 0, 0, channels - have))


def in_depth(x: Tensor, plan: Plan, names: Sequence[str], blocks: Sequence[Callable[[Tensor, Any], Tensor]]) -> Tensor:
    """Blocks one after another, of which a subnet has the first so many: what comes out of its last one.

    Of a mixture, the sum over depths of their probability times what comes out at that depth (TangleNAS).

    Args:
        names: of the blocks in the plan.
        blocks: called as `block(x, spec)`.
    """
    total: Tensor | None = None
    for i, (name, block) in enumerate(zip(names, blocks, strict=True)):
        spec = plan.get(name)
        if spec is None:
            break
        x = block(x, spec)
        total = add(total, x, plan.weight([name], names[i + 1 : i + 2]))
    return x if total is None else total
