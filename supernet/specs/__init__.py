"""Frozen layer specs: what a plan is made of."""

from supernet.specs.attention import AttentionSpec, PatchEmbedSpec, TokenHeadSpec, TransformerSpec
from supernet.specs.base import LayerSpec, Plan, make_divisible, union
from supernet.specs.bottleneck import BottleneckSpec, PooledHeadSpec
from supernet.specs.conv import ConvSpec, HeadSpec, LinearSpec, MBConvSpec, ShortcutSpec, SqueezeExciteSpec

__all__ = [
    "AttentionSpec",
    "BottleneckSpec",
    "ConvSpec",
    "HeadSpec",
    "LayerSpec",
    "LinearSpec",
    "MBConvSpec",
    "PatchEmbedSpec",
    "Plan",
    "PooledHeadSpec",
    "ShortcutSpec",
    "SqueezeExciteSpec",
    "TokenHeadSpec",
    "TransformerSpec",
    "make_divisible",
    "union",
]
