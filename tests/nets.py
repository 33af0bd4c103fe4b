"""The spaces that every conformance test runs over: all named ones, and two small ones that can be listed."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import tiny_space
from torch import Tensor

import supernet
from supernet.space import Arch, Space

CONFIGS = Path(__file__).parents[1] / "configs"
NAMED = sorted(path.stem for path in (CONFIGS / "space").glob("*.yaml"))
TINY = ("tiny_stage", "tiny_block")
# Any input side does: weights and arithmetic are the same, in less time. Transformers and toy_cell have their side
# built in.
SMALL: dict[str, dict[str, Any]] = {name: {"resolution": [32]} for name in NAMED if name.startswith("autoformer")}
SMALL |= {
    "darts": {"resolution": [8], "channels": 8},
    "toy_cell": {"resolution": [12]},
    "nb201": {"resolution": [8]},
    "conv_macro": {"resolution": [32]},
}
LARGE = [name for name in NAMED if name not in ("mbv3_tiny", "alphanet", "bignas")]


def space_of(name: str) -> Space:
    if name == "tiny_stage":
        return tiny_space(shortcut="always")
    if name == "tiny_block":
        return tiny_space(choose="block", resolution=(8,))
    return supernet.build(name, num_classes=10, **SMALL.get(name, {})).space


def net_of(name: str) -> supernet.Supernet:
    return supernet.Supernet(space_of(name))


def archs(space: Space, count: int, seed: int = 0) -> list[Arch]:
    return space.sample(np.random.default_rng(seed), count)


def random_codes(space: Space, count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Option indices that need not be canonical."""
    rng = np.random.default_rng(seed)
    return [tuple(int(rng.integers(len(g.options))) for g in space.genes) for _ in range(count)]


def all_codes(space: Space) -> list[tuple[int, ...]]:
    return list(product(*(range(len(gene.options)) for gene in space.genes)))


def images(batch: int, side: int, seed: int = 0, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(seed))


def randomise(net: torch.nn.Module, seed: int = 0) -> None:
    """Weights with nothing special about them: norm scales and shifts included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.copy_(1 + 0.1 * noise if parameter.ndim == 1 else noise * (2 / parameter[0].numel()) ** 0.5)
