"""The one weight-slicing rule, and extraction, which is the same rule applied once.

A smaller layer uses the leading channels of the larger one and the centre of its kernel. Full dimensions are
not narrowed, so at the largest size a slice is the parameter itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import gt
from typing import cast

import torch
from torch import Tensor, nn

CONV_KERNEL_DIMS = (2, 3)


def take(weight: Tensor, shape: Sequence[int], centred: tuple[int, ...] = ()) -> Tensor:
    """The part of `weight` that a subnet of the given `shape` uses, as a view.

    Dimensions in `centred` keep their middle, all others their leading entries.

    Raises:
        ValueError: if `shape` does not fit inside `weight`.
    """
    have = weight.shape
    if len(shape) != len(have) or any(map(gt, shape, have)):
        raise ValueError(f"a slice of shape {tuple(shape)} does not fit in a weight of shape {tuple(have)}")
    for dim, (length, whole) in enumerate(zip(shape, have, strict=True)):
        if length != whole:
            weight = weight.narrow(dim, (whole - length) // 2 if dim in centred else 0, length)
    return weight


def slice_weight(layer: nn.Module, shape: Sequence[int]) -> Tensor:
    """The part of a layer's `weight` that a subnet of the given `shape` uses.

    Layers whose rule is more than a slice say so themselves, in a method of the same name.
    """
    own = getattr(layer, "slice_weight", None)
    if own is not None:
        return cast(Tensor, own(shape))
    centred = CONV_KERNEL_DIMS if isinstance(layer, nn.Conv2d) else ()
    return take(cast(Tensor, layer.weight), shape, centred)


@torch.no_grad()
def copy_slices(source: nn.Module, target: nn.Module) -> None:
    """Fill every parameter and buffer of `target` with its slice of the module of the same name in `source`.

    Kernel transforms that `source` lacks keep the values that they have, the identity at first.

    Raises:
        AttributeError: if `target` has any other module that `source` lacks.
    """
    origins = dict(source.named_modules())
    for name, module in target.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if not own or (isinstance(module, nn.ParameterDict) and name not in origins):
            continue
        if name not in origins:
            raise AttributeError(f"{type(source).__name__} has no module {name!r}")
        origin = origins[name]
        for key, tensor in own:
            wide = getattr(origin, key)
            tensor.copy_(slice_weight(origin, tensor.shape) if key == "weight" else take(wide, tensor.shape))
