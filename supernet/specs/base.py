"""What every layer spec offers, the plan made of them, and the one rounding rule.

A spec says how large one layer is for one subnet. It owns the formulae for its costs, next to the shapes that they
count. MACs are multiply-accumulates of convolutions, linear layers and attention products on one image;
normalisation, activation and pooling count nothing (the convention of `torch.utils.flop_counter`, halved).

Activations are the most numbers that are held at a time while the layer works on one image: input and output of
the part that runs, and what a residual keeps for later. Every part counts that cannot work in place: convolutions,
linear layers, attention products, poolings. Batch norms, activations, gates and sums work in place; so do layer
norms, but where a residual still needs their input. A value is dropped after its last use; weights do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property, reduce
from typing import Any, ClassVar, Protocol, TypeVar


class LayerSpec(Protocol):
    """What every layer spec offers."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""

    @property
    def params(self) -> int:
        """Trainable parameters, norm scales and shifts included."""

    @property
    def bytes(self) -> int:
        """Of the exported tensors: parameters and norm statistics in fp32, a norm's count of batches in int64."""

    @property
    def activations(self) -> int:
        """The most numbers held at a time, on one image; see the top of this file."""


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round a width to a multiple of `divisor`, at least `divisor`, never more than 10% below `value`.

    The rule of MobileNetV2 and its descendants.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


@dataclass(frozen=True)
class Plan:
    """Every layer of one subnet, resolved. Names are the module names inside the network."""

    resolution: int  # input side, px
    layers: tuple[tuple[str, Any], ...]
    partial: ClassVar[int] = 1  # of mixtures: see `supernet.mixture`

    @cached_property
    def _by_name(self) -> Mapping[str, Any]:
        return dict(self.layers)

    def get(self, name: str) -> Any:
        """The spec of the layer called `name`; None where the subnet skips it."""
        return self._by_name.get(name)

    def __getitem__(self, name: str) -> Any:
        return self._by_name[name]

    def weight(self, present: Iterable[str] = (), absent: Iterable[str] = ()) -> Any:
        """1.0 if the subnet has the layers `present` and none of `absent`, else 0.0.

        Of a mixture it is the probability of that, a tensor where it is neither certain nor impossible.
        """
        by_name = self._by_name
        return float(all(name in by_name for name in present) and not any(name in by_name for name in absent))

    @cached_property
    def macs(self) -> int:
        return sum(spec.macs for _, spec in self.layers)

    @cached_property
    def params(self) -> int:
        return sum(spec.params for _, spec in self.layers)

    @cached_property
    def bytes(self) -> int:
        return sum(spec.bytes for _, spec in self.layers)

    @cached_property
    def activations(self) -> int:
        """The most numbers held at a time: of the layer that holds most, since layers run one after the other."""
        return max((spec.activations for _, spec in self.layers), default=0)


Spec = TypeVar("Spec")


def union(specs: Iterable[Spec]) -> Spec:
    """The smallest spec that holds every one of `specs`: field by field the largest value.

    Parts that only some of them have (a shortcut's 1x1 conv, say) are in the union; None entries are skipped.
    """
    return reduce(_union_pair, specs)


def _union_pair(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return a if b is None else b
    if a is b or a == b:
        return a
    if is_dataclass(a) and not isinstance(a, type):
        return type(a)(**{f.name: _union_pair(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)})
    if isinstance(a, str):
        raise ValueError(f"layers that share weights cannot differ in {a!r} against {b!r}")
    return max(a, b)
