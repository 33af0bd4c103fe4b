"""Random augmentation of whole batches on their device, without a Python loop over the images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.data.base import Normalise, check_int
from supernet.errors import UserError


@dataclass(frozen=True)
class Augment:
    """Which augmentations to apply; each is off by default.

    shift: translate by up to this many pixels each way; black comes in from outside.
    flip: mirror left-right with probability 1/2.
    rotate: turn by up to this many degrees each way.
    scale: zoom by a factor drawn from [1 - scale, 1 + scale].
    erase: probability of erasing a random rectangle (Zhong et al. 2017) of 2% to 33% of the area.
    cutout: side in pixels of an erased square at a random place (DeVries & Taylor 2017), cut at the border.

    Raises UserError for a value out of range.
    """

    shift: int = 0
    flip: bool = False
    rotate: float = 0.0
    scale: float = 0.0
    erase: float = 0.0
    cutout: int = 0

    def __post_init__(self) -> None:
        check_int("data.augment.shift", self.shift, minimum=0)
        check_int("data.augment.cutout", self.cutout, minimum=0)
        if not isinstance(self.flip, bool):
            raise UserError(f"data.augment.flip={self.flip!r} is not valid: give true or false")
        _check_range("rotate", self.rotate, 180.0)
        _check_range("scale", self.scale, 0.99)
        _check_range("erase", self.erase, 1.0)

    @classmethod
    def from_config(cls, values: Mapping[str, Any] | None) -> Augment:
        """Build from the `augment` section of a dataset's YAML; UserError for a name that does not exist."""
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values or {}) - set(known))
        if unknown:
            raise UserError(f"data.augment.{unknown[0]} does not exist: choose from {', '.join(known)}")
        return cls(**(values or {}))

    def __call__(self, images: Tensor, normalise: Normalise, generator: torch.Generator) -> Tensor:
        """Augment and normalise uint8 images `[B, C, H, W]` into float32; all draws come from `generator`.

        Erased pixels become 0 after normalisation, which is the dataset's mean colour.
        """
        if self.shift or self.flip:
            images = shift_flip(images, *self._draw_shift_flip(images, generator), self.shift)
        if self.rotate or self.scale:
            images = F.grid_sample(images.to(torch.float32), self._draw_grid(images, generator), align_corners=False)
        images = normalise(images)
        if self.erase:
            images.masked_fill_(self._draw_rectangle(images, generator), 0.0)
        if self.cutout:
            images.masked_fill_(self._draw_square(images, generator), 0.0)
        return images

    def _draw_shift_flip(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        offset = torch.randint(-self.shift, self.shift + 1, (2, len(images)), generator=rng, device=images.device)
        flip = torch.rand(len(images), generator=rng, device=images.device) < 0.5 * self.flip
        return offset[0], offset[1], flip

    def _draw_grid(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Sampling grid `[B, H, W, 2]` of a random rotation and zoom about the centre."""
        turn, zoom = torch.rand(2, len(images), generator=rng, device=images.device) * 2 - 1
        angle = turn * math.radians(self.rotate)
        # The grid maps output to input, so that a zoom by z samples at distances divided by z.
        cos, sin = torch.stack([angle.cos(), angle.sin()]) / (1 + zoom * self.scale)
        zero = torch.zeros_like(cos)
        theta = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3)
        return F.affine_grid(theta, list(images.shape), align_corners=False)

    def _draw_rectangle(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Mask `[B, 1, H, W]` of one rectangle per image, empty with probability 1 - erase."""
        height, width = images.shape[-2:]
        hit, area, aspect, y, x = torch.rand(5, len(images), generator=rng, device=images.device)
        pixels = (0.02 + area * 0.31) * height * width
        ratio = torch.exp((aspect * 2 - 1) * math.log(1 / 0.3))
        tall = (pixels * ratio).sqrt().round().clamp(1, height)
        wide = (pixels / ratio).sqrt().round().clamp(1, width)
        top = (y * (height - tall + 1)).floor()
        left = (x * (width - wide + 1)).floor()
        mask = _rectangle(images, top, top + tall, left, left + wide)
        return mask & (hit < self.erase).view(-1, 1, 1, 1)

    def _draw_square(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Mask `[B, 1, H, W]` of one square per image, centred on any pixel."""
        height, width = images.shape[-2:]
        y, x = torch.rand(2, len(images), generator=rng, device=images.device)
        top = (y * height).floor() - self.cutout // 2
        left = (x * width).floor() - self.cutout // 2
        return _rectangle(images, top, top + self.cutout, left, left + self.cutout)


def shift_flip(images: Tensor, dy: Tensor, dx: Tensor, flip: Tensor, most: int) -> Tensor:
    """Translate each image and then mirror it left-right where asked.

    images `[B, C, H, W]`; dy, dx `[B]` int64 from -most to most: the content moves down by dy and right by dx pixels,
    zeros come in from outside; flip `[B]` bool. Returns the same shape and dtype.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (most, most, most, most))
    # Every window [B, mirrored or not, C, H, W, top, left] is a view; only the chosen ones are copied, in whole rows.
    windows = torch.stack([padded, padded.flip(3)], dim=1).unfold(3, height, 1).unfold(4, width, 1)
    left = torch.where(flip, most + dx, most - dx)
    return windows[torch.arange(len(images), device=images.device), flip.long(), :, most - dy, left]


def _rectangle(images: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Mask `[B, 1, H, W]`, true where top <= row < bottom and left <= column < right (each bound `[B]`)."""
    rows = torch.arange(images.shape[-2], device=images.device).view(1, -1)
    columns = torch.arange(images.shape[-1], device=images.device).view(1, -1)
    in_rows = (rows >= top.view(-1, 1)) & (rows < bottom.view(-1, 1))
    in_columns = (columns >= left.view(-1, 1)) & (columns < right.view(-1, 1))
    return in_rows[:, None, :, None] & in_columns[:, None, None, :]


def _check_range(name: str, value: object, top: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= top:  # type: ignore[operator]
        raise UserError(f"data.augment.{name}={value!r} is not valid: give a number from 0 to {top:g}")
