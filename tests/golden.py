"""State dicts of the original codes, filled with numbers that follow from each tensor's original name.

`tests/data/original_layouts.json.gz` lists the names and shapes of the tensors of every published supernet. The
original codes were run with the same fill to produce the logits that tests compare with.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from supernet import Supernet
from supernet.pretrained import import_weights
from supernet.pretrained.layout import Layout, original_name

DATA = Path(__file__).parent / "data"
SMALL = ("pos_embed", "cls_token", "embeddings_table_v", "embeddings_table_h")


def shapes(family: str) -> dict[str, list[int]]:
    """Names and shapes of the original state dict."""
    with gzip.open(DATA / "original_layouts.json.gz", "rt") as file:
        layouts: dict[str, dict[str, list[int]]] = json.load(file)
    return layouts[family]


def fill(key: str, shape: Sequence[int], tame: bool = False) -> Tensor:
    """One tensor by its original name `key`; fp32, counters int64.

    `tame` halves the scales of projection norms: AlphaNet's logits then stay small enough for fp32.
    """
    last = key.rpartition(".")[2]
    if last == "num_batches_tracked":
        return torch.zeros((), dtype=torch.long)
    normal = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(tuple(shape))
    if last in SMALL:
        value = 0.02 * normal
    elif last.endswith("_matrix"):
        value = np.eye(shape[0]) + 0.01 * normal
    elif last == "bias":
        value = 0.05 * normal
    elif last == "running_mean":
        value = 0.1 * normal
    elif last == "running_var":
        value = 1 + 0.1 * np.abs(normal)
    elif len(shape) >= 2:
        value = normal * np.sqrt(2 / np.prod(shape[1:]))
    else:
        value = 1 + 0.1 * normal
    result = torch.from_numpy(value.astype(np.float32))
    return result * 0.5 if tame and key.endswith(".point_linear.bn.bn.weight") else result


def original_state(family: str, tame: bool = False) -> dict[str, Tensor]:
    """A whole original state dict, filled."""
    return {key: fill(key, shape, tame) for key, shape in shapes(family).items()}


def images(batch: int, side: int, seed: int = 0) -> Tensor:
    """The input that the original's numbers belong to: fp64 [batch, 3, side, side], holding fp32 values."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return torch.from_numpy(generator.standard_normal((batch, 3, side, side)).astype(np.float32)).double()


def imported(
    family: str,
    folder: Path,
    tame: bool = False,
    listing: Mapping[str, Sequence[int]] | None = None,
    **overrides: Any,
) -> Supernet:
    """The supernet of a filled original checkpoint file, written to `folder` and read back; fp64.

    `listing` holds names and shapes of the original where they are not the published ones; `overrides` replace entries
    of the family's space.
    """
    state = {key: fill(key, shape, tame) for key, shape in (listing or shapes(family)).items()}
    file = folder / f"{family}.pth"
    torch.save({"state_dict": state}, file)
    net = import_weights(file, family, **overrides).net.double()
    file.unlink()  # pytest keeps its folders
    return net


def names(net: nn.Module, layout: Layout) -> dict[str, str]:
    """The original name of every tensor of `net`, by our name."""
    ours = net.state_dict()
    table = layout.table(ours)
    return {name: original_name(name, table) for name in ours}


def relative_error(actual: Tensor, expected: NDArray[Any]) -> float:
    """The largest difference in every eighth class, by the largest of these logits."""
    logits = actual.detach()[:, ::8].numpy()
    assert logits.shape == expected.shape
    return float(np.abs(logits - expected).max() / np.abs(expected).max())
