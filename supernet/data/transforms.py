"""From an image file to uint8 pixels: the transforms that worker processes run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from supernet.data.draws import Draws
from supernet.data.files import FORMATS, read_image, unreadable
from supernet.data.operations import Row
from supernet.data.policies import augmentation_policy
from supernet.errors import UserError

Item = tuple[Tensor, list[Row]]  # uint8 image [3, S, S] and the operations left for the device


@dataclass(frozen=True)
class Central:
    """The central `size` pixels after the short side was resized to `short_side`; uint8 `[3, size, size]`."""

    size: int
    short_side: int

    def __call__(self, path: Path) -> Item:
        from torchvision.transforms.v2 import functional as tv

        image = tv.resize(read_image(path), [self.short_side], interpolation=tv.InterpolationMode.BICUBIC)
        return tv.pil_to_tensor(tv.center_crop(image, [self.size, self.size])), []


class RandomCrop:
    """A random part of an image, resized to `size`; with flip and policy done, or drawn for the device to do them.

    scale: share of the area that a crop keeps, from and to; flip: mirror left-right with probability 1/2; policy: see
    `policies.augmentation_policy`, None for none; mean: per channel, 0..1, the colour that policies fill corners with.
    draws: leaves flip and policy to the device. fast: decodes JPEG files at 1/2, 1/4 or 1/8 of their size where the
    crop still has `size` pixels then, and resizes with torch instead of Pillow; pixel values differ a little, and crops
    move by up to half a pixel.

    Draws come from the global generators of torch (CPU), `random` and NumPy, the same numbers in every mode.
    Raises UserError for a bad value.
    """

    def __init__(
        self,
        size: int,
        scale: Sequence[float],
        flip: bool,
        policy: str | None,
        mean: Sequence[float],
        *,
        draws: Draws | None = None,
        fast: bool = False,
    ) -> None:
        from torchvision.transforms import InterpolationMode, v2

        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise UserError(f"data.crop_scale={list(scale)} is not valid: give two shares of the area, e.g. [0.08,1]")
        self._size, self._fast, self._draws = size, fast, draws
        self._crop = v2.RandomResizedCrop(size, scale=tuple(scale), interpolation=InterpolationMode.BICUBIC)
        steps: list[Any] = [v2.RandomHorizontalFlip()] if flip and draws is None else []
        if policy is not None and draws is None:
            steps += [v2.ToPILImage()] if fast else []
            steps += [augmentation_policy(policy, size, mean)]
        self._augment = v2.Compose(steps) if steps else None

    def __call__(self, path: Path) -> Item:
        from torchvision.transforms.v2 import functional as tv

        image = self._fast_crop(path) if self._fast else self._crop(read_image(path))
        if self._augment is not None:
            image = self._augment(image)
        pixels = tv.pil_to_tensor(image) if isinstance(image, Image.Image) else image.contiguous()
        return pixels, self._draws() if self._draws is not None else []

    def _fast_crop(self, path: Path) -> Tensor:
        from torchvision.transforms.v2 import functional as tv

        with unreadable(path), Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            crop = self._crop.make_params([image])
            reduce = max(min(crop["width"], crop["height"]) // self._size, 1)
            # Does nothing, and says so, where the file is no JPEG.
            drafted = image.draft(None, (max(width // reduce, 1), max(height // reduce, 1)))
            scale = 1.0 if drafted is None else drafted[1][2] / width
            left, top = round(crop["left"] * scale), round(crop["top"] * scale)
            right = min(left + max(round(crop["width"] * scale), 1), image.width)
            bottom = min(top + max(round(crop["height"] * scale), 1), image.height)
            pixels = torch.from_numpy(np.array(image.convert("RGB").crop((left, top, right, bottom))))
        return tv.resize(
            pixels.permute(2, 0, 1), [self._size, self._size], interpolation=self._crop.interpolation, antialias=True
        )
