"""What an augmentation policy would do to an image, drawn as numbers instead of done."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from supernet.data.operations import Kind, Row, rotation, shear_x, shear_y, translation
from supernet.data.policies import TORCHVISION, augmentation_policy, fill_colour, timm_operations
from supernet.errors import UserError

_TIMM_AFFINE: dict[str, Callable[[float, int], Row]] = {
    "Rotate": rotation,
    "ShearX": lambda value, size: shear_x(value),
    "ShearY": lambda value, size: shear_y(value),
    "TranslateXRel": lambda value, size: translation(value * size, 0.0),
    "TranslateYRel": lambda value, size: translation(0.0, value * size),
}
_TIMM_OTHER = {
    "AutoContrast": Kind.AUTOCONTRAST,
    "Equalize": Kind.EQUALIZE,
    "Invert": Kind.INVERT,
    "Posterize": Kind.POSTERIZE,
    "PosterizeIncreasing": Kind.POSTERIZE,
    "PosterizeOriginal": Kind.POSTERIZE,
    "Solarize": Kind.SOLARIZE,
    "SolarizeIncreasing": Kind.SOLARIZE,
    "SolarizeAdd": Kind.SOLARIZE_ADD,
    "Color": Kind.COLOR,
    "ColorIncreasing": Kind.COLOR,
    "Contrast": Kind.CONTRAST,
    "ContrastIncreasing": Kind.CONTRAST,
    "Brightness": Kind.BRIGHTNESS,
    "BrightnessIncreasing": Kind.BRIGHTNESS,
    "Sharpness": Kind.SHARPNESS,
    "SharpnessIncreasing": Kind.SHARPNESS,
}
_TORCHVISION: dict[str, Callable[[float, int], Row]] = {
    "ShearX": lambda value, size: (Kind.NEAREST, *shear_x(value)),
    "ShearY": lambda value, size: (Kind.NEAREST, *shear_y(value)),
    "TranslateX": lambda value, size: (Kind.NEAREST, *translation(-int(value), 0)),
    "TranslateY": lambda value, size: (Kind.NEAREST, *translation(0, -int(value))),
    "Rotate": lambda value, size: (Kind.NEAREST, *rotation(value, size)),
    "Brightness": lambda value, size: (Kind.BRIGHTNESS, 1 + value),
    "Color": lambda value, size: (Kind.COLOR, 1 + value),
    "Contrast": lambda value, size: (Kind.CONTRAST, 1 + value),
    "Sharpness": lambda value, size: (Kind.SHARPNESS, 1 + value),
    "Posterize": lambda value, size: (Kind.POSTERIZE, int(value)),
    # Values are whole numbers, so that rounding up changes nothing; in 32 bits, 255 × 0.6 would be above 153.
    "Solarize": lambda value, size: (Kind.SOLARIZE, math.ceil(255 * value)),
    "AutoContrast": lambda value, size: (Kind.AUTOCONTRAST,),
    "Equalize": lambda value, size: (Kind.EQUALIZE,),
    "Invert": lambda value, size: (Kind.INVERT,),
}


class Draws:
    """The flip and the policy of an image, as rows for `operations.batched`.

    Draws the same numbers as torchvision's flip followed by `policies.augmentation_policy`, from the same global
    generators: with equal seeds, an image is augmented in the same way in a worker process and on the device.

    flip: whether to draw one; policy: name or None; size: side of the images in pixels; mean: per channel, 0..1.
    `fill` is the colour for uncovered corners, uint8 `[3]`.

    Raises UserError for a policy that does not exist, or whose operations cannot run on the device.
    """

    def __init__(self, flip: bool, policy: str | None, size: int, mean: Sequence[float]) -> None:
        self._flip, self._size = flip, size
        self._draw: Callable[[], list[Row]] = list
        colour: tuple[int, ...] = (0, 0, 0)
        if policy is not None:
            made: Any = augmentation_policy(policy, size, mean)  # refuses names that do not exist
            if "augmix" in policy:
                _refuse(policy)
            if policy in TORCHVISION:
                self._draw = _TorchvisionDraws(made, size)
            else:
                _record_timm(policy, made, size)
                self._draw, colour = partial(_draw_timm, made), fill_colour(mean)
        self.fill = torch.tensor(colour, dtype=torch.uint8)

    def __call__(self) -> list[Row]:
        flipped = self._flip and bool(torch.rand(1) < 0.5)
        return ([(Kind.FLIP,)] if flipped else []) + self._draw()


class _TorchvisionDraws:
    """Runs a policy of torchvision on a blank image, with its operations replaced by taking notes."""

    def __init__(self, policy: Any, size: int) -> None:
        self._policy, self._size = policy, size
        self._blank = torch.empty(3, size, size, dtype=torch.uint8)
        self._rows: list[Row] = []
        policy._apply_image_or_video_transform = self._note

    def __call__(self) -> list[Row]:
        self._rows = []
        self._policy(self._blank)
        return self._rows

    def _note(self, image: Tensor, name: str, magnitude: float, **_: object) -> Tensor:
        if name != "Identity":
            self._rows.append(_TORCHVISION[name](magnitude, self._size))
        return image


def _record_timm(name: str, transform: Any, size: int) -> None:
    """Replace the operations of timm's policy by taking notes; what they change is then a list of rows."""
    for op in timm_operations(transform):
        if op.name in _TIMM_AFFINE:
            op.aug_fn = partial(_note_affine, op.name, size)
        elif op.name in _TIMM_OTHER:
            op.aug_fn = partial(_note, _TIMM_OTHER[op.name])
        else:
            _refuse(name)


def _draw_timm(transform: Any) -> list[Row]:
    rows: list[Row] = []
    transform(rows)
    return rows


def _note(kind: Kind, rows: list[Row], *value: float, **_: object) -> list[Row]:
    rows.append((kind, *value))
    return rows


def _note_affine(name: str, size: int, rows: list[Row], value: float, *, resample: Any, **_: object) -> list[Row]:
    # timm draws the interpolation here too.
    chosen = random.choice(resample) if isinstance(resample, tuple) else resample
    kinds = {Image.Resampling.BILINEAR: Kind.BILINEAR, Image.Resampling.BICUBIC: Kind.BICUBIC}
    rows.append((kinds.get(chosen, Kind.NEAREST), *_TIMM_AFFINE[name](value, size)))
    return rows


def _refuse(policy: str) -> None:
    raise UserError(
        f"data.auto_augment={policy} cannot run on the device (it blurs, or mixes several images): set "
        "data.augment_on=workers, or choose another policy"
    )
