"""Frozen layer specs: what a plan is made of."""

from supernet.specs.base import LayerSpec, Plan, make_divisible, union
from supernet.specs.conv import ConvSpec, HeadSpec, LinearSpec, MBConvSpec, ShortcutSpec, SqueezeExciteSpec

__all__ = [
    "ConvSpec",
    "HeadSpec",
    "LayerSpec",
    "LinearSpec",
    "MBConvSpec",
    "Plan",
    "ShortcutSpec",
    "SqueezeExciteSpec",
    "make_divisible",
    "union",
]
