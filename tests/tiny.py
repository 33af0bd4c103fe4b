"""Small spaces for tests: every subnet of `tiny_space()` can be listed and runs in a millisecond."""

from __future__ import annotations

from typing import Any

from supernet.models import mbconv
from supernet.space import Space


def tiny_space(**overrides: Any) -> Space:
    """Two stages, 8 to 24 channels, sides 8 and 12; 384 subnets. Overrides are `mbconv.space` arguments."""
    plain_stage = {
        "width": [8, 12],
        "depth": [1, 2],
        "kernel": [3],
        "expand": [1],
        "stride": 1,
        "act": "relu",
    }
    se_stage = {
        "width": [12, 16],
        "depth": [1, 2, 3],
        "kernel": [3, 5],
        "expand": [2, 3],
        "stride": 2,
        "se": True,
    }
    settings: dict[str, Any] = {
        "name": "tiny",
        "resolution": (8, 12),
        "stem": {"width": [8], "kernel": 3, "stride": 1},
        "stages": [plain_stage, se_stage],
        "head": {"width": [16, 24]},
        "num_classes": 4,
        "in_channels": 3,
    }
    return mbconv.space(**{**settings, **overrides})


def big_space(**overrides: Any) -> Space:
    """A space of the AlphaNet search space's shape: 45 genes, 4.4e11 subnets, 203 to 1939 MMACs."""
    stages = [
        ([16, 24], [1, 2], [1], 1, False),
        ([24, 32], [3, 4, 5], [4, 5, 6], 2, False),
        ([32, 40], [3, 4, 5, 6], [4, 5, 6], 2, True),
        ([64, 72], [3, 4, 5, 6], [4, 5, 6], 2, False),
        ([112, 120, 128], [3, 4, 5, 6, 7, 8], [4, 5, 6], 1, True),
        ([192, 200, 208, 216], [3, 4, 5, 6, 7, 8], [6], 2, True),
        ([216, 224], [1, 2], [6], 1, True),
    ]
    names = ("width", "depth", "expand", "stride", "se")
    settings: dict[str, Any] = {
        "name": "big",
        "resolution": (192, 224, 256, 288),
        "stem": {"width": [16, 24]},
        "stages": [{**dict(zip(names, stage, strict=True)), "kernel": [3, 5]} for stage in stages],
        "head": {"width": [1792, 1984], "expand": 6},
        "shortcut": "always",
    }
    return mbconv.space(**{**settings, **overrides})
