"""Applying the operations of augmentation policies to batches of images, on their device.

Values are rounded to whole numbers after each operation, as in Pillow. All results are Pillow's own, except that
interpolated values of affine maps differ a little: Pillow's bicubic curve and its rounding of coordinates are others.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.data.operations import Kind, Operations


def apply(images: Tensor, operations: Operations, fill: Tensor) -> Tensor:
    """Apply each image's operations to uint8 images `[B, 3, S, S]`, in place; returns them.

    `fill`: uint8 `[3]`, the colour that affine maps bring in from outside. All tensors are on one device, but for
    `operations.counts`. Does not wait for the device.
    """
    for parameters, order, counts in zip(*operations[:2], operations.counts.tolist(), strict=True):
        start = counts[Kind.NOTHING]
        for group in _GROUPS:
            numbers = [counts[kind] for kind in group]
            stop = start + sum(numbers)
            if stop > start:
                rows = order[start:stop]
                images[rows] = _change(group, numbers, images[rows], parameters[start:stop], fill)
            start = stop
    return images


def _change(group: tuple[Kind, ...], numbers: list[int], images: Tensor, parameters: Tensor, fill: Tensor) -> Tensor:
    match group[0]:
        case Kind.FLIP:
            return images.flip(3)
        case Kind.NEAREST | Kind.BILINEAR | Kind.BICUBIC:
            return _warp(images, parameters, group[0].name.lower(), fill)
        case Kind.COLOR:
            return _blend(_grey(images).unsqueeze(1), images, parameters[:, :1, None, None])
        case Kind.SHARPNESS:
            return _blend(_smooth(images), images, parameters[:, :1, None, None])
    found, factors = (
        zip(images.split(numbers), parameters[:, :1, None].split(numbers), strict=True),
        list(_TABLES.values()),
    )
    tables = [table(some, factor).expand(-1, 3, -1) for table, (some, factor) in zip(factors, found, strict=True)]
    return torch.cat(tables).gather(2, images.flatten(2).long()).view_as(images)


def _warp(images: Tensor, parameters: Tensor, mode: str, fill: Tensor) -> Tensor:
    """Affine maps of squares: pixels whose centre comes from outside are `fill`, others are interpolated."""
    a, b, c, d, e, f = parameters.unbind(1)
    # From pixels in 0..S to the coordinates of affine_grid, -1..1.
    scale = 2 / images.shape[-1]
    theta = torch.stack([a, b, a + b - 1 + c * scale, d, e, d + e - 1 + f * scale], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    found = F.grid_sample(images.float(), grid, mode, padding_mode="border", align_corners=False)
    inside = ((grid >= -1) & (grid < 1)).all(-1).unsqueeze(1)
    return torch.where(inside, found.clamp(0, 255).to(torch.uint8), fill.view(3, 1, 1))


def _blend(start: Tensor, end: Tensor, factor: Tensor) -> Tensor:
    """`start` at 0, `end` at 1, and on that line beyond; rounded down to uint8, as Pillow does."""
    start = start.float()
    return (start + factor * (end.float() - start)).clamp(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Brightness `[B, S, S]` by the weights of ITU-R 601-2 in 16 bits, as Pillow does."""
    red, green, blue = images.to(torch.int32).unbind(1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def _smooth(images: Tensor) -> Tensor:
    """Means over 3 × 3 pixels in which the middle one counts five times; the border stays."""
    kernel = torch.ones(3, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = (F.conv2d(images.float(), kernel, groups=3) / 13 + 0.5).to(torch.uint8)
    return smooth


# Operations on single values are tables [B, 1 or 3, 256] of what becomes of each value; factors [B, 1, 1].


def _levels(factors: Tensor) -> Tensor:
    return torch.arange(256, device=factors.device, dtype=torch.uint8).view(1, 1, 256).expand(len(factors), -1, -1)


def _brightness(images: Tensor, factors: Tensor) -> Tensor:
    return _blend(torch.zeros_like(factors), _levels(factors), factors)


def _contrast(images: Tensor, factors: Tensor) -> Tensor:
    means = (_grey(images).double().mean((1, 2)) + 0.5).floor()
    return _blend(means.view(-1, 1, 1), _levels(factors), factors)


def _posterize(images: Tensor, factors: Tensor) -> Tensor:
    steps = torch.exp2(8 - factors.clamp(0, 8)).to(torch.int32)
    return (_levels(factors) // steps * steps).to(torch.uint8)


def _solarize(images: Tensor, factors: Tensor) -> Tensor:
    levels = _levels(factors)
    return torch.where(levels < factors, levels, 255 - levels)


def _solarize_add(images: Tensor, factors: Tensor) -> Tensor:
    levels = _levels(factors)
    return torch.where(levels < 128, (levels + factors).clamp(max=255).to(torch.uint8), levels)


def _invert(images: Tensor, factors: Tensor) -> Tensor:
    return 255 - _levels(factors)


def _autocontrast(images: Tensor, factors: Tensor) -> Tensor:
    """Stretches each channel to 0..255; one with a single value stays."""
    low, high = (bound.double().unsqueeze(-1) for bound in images.flatten(2).aminmax(dim=2))
    levels = _levels(factors)
    scale = 255 / (high - low).clamp(min=1)
    stretched = (levels * scale + -low * scale).clamp(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, levels)


def _equalize(images: Tensor, factors: Tensor) -> Tensor:
    """Spreads the values of each channel evenly; the most frequent bright value sets the step, as in Pillow."""
    values = images.flatten(2).long()
    ones = torch.ones((), dtype=torch.int64, device=images.device).expand_as(values)
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.int64, device=images.device).scatter_add_(2, values, ones)
    last = counts.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - last) // 255
    below = counts.cumsum(2) - counts
    spread = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255).to(torch.uint8)
    return torch.where(step > 0, spread, _levels(factors))


_TABLES: dict[Kind, Callable[[Tensor, Tensor], Tensor]] = {
    Kind.BRIGHTNESS: _brightness,
    Kind.CONTRAST: _contrast,
    Kind.POSTERIZE: _posterize,
    Kind.SOLARIZE: _solarize,
    Kind.SOLARIZE_ADD: _solarize_add,
    Kind.INVERT: _invert,
    Kind.AUTOCONTRAST: _autocontrast,
    Kind.EQUALIZE: _equalize,
}
# Kinds in the order of their numbers; those of a group are handled together.
_GROUPS = (
    (Kind.FLIP,),
    (Kind.NEAREST,),
    (Kind.BILINEAR,),
    (Kind.BICUBIC,),
    tuple(_TABLES),
    (Kind.COLOR,),
    (Kind.SHARPNESS,),
)
assert [kind for group in _GROUPS for kind in group] == list(Kind)[1:]
