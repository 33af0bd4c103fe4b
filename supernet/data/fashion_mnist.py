"""Fashion-MNIST (Xiao et al. 2017): 60,000 training and 10,000 test images of 28×28 grey pixels."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from supernet.data.augment import Augment
from supernet.data.base import Settings
from supernet.data.memory import MemoryData
from supernet.errors import UserError

DEBIAN_ROOT = Path("/usr/share/datasets/fashion-mnist")
CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
LARGEST = 2**26  # bytes of a file, unpacked; the largest of the four has 47 million
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


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
    root: str | Path | None = None,
    augment: Mapping[str, Any] | None = None,
) -> MemoryData:
    """Load Fashion-MNIST from its four IDX files, gzipped or not.

    `root` holds them directly or in FashionMNIST/raw (torchvision's layout). Without a root, `data/` and
    the folder of Debian's package dataset-fashion-mnist are searched. Raises UserError if they are missing
    or damaged.
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
    paths = _find([Path(root).expanduser()] if root is not None else [Path("data"), DEBIAN_ROOT])
    train_images, train_labels, test_images, test_labels = (read_idx(path) for path in paths)
    _check_pair(paths[0], train_images, train_labels)
    _check_pair(paths[2], test_images, test_labels)
    return MemoryData(
        train_images.unsqueeze(1),
        train_labels.to(torch.int64),
        test_images.unsqueeze(1),
        test_labels.to(torch.int64),
        name="fashion_mnist",
        class_names=CLASS_NAMES,
        mean=(0.2860,),
        std=(0.3530,),
        settings=settings,
        augment=Augment.from_config(augment),
    )


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of bytes (gzipped if its name ends in .gz) as a uint8 tensor of the stated shape.

    The header is two zero bytes, the type (8 for unsigned bytes), the number of axes, and the length of
    each axis as a big-endian 32-bit integer. Raises UserError if the file does not follow it.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4)
            axes = head[3] if len(head) == 4 and head[:3] == b"\x00\x00\x08" else 0
            sizes = file.read(4 * axes)
            shape = [int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4)]
            count = math.prod(shape) if len(shape) == axes > 0 else 0
            content = file.read(count + 1) if count <= LARGEST else b""  # one more than there should be
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): download the file again") from error
    if not count or len(content) != count:
        raise UserError(f"{path} is not a complete IDX file of bytes: download the file again")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(shape)


def _check_pair(path: Path, images: Tensor, labels: Tensor) -> None:
    if images.dim() != 3 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise UserError(
            f"{path} holds {tuple(images.shape)} values for labels of shape {tuple(labels.shape)}: "
            "Fashion-MNIST has one label for each 28×28 image; download the files again"
        )
    if len(labels) and int(labels.max()) >= len(CLASS_NAMES):
        raise UserError(f"the labels of {path} go beyond 9: these are not the files of Fashion-MNIST")


def _find(roots: list[Path]) -> list[Path]:
    """Paths of the four files in the first folder that has them all; UserError saying where to put them."""
    folders = [folder for root in roots for folder in (root / "FashionMNIST" / "raw", root)]
    for folder in folders:
        paths = [_with_or_without_gz(folder / name) for name in FILES]
        if all(path is not None for path in paths):
            return [path for path in paths if path is not None]
    raise UserError(
        f"Fashion-MNIST was not found: put {', '.join(name + '.gz' for name in FILES)} "
        f"into {folders[0]} (or any folder, given as data.root=<folder>), "
        "or install Debian's package: apt install dataset-fashion-mnist. "
        f"Searched: {', '.join(str(folder) for folder in folders)}"
    )


def _with_or_without_gz(path: Path) -> Path | None:
    packed = path.with_name(path.name + ".gz")
    return packed if packed.is_file() else path if path.is_file() else None
