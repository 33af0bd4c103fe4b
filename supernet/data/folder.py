"""Any folder of images: root/{train,val|test}/<class>/*.jpg, or root/<class>/*.jpg."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from supernet.data.base import (
    DataInfo,
    Settings,
    check_fraction,
    check_held_out,
    check_int,
    check_resolutions,
)
from supernet.data.draws import Draws
from supernet.data.files import find_splits
from supernet.data.stream import StreamData
from supernet.data.transforms import Central, RandomCrop
from supernet.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def load(
    *,
    batch_size: int,
    eval_batch_size: int,
    seed: int,
    split_seed: int,
    val_fraction: float,
    search_fraction: float,
    resolution: Sequence[int],
    device: torch.device | str = "cpu",
    root: str | Path | None,
    name: str = "folder",
    size: int = 224,
    test_resize: int | None = None,
    crop_scale: Sequence[float] = (0.08, 1.0),
    flip: bool = True,
    auto_augment: str | None = None,
    test_fraction: float = 0.1,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    augment_on: str = "workers",
    fast_decode: bool = False,
    num_workers: int | None = None,
    prefetch_factor: int = 4,
    cache_limit_mb: int = 4096,
    on_bad_image: str = "stop",
) -> StreamData:
    """Find the images and their classes, split them, and build their transforms (pixels are RGB).

    Training images are random crops of `crop_scale` of the area, resized to `size`; test images are the
    central `size` pixels after their short side was resized to `test_resize` (default size × 256/224).
    `auto_augment` names a policy applied after crop and flip, see `policies.augmentation_policy`. `augment_on` says who
    flips and applies it: the worker processes, or the device, to whole batches; the draws are the same, interpolated
    pixels differ a little. `fast_decode`: see `transforms.RandomCrop`. `test_fraction` is held out as the test set only
    if `root` has none, see `files.find_splits`. `on_bad_image`: at an unreadable file "stop" raises UserError, "skip"
    takes another image of the split, see `StreamData`.

    Raises UserError for a bad value, or naming the folder that is missing or empty.
    """
    settings = Settings(
        batch_size=batch_size,
        eval_batch_size=eval_batch_size,
        seed=seed,
        split_seed=split_seed,
        val_fraction=val_fraction,
        search_fraction=search_fraction,
        resolution=resolution,
        device=device,
    )
    if root is None:
        raise UserError("data.root is missing: give the folder that holds train/<class>/ or <class>/ folders")
    check_fraction("data.test_fraction", test_fraction)
    check_held_out(val_fraction, search_fraction, test_fraction)
    check_int("data.size", size, minimum=1)
    short_side = round(size * 256 / 224) if test_resize is None else check_int("data.test_resize", test_resize, size)
    mean, std = _statistics(mean, std)
    _check_choices({"flip": flip, "fast_decode": fast_decode, "on_bad_image": on_bad_image, "augment_on": augment_on})
    draws = Draws(flip, auto_augment, size, mean) if augment_on == "device" else None
    train_transform = RandomCrop(size, crop_scale, flip, auto_augment, mean, draws=draws, fast=fast_decode)
    fractions = {"val": val_fraction, "search": search_fraction}
    classes, splits, made = find_splits(Path(root).expanduser(), fractions, test_fraction, settings.split_seed)
    sides = check_resolutions(settings.resolution)
    info = DataInfo(name, len(classes), classes, channels=3, size=size, mean=mean, std=std, resolution=sides)
    return StreamData(
        splits,
        made,
        info,
        settings,
        train_transform,
        Central(size, short_side),
        fill=None if draws is None else draws.fill,
        num_workers=num_workers,
        prefetch_factor=prefetch_factor,
        cache_limit_mb=cache_limit_mb,
        skip_bad=on_bad_image == "skip",
    )


def _check_choices(options: Mapping[str, bool | str]) -> None:
    known = {"on_bad_image": ("stop", "skip"), "augment_on": ("workers", "device")}
    for key, value in options.items():
        if key in known and value not in known[key]:
            raise UserError(f"data.{key}={value!r} is not valid: choose {' or '.join(known[key])}")
        if key not in known and not isinstance(value, bool):
            raise UserError(f"data.{key}={value!r} is not valid: give true or false")


def _statistics(mean: Sequence[float], std: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UserError(
            f"data.mean={list(mean)} and data.std={list(std)} are not valid: give three numbers each, std above 0"
        )
    return tuple(mean), tuple(std)
