"""Images for searches in tests: random ones, and those whose right answer is known to a supernet of `tiny_space`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from supernet.data import Batch, DataInfo


class NoisyImages:
    """Random images in every split, the same at each call; counts how often each split was read."""

    def __init__(self, batch: int = 20, search: int = 110, classes: int = 4) -> None:
        self.info = DataInfo("noise", classes, tuple("abcd"[:classes]), 3, 12, (0.5,) * 3, (0.25,) * 3, (8, 12))
        self.sizes: Mapping[str, int] = {"train": 64, "val": 40, "search": search, "test": 32}
        self.batch = batch
        self.read: list[str] = []

    def steps_per_epoch(self) -> int:
        return 1

    def train(self, epoch: int, first_batch: int = 0, order: Tensor | None = None) -> Iterator[Batch]:
        raise AssertionError("a search does not train")

    def evaluation(self, split: str, resolution: int, limit: int | None = None) -> Sequence[tuple[Tensor, Tensor]]:
        self.read.append(split)
        generator = torch.Generator().manual_seed(list(self.sizes).index(split))
        images = torch.randn(self.sizes[split], 3, resolution, resolution, generator=generator)
        targets = torch.randint(4, (self.sizes[split],), generator=generator)
        return list(zip(images.split(self.batch), targets.split(self.batch), strict=True))

    def calibration(self, resolution: int, num_images: int) -> Sequence[Tensor]:
        generator = torch.Generator().manual_seed(9)
        return torch.randn(num_images, 3, resolution, resolution, generator=generator).split(16)

    def split_record(self) -> dict[str, Any]:
        return {}
