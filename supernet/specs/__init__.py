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
from supernet.specs.darts import FactorizedReduceSpec, NormedPoolSpec
from supernet.specs.macro import MLPHeadSpec
from supernet.specs.soft import (
    SoftAttentionSpec,
    SoftConvSpec,
    SoftLinearSpec,
    SoftShortcutSpec,
    SoftTokenHeadSpec,
    SoftTransformerSpec,
)

__all__ = [
    "AttentionSpec",
    "BottleneckSpec",
    "ConvSpec",
    "EdgeSpec",
    "FactorizedReduceSpec",
    "FlatHeadSpec",
    "HeadSpec",
    "IdentitySpec",
    "JoinSpec",
    "LayerSpec",
    "LinearSpec",
    "MBConvSpec",
    "MLPHeadSpec",
    "NormHeadSpec",
    "NormedPoolSpec",
    "PatchEmbedSpec",
    "Plan",
    "PoolSpec",
    "PooledHeadSpec",
    "ResidualSpec",
    "SepConvSpec",
    "SeparableSpec",
    "ShortcutSpec",
    "SoftAttentionSpec",
    "SoftConvSpec",
    "SoftLinearSpec",
    "SoftShortcutSpec",
    "SoftTokenHeadSpec",
    "SoftTransformerSpec",
    "SqueezeExciteSpec",
    "TokenHeadSpec",
    "TransformerSpec",
    "make_divisible",
    "most_held",
    "union",
]
