"""Squeeze-and-excitation (Hu et al., CVPR 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from supernet.layers.conv import ACTIVATIONS, ConvNormAct
from supernet.specs import SqueezeExciteSpec


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the pooled features: [B, C, S, S] -> the same shape."""

    def __init__(self, spec: SqueezeExciteSpec) -> None:
        super().__init__()
        self.reduce = ConvNormAct(spec.reduce)
        self.expand = ConvNormAct(spec.expand)
        self.gate = ACTIVATIONS[spec.gate]()

    def forward(self, x: Tensor, spec: SqueezeExciteSpec | None = None) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        hidden = self.reduce(pooled, spec.reduce if spec else None)
        return x * self.gate(self.expand(hidden, spec.expand if spec else None))
