"""The bottleneck block of ResNet-50 and its variants, and their head."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from supernet.layers.conv import ConvNormAct, linear
from supernet.layers.mbconv import drop_path
from supernet.layers.mixing import fitted
from supernet.specs import BottleneckSpec, PooledHeadSpec, ShortcutSpec, SoftShortcutSpec


class Bottleneck(nn.Module):
    """1x1 -> 3x3 -> 1x1, plus a shortcut, then relu (He et al., CVPR 2016)."""

    def __init__(self, spec: BottleneckSpec) -> None:
        super().__init__()
        self.spec = spec
        self.conv1 = ConvNormAct(spec.conv1)
        self.conv2 = ConvNormAct(spec.conv2)
        self.conv3 = ConvNormAct(spec.conv3)
        self.shortcut = ConvNormAct(spec.shortcut.conv) if spec.shortcut.conv else None

    @property
    def last_norm(self) -> nn.BatchNorm2d | None:
        """The norm that ends the branch, see `supernet.init`."""
        return self.conv3.norm

    def forward(self, x: Tensor, spec: BottleneckSpec | None = None, drop_path_rate: float = 0.0) -> Tensor:
        """[B, C, S, S] -> [B, C', S', S']; `drop_path_rate` acts on blocks with an identity shortcut only."""
        out = self.conv1(x, spec.conv1 if spec else None)
        out = self.conv2(out, spec.conv2 if spec else None)
        out = self.conv3(out, spec.conv3 if spec else None)
        path = (spec or self.spec).shortcut
        rate = drop_path_rate * (spec or self.spec).drop_path
        if path.identity and rate > 0.0 and self.training:
            out = drop_path(out, rate)
        if isinstance(path, SoftShortcutSpec):
            for kind, weight in path.paths:
                out = out + fitted(self._around(x, kind, sliced=True), path.channels) * weight
            return F.relu(out)
        return F.relu(out + self._around(x, path, sliced=spec is not None))

    def _around(self, x: Tensor, path: ShortcutSpec, sliced: bool) -> Tensor:
        if path.pool > 1:
            x = F.avg_pool2d(x, path.pool, ceil_mode=True)  # odd sides round up, as strided convolutions do
        if path.conv is not None and self.shortcut is not None:
            x = self.shortcut(x, path.conv if sliced else None)
        return x


class PooledHead(nn.Module):
    """Global average pool -> dropout -> classifier: [B, C, S, S] -> [B, classes]."""

    def __init__(self, spec: PooledHeadSpec) -> None:
        super().__init__()
        self.classifier = nn.Linear(spec.classifier.in_features, spec.classifier.out_features)

    def forward(self, x: Tensor, spec: PooledHeadSpec | None = None, dropout: float = 0.0) -> Tensor:
        x = F.dropout(x.mean((2, 3)), dropout, self.training)
        return linear(self.classifier, x, spec.classifier if spec else None)
