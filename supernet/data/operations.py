"""Image operations of augmentation policies as rows of numbers: drawn for each image, put together for a batch.

Each image has a list of operations. The first of all images are applied together, then the second ones, and so on; see
`supernet.data.apply`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum, auto
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Row = tuple[float, ...]  # kind and parameters; missing ones are 0
PARAMETERS = 6


class Kind(IntEnum):
    """What an operation does; its parameters in brackets."""

    NOTHING = 0
    FLIP = auto()  # left-right
    NEAREST = auto()  # affine map [a, b, c, d, e, f]: output pixel (x, y) shows input (ax + by + c, dx + ey + f)
    BILINEAR = auto()
    BICUBIC = auto()
    BRIGHTNESS = auto()  # [factor]; 1 changes nothing, as for contrast, colour and sharpness
    CONTRAST = auto()
    POSTERIZE = auto()  # [bits that are kept]
    SOLARIZE = auto()  # [threshold]: inverts values from there on
    SOLARIZE_ADD = auto()  # [number]: added to values below 128
    INVERT = auto()
    AUTOCONTRAST = auto()
    EQUALIZE = auto()
    COLOR = auto()  # [factor]; 0 is grey
    SHARPNESS = auto()  # [factor]; 0 is smooth


class Operations(NamedTuple):
    """Operations of a batch: of the k-th in each list, `order[k]` are the images sorted by its kind.

    parameters `[K, B, 6]` float32 in that order, order `[K, B]` int64, counts `[K, number of kinds]` int64: how many
    images have which kind. counts stay on the CPU, so that reading them does not wait for the device.
    """

    parameters: Tensor
    order: Tensor
    counts: Tensor


def shear_x(factor: float) -> Row:
    """Affine map: rows move by `factor` × their distance from the top."""
    return (1.0, factor, 0.0, 0.0, 1.0, 0.0)


def shear_y(factor: float) -> Row:
    """Affine map: columns move by `factor` × their distance from the left."""
    return (1.0, 0.0, 0.0, factor, 1.0, 0.0)


def translation(x: float, y: float) -> Row:
    """Affine map: the content moves left by x and up by y pixels."""
    return (1.0, 0.0, x, 0.0, 1.0, y)


def rotation(degrees: float, size: int) -> Row:
    """Affine map: counter-clockwise about the centre of an image of `size` pixels a side."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    half = size / 2
    return (cos, -sin, half * (1 - cos + sin), sin, cos, half * (1 - cos - sin))


def batched(lists: Sequence[Sequence[Row]]) -> Operations:
    """Operations of a batch from those of its images, whose lists may differ in length."""
    length = max(map(len, lists))
    none = (0.0,) * (1 + PARAMETERS)
    padded = [[(*row, *none)[: 1 + PARAMETERS] for row in rows] + [none] * (length - len(rows)) for rows in lists]
    rows = torch.tensor(padded, dtype=torch.float32).view(len(lists), length, 1 + PARAMETERS).transpose(0, 1)
    kinds, order = rows[..., 0].long().sort(dim=1, stable=True)
    parameters = rows[..., 1:].gather(1, order.unsqueeze(-1).expand(-1, -1, PARAMETERS))
    return Operations(parameters, order, F.one_hot(kinds, len(Kind)).sum(1))
