"""Frozen layer specs: what a plan is made of."""

from supernet.specs.attention import AttentionSpec, PatchEmbedSpec, TokenHeadSpec, TransformerSpec
from supernet.specs.base import LayerSpec, Plan, make_divisible, union
from supernet.specs.bottleneck import BottleneckSpec, PooledHeadSpec
from supernet.specs.cell import (
    EdgeSpec,
    FlatHeadSpec,
    IdentitySpec,
    JoinSpec,
    NormHeadSpec,
    PoolSpec,
    ResidualSpec,
    SeparableSpec,
    SepConvSpec,
    most_held,
)
from supernet.specs.conv import ConvSpec, HeadSpec, LinearSpec, MBConvSpec, ShortcutSpec, SqueezeExciteSpec
from supernet.specs.macro import MLPHeadSpec

__all__ = [
    "AttentionSpec",
    "BottleneckSpec",
    "ConvSpec",
    "EdgeSpec",
    "FlatHeadSpec",
    "HeadSpec",
    "IdentitySpec",
    "JoinSpec",
    "LayerSpec",
    "LinearSpec",
    "MBConvSpec",
    "MLPHeadSpec",
    "NormHeadSpec",
    "PatchEmbedSpec",
    "Plan",
    "PoolSpec",
    "PooledHeadSpec",
    "ResidualSpec",
    "SepConvSpec",
    "SeparableSpec",
    "ShortcutSpec",
    "SqueezeExciteSpec",
    "TokenHeadSpec",
    "TransformerSpec",
    "make_divisible",
    "most_held",
    "union",
]
