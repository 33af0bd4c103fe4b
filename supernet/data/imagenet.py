"""ImageNet-1k (Russakovsky et al. 2015): root/train and root/val with one folder per class (wnid)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from supernet.data import folder
from supernet.data.stream import StreamData
from supernet.errors import UserError


def load(*, root: str | Path | None, **options: Any) -> StreamData:
    """Load ImageNet, whose official validation images are the test set; options as in `folder.load`.

    Raises UserError if root/train or root/val is missing.
    """
    for part in ("train", "val"):
        if root is None or not (Path(root).expanduser() / part).is_dir():
            where = "data.root is missing" if root is None else f"data.root={root} has no folder {part}"
            raise UserError(
                f"{where}: unpack ILSVRC2012_img_train.tar into <root>/train/<wnid>/*.JPEG and "
                "ILSVRC2012_img_val.tar into <root>/val/<wnid>/*.JPEG (50,000 images), "
                "then give data.root=<root>"
            )
    return folder.load(root=root, **{"name": "imagenet"} | options)
