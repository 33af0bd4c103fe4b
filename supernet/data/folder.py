"""Any folder of images: root/{train,val|test}/<class>/*.jpg, or root/<class>/*.jpg."""

from __future__ import annotations

from collections.abc import Sequence
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
from supernet.data.files import find_splits
from supernet.data.policies import augmentation_policy
from supernet.data.stream import StreamData, Transform
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
    num_workers: int | None = None,
    cache_limit_mb: int = 4096,
) -> StreamData:
    """Find the images and their classes, split them, and build their transforms (pixels are RGB).

    Training images are random crops of `crop_scale` of the area, resized to `size`; test images are the
    central `size` pixels after their short side was resized to `test_resize` (default size × 256/224).
    `auto_augment` names a policy applied after crop and flip, see `policies.augmentation_policy`.
    `test_fraction` is held out as the test set only if `root` has none; see `files.find_splits`.

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
    _check_statistics(mean, std)
    if not isinstance(flip, bool):
        raise UserError(f"data.flip={flip!r} is not valid: give true or false")
    train_transform = _train_transform(size, crop_scale, flip, auto_augment, mean)
    fractions = {"val": val_fraction, "search": search_fraction}
    classes, splits, made = find_splits(Path(root).expanduser(), fractions, test_fraction, settings.split_seed)
    info = DataInfo(
        name=name,
        num_classes=len(classes),
        class_names=classes,
        channels=3,
        size=size,
        mean=tuple(mean),
        std=tuple(std),
        resolution=check_resolutions(settings.resolution),
    )
    return StreamData(
        splits,
        made,
        info,
        settings,
        train_transform,
        _test_transform(size, short_side),
        num_workers=num_workers,
        cache_limit_mb=cache_limit_mb,
    )


def _train_transform(
    size: int, crop_scale: Sequence[float], flip: bool, policy: str | None, mean: Sequence[float]
) -> Transform:
    from torchvision.transforms import InterpolationMode, v2

    if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise UserError(f"data.crop_scale={list(crop_scale)} is not valid: give two shares of the area, e.g. [0.08,1]")
    steps = [v2.RandomResizedCrop(size, scale=tuple(crop_scale), interpolation=InterpolationMode.BICUBIC)]
    steps += [v2.RandomHorizontalFlip()] if flip else []
    steps += [augmentation_policy(policy, size, mean)] if policy is not None else []
    return v2.Compose([*steps, v2.PILToTensor()])


def _test_transform(size: int, short_side: int) -> Transform:
    from torchvision.transforms import InterpolationMode, v2

    resize = v2.Resize(short_side, interpolation=InterpolationMode.BICUBIC)
    return v2.Compose([resize, v2.CenterCrop(size), v2.PILToTensor()])


def _check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UserError(
            f"data.mean={list(mean)} and data.std={list(std)} are not valid: give three numbers each, std above 0"
        )
