"""Partial channels (Xu et al., "PC-DARTS", ICLR 2020): mixed operations run on one part of the channels only.

They save memory where every operation of an edge is run. The other channels pass by, pooled where the edge has a
stride, and a shuffle lets every channel be seen somewhere.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTHS = ("channels", "in_channels", "out_channels")


def thinned(spec: Any, part: int) -> Any:
    """The spec of an operation with 1 / `part` of its channels."""
    changed: dict[str, Any] = {}
    for field in fields(spec):
        value = getattr(spec, field.name)
        if field.name in WIDTHS:
            changed[field.name] = value // part
        elif is_dataclass(value):
            changed[field.name] = thinned(value, part)
    return replace(spec, **changed) if changed else spec


def beside(x: Tensor, out: Tensor, part: int) -> Tensor:
    """`out` [B, C / part, S', S'], what the first channels of `x` [B, C, S, S] gave, and the others: [B, C, S', S']."""
    others = x[:, x.shape[1] // part :]
    if others.shape[-1] != out.shape[-1]:
        others = F.max_pool2d(others, 2, 2, ceil_mode=True)
    joined = torch.cat([out, others], dim=1)
    return joined.unflatten(1, (part, -1)).transpose(1, 2).flatten(1, 2)  # channel shuffle
