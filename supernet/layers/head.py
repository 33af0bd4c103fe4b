"""The classification head of MobileNetV2/V3 and EfficientNet."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from supernet.layers.conv import ConvNormAct, linear
from supernet.specs import HeadSpec


class Head(nn.Module):
    """1x1 conv -> global average pool -> optional 1x1 conv -> dropout -> classifier: [B, C, S, S] -> [B, classes]."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.conv = ConvNormAct(spec.conv)
        self.mix = ConvNormAct(spec.mix) if spec.mix else None
        self.classifier = nn.Linear(spec.classifier.in_features, spec.classifier.out_features)

    def forward(self, x: Tensor, spec: HeadSpec | None = None, dropout: float = 0.0) -> Tensor:
        x = self.conv(x, spec.conv if spec else None)
        x = x.mean((2, 3), keepdim=True)
        if self.mix is not None:
            x = self.mix(x, spec.mix if spec else None)
        x = F.dropout(x.flatten(1), dropout, self.training)
        return linear(self.classifier, x, spec.classifier if spec else None)
