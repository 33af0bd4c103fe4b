"""Handwritten digits that ship with scikit-learn: 1,797 grey images of 8×8 pixels in ten classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from supernet.data.augment import Augment
from supernet.data.base import Settings, check_fraction, check_held_out, check_int, resize
from supernet.data.memory import MemoryData


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
    size: int = 16,
    test_fraction: float = 0.2,
    augment: Mapping[str, Any] | None = None,
) -> MemoryData:
    """Load the digits, upsampled once (bicubic) to `size` pixels; `size=8` keeps the originals.

    There is no official test set: a stratified `test_fraction` of the images is held out as one. Mean and
    standard deviation are those of the training split, so they depend on the splits.
    Raises UserError for a bad value.
    """
    from sklearn.datasets import load_digits

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
    check_int("data.size", size, minimum=8)
    check_fraction("data.test_fraction", test_fraction)
    check_held_out(val_fraction, search_fraction, test_fraction)
    raw = load_digits()
    # Sixteen is the brightest value in the file.
    pixels = torch.from_numpy(raw.images).to(torch.float32).unsqueeze(1) * (255 / 16)
    images = resize(pixels, size).round().clamp(0, 255).to(torch.uint8)
    return MemoryData(
        images,
        torch.from_numpy(raw.target).to(torch.int64),
        name="digits",
        class_names=[str(digit) for digit in range(10)],
        settings=settings,
        augment=Augment.from_config(augment),
        test_fraction=test_fraction,
    )
