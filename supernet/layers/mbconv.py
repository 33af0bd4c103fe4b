"""The inverted residual block of MobileNetV2/V3, EfficientNet and AlphaNet."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from supernet.layers.conv import ConvNormAct
from supernet.layers.mixing import fitted
from supernet.layers.se import SqueezeExcite
from supernet.specs import MBConvSpec, ShortcutSpec, SoftShortcutSpec


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Zero the branch of whole images with probability `rate`, scaling the rest by 1 / (1 - rate).

    Stochastic depth (Huang et al., ECCV 2016). x: [B, C, S, S].
    """
    keep = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(1.0 - rate)
    return x * keep.div_(1.0 - rate)


class MBConv(nn.Module):
    """expand 1x1 -> depthwise k x k -> squeeze-excite -> project 1x1, plus a shortcut.

    What the shortcut is depends on the active widths, so its kind is read from the spec of the subnet, and the
    supernet's block holds the 1x1 conv if any subnet needs it.
    """

    def __init__(self, spec: MBConvSpec) -> None:
        super().__init__()
        self.spec = spec
        self.expand = ConvNormAct(spec.expand) if spec.expand else None
        self.depthwise = ConvNormAct(spec.depthwise)
        self.se = SqueezeExcite(spec.se) if spec.se else None
        self.project = ConvNormAct(spec.project)
        self.shortcut = ConvNormAct(spec.shortcut.conv) if spec.shortcut and spec.shortcut.conv else None

    @property
    def last_norm(self) -> nn.BatchNorm2d | None:
        """The norm that ends the branch, see `supernet.init`."""
        return self.project.norm

    def forward(self, x: Tensor, spec: MBConvSpec | None = None, drop_path_rate: float = 0.0) -> Tensor:
        """[B, C, S, S] -> [B, C', S', S']; `drop_path_rate` acts on blocks with an identity shortcut only."""
        out = x
        if self.expand is not None:
            out = self.expand(out, spec.expand if spec else None)
        out = self.depthwise(out, spec.depthwise if spec else None)
        if self.se is not None:
            out = self.se(out, spec.se if spec else None)
        out = self.project(out, spec.project if spec else None)
        path = (spec or self.spec).shortcut
        if path is None:
            return out
        rate = drop_path_rate * (spec or self.spec).drop_path
        if path.identity and rate > 0.0 and self.training:
            out = drop_path(out, rate)
        if isinstance(path, SoftShortcutSpec):
            for kind, weight in path.paths:
                out = out + fitted(self._around(x, kind, sliced=True), path.channels) * weight
            return out
        return out + self._around(x, path, sliced=spec is not None)

    def _around(self, x: Tensor, path: ShortcutSpec, sliced: bool) -> Tensor:
        if path.pool > 1:
            x = F.avg_pool2d(x, path.pool, padding=path.pool_padding)
        if path.conv is not None and self.shortcut is not None:
            x = self.shortcut(x, path.conv if sliced else None)
        return x
