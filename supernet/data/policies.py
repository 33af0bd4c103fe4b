"""Augmentation policies by name: torchvision's, and those of timm in timm's notation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from PIL import Image, ImageOps

from supernet.errors import UserError

TORCHVISION = {  # name in the config → torchvision's class
    "autoaugment": "AutoAugment",
    "randaugment": "RandAugment",
    "trivialaugment": "TrivialAugmentWide",
    "augmix": "AugMix",
}
# timm itself skips what it does not understand, so that a typo would train with another policy.
_NUMBER = r"\d+(\.\d+)?"
_AUTO = re.compile(rf"(v0r?|originalr?|3a)(-mstd{_NUMBER})?")
_RAND = re.compile(rf"rand(-(m\d+|n[1-9]|p(0(\.\d+)?|1)|mstd{_NUMBER}|mmax[1-9]\d*|inc[01]|t(weights|3aw?)))*")
_AUGMIX = re.compile(rf"augmix(-(m\d+|w[1-9]|d[1-9]|a[1-9]\d*|b[01]|mstd{_NUMBER}))+")
_EXAMPLES = "v0, original, 3a, rand-m9-mstd0.5-inc1, augmix-m3-w3"


def augmentation_policy(name: object, size: int, mean: Sequence[float]) -> Callable[[Image.Image], Image.Image]:
    """The transform of PIL images that a policy's name stands for.

    `size` (pixels) scales timm's translations and `mean` (per channel, 0..1) fills its uncovered corners, both as
    in timm's own training. torchvision's policies draw from torch's global generator, timm's from those of `random`
    and NumPy.

    Raises UserError for an unknown name.
    """
    if isinstance(name, str) and name in TORCHVISION:
        from torchvision.transforms import v2

        return getattr(v2, TORCHVISION[name])()
    if not isinstance(name, str) or not any(p.fullmatch(name) for p in (_AUTO, _RAND, _AUGMIX)):
        raise UserError(
            f"data.auto_augment={name!r} does not exist: choose null, {', '.join(TORCHVISION)}, "
            f"or a policy in timm's notation such as {_EXAMPLES}"
        )
    from timm.data import auto_augment as timm

    options: dict[str, float | tuple[int, ...]] = {
        "translate_const": int(size * 0.45),
        "img_mean": fill_colour(mean),
    }
    if _RAND.fullmatch(name):
        transform = timm.rand_augment_transform(name, options)
    elif _AUGMIX.fullmatch(name):
        transform = timm.augment_and_mix_transform(name, options | {"translate_pct": 0.3})
    else:
        transform = timm.auto_augment_transform(name, options)
    for op in timm_operations(transform):
        if op.aug_fn is timm.posterize:
            op.aug_fn = _posterize
    return transform


def fill_colour(mean: Sequence[float]) -> tuple[int, ...]:
    """The colour of uncovered corners in timm's policies, 0..255."""
    return tuple(min(255, round(255 * value)) for value in mean)


def timm_operations(transform: Any) -> Iterator[Any]:
    """The operations that a policy of timm draws from."""
    return iter(chain(*transform.policy) if hasattr(transform, "policy") else transform.ops)


def _posterize(image: Image.Image, bits_to_keep: int, **_: object) -> Image.Image:
    """Keep the highest bits of each pixel; none is black, which Pillow did too before it began to refuse it."""
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return image if bits_to_keep >= 8 else ImageOps.posterize(image, bits_to_keep)
