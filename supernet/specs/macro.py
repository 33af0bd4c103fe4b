"""Spec of a classifier with hidden layers."""

from __future__ import annotations

from dataclasses import dataclass

from supernet.specs.conv import LinearSpec


@dataclass(frozen=True)
class MLPHeadSpec:
    """All features flattened, hidden linear layers with relu, classifier."""

    hidden: tuple[LinearSpec, ...]
    classifier: LinearSpec

    @property
    def layers(self) -> tuple[LinearSpec, ...]:
        return (*self.hidden, self.classifier)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def params(self) -> int:
        return sum(layer.params for layer in self.layers)

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)

    @property
    def activations(self) -> int:
        return max(layer.activations for layer in self.layers)
