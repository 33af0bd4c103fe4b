"""Small datasets: all images stay on the device as uint8 and are augmented there in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from supernet.data.augment import Augment
from supernet.data.base import (
    SPLITS,
    Batch,
    DataInfo,
    Normalise,
    Settings,
    check_batch_size,
    check_int,
    check_resolutions,
    check_split,
    checked_order,
    epoch_order,
    even_chunks,
    generator,
    resize,
)
from supernet.data.splits import fingerprint, shuffled, stratified
from supernet.distributed import ALONE, Ranks
from supernet.errors import UserError


class MemoryData:
    """A dataset held on the device as tensors. It implements the `Data` protocol.

    images, test_images: uint8 `[N, C, S, S]`; targets, test_targets: int64 `[N]`. "val" and "search" are
    taken out of `images`, stratified by class. Without test images, `test_fraction` of `images` is held
    out as "test" in the same way. mean, std: per channel, for pixel values in 0..1; without them, those of the
    training split.

    Raises UserError if the images or a batch do not fit the settings.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        test_images: Tensor | None = None,
        test_targets: Tensor | None = None,
        *,
        name: str,
        class_names: Sequence[str],
        settings: Settings,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        augment: Augment | None = None,
        test_fraction: float = 0.0,
    ) -> None:
        assert images.dtype == torch.uint8
        assert images.shape[-1] == images.shape[-2]
        assert (test_images is None) == (test_targets is None)
        if not len(images):
            raise UserError(f"the dataset {name} holds no images")
        self._settings = settings
        self._augment = augment or Augment()
        self._index = _split(targets, None if test_images is None else len(test_images), settings, test_fraction)
        device = torch.device(settings.device)
        self._images, self._targets = {}, {}
        for split, index in self._index.items():
            given = split == "test" and test_images is not None
            self._images[split] = (test_images if given else images)[index].to(device)  # type: ignore[index]
            self._targets[split] = (test_targets if given else targets)[index].to(device)  # type: ignore[index]
        self.sizes: Mapping[str, int] = {split: len(self._index[split]) for split in SPLITS}
        check_batch_size(settings.batch_size, self.sizes["train"])
        if mean is None or std is None:
            mean, std = _statistics(images[self._index["train"]])
        self.info = DataInfo(
            name=name,
            num_classes=len(class_names),
            class_names=tuple(class_names),
            channels=images.shape[1],
            size=images.shape[-1],
            mean=tuple(mean),
            std=tuple(std),
            resolution=check_resolutions(settings.resolution),
        )
        self._normalise = Normalise(mean, std, device)
        self._evaluation: dict[tuple[str, int], tuple[tuple[Tensor, Tensor], ...]] = {}
        self._calibration: dict[tuple[int, int], tuple[Tensor, ...]] = {}

    def steps_per_epoch(self) -> int:
        """Number of training batches in an epoch; the incomplete last one is dropped."""
        return self.sizes["train"] // self._settings.batch_size

    def train(
        self, epoch: int, first_batch: int = 0, order: Tensor | None = None, ranks: Ranks = ALONE
    ) -> Iterator[Batch]:
        """Training batches of one epoch from number `first_batch` on; `order` as in `Data.train`.

        The order is a function of (seed, epoch) unless it is given, the augmentation of (seed, epoch, batch
        number): a resumed epoch yields exactly the batches that the uninterrupted one would have. Whole batches are
        augmented; of these each of `ranks` keeps its share.
        """
        images, targets = self._images["train"], self._targets["train"]
        size, seed = self._settings.batch_size, self._settings.seed
        order = epoch_order(len(images), seed, epoch) if order is None else checked_order(order, len(images))
        order, own = order.to(images.device), ranks.share(size)
        for batch in range(first_batch, self.steps_per_epoch()):
            index = order[batch * size : (batch + 1) * size]
            # 1 + batch: trailing zeros of a key do not count, and (seed, epoch) is the order's.
            rng = generator(seed, epoch, 1 + batch, device=images.device)
            augmented = self._augment(images[index], self._normalise, rng)
            yield Batch(augmented[own], targets[index[own]], index[own])

    def evaluation(self, split: str, resolution: int, limit: int | None = None) -> Sequence[tuple[Tensor, Tensor]]:
        """Batches (images `[B, C, R, R]`, targets `[B]`) without augmentation, resized once and then kept.

        `limit` takes the first images of the split, which are a random subset. Raises UserError for an
        unknown or empty split and for a resolution below 1.
        """
        count = check_split(split, self.sizes, limit)
        check_int("data.resolution", resolution, minimum=1)
        size = self._settings.eval_batch_size
        if (split, resolution) not in self._evaluation:
            images, targets = self._images[split], self._targets[split]
            self._evaluation[split, resolution] = tuple(
                (self._prepare(images[i : i + size], resolution), targets[i : i + size])
                for i in range(0, len(images), size)
            )
        batches = self._evaluation[split, resolution]
        if count == self.sizes[split]:
            return batches
        whole, rest = divmod(count, size)
        cut = [(batches[whole][0][:rest], batches[whole][1][:rest])] if rest else []
        return (*batches[:whole], *cut)

    def calibration(self, resolution: int, num_images: int) -> Sequence[Tensor]:
        """The first `num_images` images of the training split (all of them if fewer), without augmentation.

        The split is in an order drawn from split_seed, so this subset is random, and the same in every run.
        Batches `[B, C, R, R]` differ in size by at most one image and are kept after the first call.
        """
        check_int("data.resolution", resolution, minimum=1)
        count = min(check_int("num_images", num_images, minimum=1), self.sizes["train"])
        if (resolution, count) not in self._calibration:
            self._calibration[resolution, count] = tuple(
                self._prepare(self._images["train"][chunk], resolution)
                for chunk in even_chunks(count, self._settings.eval_batch_size)
            )
        return self._calibration[resolution, count]

    def split_record(self) -> dict[str, Any]:
        """Counts, split seed and a hash of each split's indices into the original files."""
        return {
            "dataset": self.info.name,
            "split_seed": self._settings.split_seed,
            "counts": dict(self.sizes),
            "sha256": {split: fingerprint(self._index[split]) for split in SPLITS},
        }

    def _prepare(self, images: Tensor, side: int) -> Tensor:
        return resize(self._normalise(images), side)


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images `[N, C, S, S]`, for pixel values in 0..1."""
    std, mean = torch.std_mean(images.to(torch.float64) / 255, dim=(0, 2, 3), correction=0)
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in std.tolist())


def _split(targets: Tensor, num_test: int | None, settings: Settings, test_fraction: float) -> dict[str, Tensor]:
    """Index lists of the four splits; those of a given test set count within it."""
    fractions = {"val": settings.val_fraction, "search": settings.search_fraction}
    if num_test is None:
        # The test set is held out first, so that it stays the same whatever the other shares are.
        return stratified(targets, {"test": test_fraction, **fractions}, settings.split_seed)
    return stratified(targets, fractions, settings.split_seed) | {"test": shuffled(num_test, settings.split_seed)}
