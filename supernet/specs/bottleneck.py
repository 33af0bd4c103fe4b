"""Specs of the ResNet family: the bottleneck block, and a head that is pooling and a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from supernet.specs.conv import ConvSpec, LinearSpec, ShortcutSpec


@dataclass(frozen=True)
class BottleneckSpec:
    """1x1 -> 3x3, which has the stride -> 1x1, plus the shortcut (He et al., CVPR 2016).

    `drop_path` scales the step's drop-path rate, 0 to 1.
    """

    conv1: ConvSpec
    conv2: ConvSpec
    conv3: ConvSpec
    shortcut: ShortcutSpec
    drop_path: float = 0.0

    @cached_property
    def macs(self) -> int:
        return self.conv1.macs + self.conv2.macs + self.conv3.macs + self.shortcut.macs

    @cached_property
    def params(self) -> int:
        return self.conv1.params + self.conv2.params + self.conv3.params + self.shortcut.params

    @cached_property
    def bytes(self) -> int:
        return self.conv1.bytes + self.conv2.bytes + self.conv3.bytes + self.shortcut.bytes

    @cached_property
    def activations(self) -> int:
        kept = self.conv1.held_in
        around = self.shortcut.activations(kept, self.conv1.in_channels, self.conv3)
        branch = max(self.conv2.activations, self.conv3.activations)
        return max(self.conv1.activations, kept + branch, around)


@dataclass(frozen=True)
class PooledHeadSpec:
    """Global average pooling, dropout, classifier."""

    classifier: LinearSpec

    @property
    def macs(self) -> int:
        return self.classifier.macs

    @property
    def params(self) -> int:
        return self.classifier.params

    @property
    def bytes(self) -> int:
        return self.classifier.bytes

    @property
    def activations(self) -> int:
        """Of the classifier. Pooling holds less than the end of the block before it, which adds two such maps."""
        return self.classifier.activations
