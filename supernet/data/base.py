"""What every dataset offers to training, calibration and evaluation, and the settings all of them share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.distributed import ALONE, Ranks
from supernet.errors import UserError

SPLITS = ("train", "val", "search", "test")


@dataclass(frozen=True)
class DataInfo:
    """Facts about a dataset that models and exported files need.

    `size` is the side of the training images in pixels. `mean` and `std` are per channel, for pixel values
    in 0..1. `resolution` lists the input sides offered to spaces that take theirs from the data.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resolution: tuple[int, ...]


class Batch(NamedTuple):
    """One training batch: images `[B, C, S, S]` float32, targets `[B]` int64, index `[B]` int64.

    Images are augmented and normalised. `index` is each image's position in the training split.
    """

    images: Tensor
    targets: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


class Data(Protocol):
    """A dataset: training batches, evaluation batches, calibration batches, and a record of its splits."""

    info: DataInfo
    sizes: Mapping[str, int]

    def steps_per_epoch(self) -> int:
        """Number of training batches in an epoch."""
        ...

    def train(
        self, epoch: int, first_batch: int = 0, order: Tensor | None = None, ranks: Ranks = ALONE
    ) -> Iterator[Batch]:
        """Training batches of one epoch, from batch number `first_batch` on; a function of (seed, epoch, order).

        `order`: positions in the training split in the order of their visits, int64 `[N]` on the CPU, N the number
        of training images; a position may come several times, augmented anew each time. None: `epoch_order`.
        `ranks`: of several processes each gets its `Ranks.share` of every batch; all of them together get the images,
        augmented alike, that one process alone would.
        """
        ...

    def evaluation(self, split: str, resolution: int, limit: int | None = None) -> Sequence[tuple[Tensor, Tensor]]:
        """Batches (images `[B, C, R, R]`, targets `[B]`) of a split, without augmentation."""
        ...

    def calibration(self, resolution: int, num_images: int) -> Sequence[Tensor]:
        """A fixed subset of the training images as batches `[B, C, R, R]`, preprocessed as for evaluation."""
        ...

    def split_record(self) -> dict[str, Any]:
        """JSON-able description of the splits, enough to tell whether two runs used the same ones."""
        ...


@dataclass(frozen=True)
class Settings:
    """Validated settings common to all datasets.

    `val_fraction` and `search_fraction` are shares of the original training images. The splits depend on
    `split_seed` only; order and augmentation of the training images depend on `seed`.

    Raises UserError for a value of the wrong type or out of range.
    """

    batch_size: int
    eval_batch_size: int
    seed: int
    split_seed: int
    val_fraction: float
    search_fraction: float
    resolution: Sequence[int]
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        check_int("train.batch_size", self.batch_size, minimum=1)
        check_int("data.eval_batch_size", self.eval_batch_size, minimum=1)
        check_int("seed", self.seed, minimum=0)
        check_int("data.split_seed", self.split_seed, minimum=0)
        check_fraction("data.val_fraction", self.val_fraction)
        check_fraction("data.search_fraction", self.search_fraction)
        check_held_out(self.val_fraction, self.search_fraction)
        object.__setattr__(self, "resolution", check_resolutions(self.resolution))
        object.__setattr__(self, "device", torch.device(self.device))


def check_int(key: str, value: object, minimum: int) -> int:
    """Return `value` if it is an integer of at least `minimum`, else raise UserError naming its key."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value < 2**63:
        raise UserError(f"{key}={value!r} is not valid: give an integer of at least {minimum}")
    return value


def check_fraction(key: str, value: object) -> float:
    """Return `value` if it is a number in [0, 1), else raise UserError naming the config key."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < 1:  # type: ignore[operator]
        raise UserError(f"{key}={value!r} is not valid: give a share of the training images in [0, 1)")
    return float(value)  # type: ignore[arg-type]


def check_held_out(val: float, search: float, test: float = 0.0) -> None:
    """Raise UserError if the held-out shares leave nothing to train on."""
    if val + search + test >= 1:
        keys = f"data.val_fraction={val} + data.search_fraction={search}"
        keys += f" + data.test_fraction={test}" if test else ""
        raise UserError(f"{keys} leaves no training images: together they must stay below 1")


def check_resolutions(value: object) -> tuple[int, ...]:
    """Return the input sides sorted and without repeats; UserError if empty or not positive integers."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise UserError(f"data.resolution={value!r} is not valid: give a list of input sides in pixels, e.g. [24,28]")
    return tuple(sorted({check_int("data.resolution", side, minimum=1) for side in value}))


def check_split(split: str, sizes: Mapping[str, int], limit: int | None = None) -> int:
    """Number of images to evaluate in `split`, at most `limit`.

    Raises UserError for an unknown or empty split, or a limit below 1.
    """
    if split not in sizes:
        raise UserError(f"split {split!r} does not exist: choose one of {', '.join(sizes)}")
    if not sizes[split]:
        raise UserError(f"the split {split!r} holds no images: raise data.{split}_fraction above 0")
    return sizes[split] if limit is None else min(sizes[split], check_int("limit", limit, minimum=1))


def check_batch_size(batch_size: int, num_train: int) -> None:
    """Raise UserError if a batch does not fit into the training split."""
    if batch_size > num_train:
        raise UserError(
            f"train.batch_size={batch_size} is larger than the training split of {num_train} images: "
            f"use at most {num_train} (in a search: data.batch_size)"
        )


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch.Generator on `device` whose stream is a function of the non-negative integers in `key`."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]))


def epoch_order(num_images: int, seed: int, epoch: int) -> Tensor:
    """Order `[num_images]` int64 (on the CPU) in which an epoch visits the training images."""
    return torch.randperm(num_images, generator=generator(seed, epoch))


def checked_order(order: Tensor, num_images: int) -> Tensor:
    """Return `order` if it has the form that `Data.train` asks for."""
    assert order.dtype == torch.int64
    assert order.device.type == "cpu"
    assert order.shape == (num_images,)
    return order


def even_chunks(num_images: int, batch_size: int) -> list[slice]:
    """Cut `num_images` into the fewest batches of at most `batch_size` whose sizes differ by at most one.

    Calibration averages statistics over batches: a last batch of a few images would count as much as a
    full one and spoil the average.
    """
    count = math.ceil(num_images / batch_size)
    bounds = [num_images * i // count for i in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


class Normalise:
    """Turn uint8 images `[B, C, H, W]`, or floats in 0..255, into float32 with the given mean and std."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device | str) -> None:
        std_255 = torch.tensor(std, dtype=torch.float64) * 255
        mean_255 = torch.tensor(mean, dtype=torch.float64) * 255
        self._scale = (1 / std_255).float().view(-1, 1, 1).to(device)
        self._offset = (-mean_255 / std_255).float().view(-1, 1, 1).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        return torch.addcmul(self._offset, images.to(torch.float32), self._scale)


def resize(images: Tensor, side: int) -> Tensor:
    """Resize images `[B, C, H, W]` to `[B, C, side, side]`, bicubic without antialiasing, as AlphaNet does.

    Returns the input itself if both of its sides are `side` already.
    """
    if images.shape[-2] == side and images.shape[-1] == side:
        return images
    return F.interpolate(images, size=(side, side), mode="bicubic", align_corners=False)
