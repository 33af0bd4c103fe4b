"""A small space of vision transformers for tests: every subnet can be listed and runs in a millisecond."""

from __future__ import annotations

from typing import Any

from supernet.models import vit
from supernet.space import Space


def tiny_vit(**overrides: Any) -> Space:
    """One or two blocks, 12 or 20 numbers per token, 9 patches; 40 subnets. Overrides are `vit.space` arguments."""
    settings: dict[str, Any] = {
        "name": "tiny_vit",
        "resolution": (12,),
        "patch": 4,
        "embed_dim": (12, 20),
        "num_heads": (1, 2),
        "mlp_ratio": (1.5, 2.0),
        "layer_num": (1, 2),
        "head_dim": 8,
        "super_dim": 24,
        "super_mlp_ratio": 3.0,
        "relative_position": 1,
        "num_classes": 4,
        "in_channels": 3,
    }
    return vit.space(**{**settings, **overrides})
