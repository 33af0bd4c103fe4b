"""Augmentation policies by name: torchvision's, and those of timm in timm's notation."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from PIL import Image

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


def auto_augment(name: object, size: int, mean: Sequence[float]) -> Callable[[Image.Image], Image.Image]:
    """The transform of PIL images that a policy's name stands for.

    `size` (pixels) scales timm's translations and `mean` (per channel, 0..1) fills its uncovered corners, both as
    in timm's own training. torchvision's policies draw from torch's global generator, timm's from those of `random`
    and NumPy.

    Raises UserError for an unknown name.
    """
    if name in TORCHVISION:
        from torchvision.transforms import v2

        return getattr(v2, TORCHVISION[str(name)])()  # type: ignore[no-any-return]
    if not isinstance(name, str) or not any(p.fullmatch(name) for p in (_AUTO, _RAND, _AUGMIX)):
        raise UserError(
            f"data.auto_augment={name!r} does not exist: choose null, {', '.join(TORCHVISION)}, "
            f"or a policy in timm's notation such as {_EXAMPLES}"
        )
    from timm.data import auto_augment as timm

    options: dict[str, float | tuple[int, ...]] = {
        "translate_const": int(size * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
    }
    if _RAND.fullmatch(name):
        return timm.rand_augment_transform(name, options)  # type: ignore[no-any-return]
    if _AUGMIX.fullmatch(name):
        return timm.augment_and_mix_transform(name, options | {"translate_pct": 0.3})  # type: ignore[no-any-return]
    return timm.auto_augment_transform(name, options)  # type: ignore[no-any-return]
