"""Finding and reading the images of a folder tree, one folder per class."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from supernet.data.splits import shuffled, stratified
from supernet.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


@dataclass(frozen=True)
class Files:
    """Image files with their classes: names relative to `root`, and targets (class numbers), in step."""

    root: Path
    names: tuple[str, ...]
    targets: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, index: list[int]) -> Files:
        """The files at these positions, in this order."""
        return Files(self.root, tuple(self.names[i] for i in index), tuple(self.targets[i] for i in index))


def find_splits(
    root: Path, fractions: dict[str, float], test_fraction: float, seed: int
) -> tuple[tuple[str, ...], dict[str, Files], tuple[str, ...]]:
    """Class names, the files of each split, and the names of the splits that were made here.

    Two layouts are understood. With a folder root/train, that holds the classes, the folder root/test, or
    else root/val, is the test set; where both exist, root/val is the "val" split. Otherwise the classes
    are the folders in root. What is not given is held out of the training images, stratified by class:
    `fractions` for "val" and "search", `test_fraction` for "test".

    Raises UserError naming the folder that is missing, empty or does not match the others.
    """
    if not root.is_dir():
        raise UserError(f"data.root={root} is not a folder: give one that holds train/<class>/ or <class>/ folders")
    nested = (root / "train").is_dir()
    given = {part: part for part in ("val", "test") if nested and (root / part).is_dir()}
    if list(given) == ["val"]:
        given = {"test": "val"}
    classes = _subfolders(root / "train" if nested else root)
    pool = _scan(root, "train" if nested else ".", classes)
    shares = {"test": test_fraction} | fractions
    made = {split: share for split, share in shares.items() if split not in given}
    index = stratified(torch.tensor(pool.targets), made, seed)
    splits = {split: pool.take(positions.tolist()) for split, positions in index.items()}
    for split, folder in given.items():
        if _subfolders(root / folder) != classes:
            different = sorted(set(_subfolders(root / folder)) ^ set(classes))
            raise UserError(
                f"the classes of {root / folder} and {root / 'train'} differ ({', '.join(different[:5])}): "
                "both need the same class folders"
            )
        files = _scan(root, folder, classes)
        splits[split] = files.take(shuffled(len(files), seed).tolist())
    return classes, splits, tuple(made)


# Of Pillow's, those that it decodes itself: for EPS it would start another program.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "PPM", "TIFF")


def read_image(path: Path) -> Image.Image:
    """Decode an image file to RGB; UserError naming the file if that fails."""
    with unreadable(path), Image.open(path, formats=FORMATS) as image:
        return image.convert("RGB")


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Turn what Pillow raises for a damaged or huge file into a UserError naming it.

    Images of more than Pillow's `MAX_IMAGE_PIXELS` (89 million) are refused before they are decoded. Its remarks about
    metadata, which nothing here uses, are not shown.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except MemoryError:
        raise
    except Exception as error:  # decoders of damaged files raise almost anything
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        reason = reason.replace(f" {str(path)!r}", "")
        raise UserError(
            f"{path} cannot be read as an image ({' '.join(reason.split())}): replace it, or leave it out with "
            "data.on_bad_image=skip (+data.on_bad_image=skip when resuming)"
        ) from error


def _subfolders(folder: Path) -> tuple[str, ...]:
    try:
        names = sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder} cannot be listed ({error.strerror}): check its permissions") from error
    if not names:
        raise UserError(f"{folder} holds no class folders: put the images of each class into {folder}/<class>/")
    return tuple(names)


def _scan(root: Path, part: str, classes: tuple[str, ...]) -> Files:
    """All images below root/part/<class>, at any depth, sorted by name within each class."""
    names: list[str] = []
    targets: list[int] = []
    for target, name in enumerate(classes):
        folder = root / part / name
        found = _images_below(folder)
        if not found:
            raise UserError(f"{folder} holds no images ({', '.join(SUFFIXES)}): fill it or remove the folder")
        names += [os.path.relpath(path, root) for path in found]
        targets += [target] * len(found)
    return Files(root, tuple(names), tuple(targets))


def _images_below(folder: Path) -> list[str]:
    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be listed ({error.strerror}): check its permissions")

    return sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder, onerror=fail, followlinks=True)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    )
