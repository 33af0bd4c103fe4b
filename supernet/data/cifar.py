"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32×32 pixels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from supernet.data.augment import Augment
from supernet.data.base import Settings
from supernet.data.memory import MemoryData
from supernet.errors import UserError

_STATISTICS = {  # mean and std over the training images, per channel
    10: ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    100: ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


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
    num_classes: int = 10,
    root: str | Path = "data",
    download: bool = False,
    augment: Mapping[str, Any] | None = None,
) -> MemoryData:
    """Load CIFAR-10 or CIFAR-100 (`num_classes`) from torchvision's layout under `root`.

    Raises UserError if the files are missing or damaged and `download` is false, or the download fails.
    """
    if num_classes not in _STATISTICS:
        raise UserError(f"data.num_classes={num_classes!r} is not valid: CIFAR has 10 or 100")
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
    root = Path(root).expanduser()
    mean, std = _STATISTICS[num_classes]
    images, targets, class_names = _read(num_classes, root, train=True, download=download)
    test_images, test_targets, _ = _read(num_classes, root, train=False, download=download)
    return MemoryData(
        images,
        targets,
        test_images,
        test_targets,
        name=f"cifar{num_classes}",
        class_names=class_names,
        mean=mean,
        std=std,
        settings=settings,
        augment=Augment.from_config(augment),
    )


def _read(num_classes: int, root: Path, *, train: bool, download: bool) -> tuple[Tensor, Tensor, list[str]]:
    """Images uint8 `[N, 3, 32, 32]`, targets int64 `[N]` and class names."""
    from torchvision import datasets

    dataset = datasets.CIFAR10 if num_classes == 10 else datasets.CIFAR100
    try:
        with warnings.catch_warnings():
            # The pickles date from 2009; NumPy 2.4 warns about how they spell a dtype.
            warnings.filterwarnings("ignore", message=".*align should be passed")
            read = dataset(root=str(root), train=train, download=download)
    except Exception as error:
        folder = root / dataset.base_folder
        if download:
            raise UserError(f"{dataset.url} could not be downloaded into {root}: {error}") from error
        raise UserError(
            f"CIFAR-{num_classes} was not found or is incomplete in {folder}: unpack {dataset.url} "
            f"(the Python version) into {root}, or run again with data.download=true"
        ) from error
    images = torch.from_numpy(read.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(read.targets, dtype=torch.int64), list(read.classes)
