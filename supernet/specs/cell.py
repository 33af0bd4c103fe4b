"""Specs of cells: directed graphs of nodes, with one operation on every edge.

A node is the sum of what its edges give. Weightless parts (identity, pooling, sums) count no MACs and no parameters.
What a cell holds at a time depends on all of its edges; `most_held` says how much that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from supernet.specs.conv import ConvSpec, LinearSpec, ShortcutSpec


@dataclass(frozen=True)
class IdentitySpec:
    """An edge that hands its input on as it is."""

    macs: ClassVar[int] = 0
    params: ClassVar[int] = 0
    bytes: ClassVar[int] = 0
    activations: ClassVar[int] = 0


@dataclass(frozen=True)
class PoolSpec:
    """A 3x3 pooling with padding 1, which an average does not count; `size_in` and `size` are the sides."""

    kind: str  # "avg" or "max"
    channels: int
    size_in: int
    size: int
    stride: int = 1
    macs: ClassVar[int] = 0
    params: ClassVar[int] = 0
    bytes: ClassVar[int] = 0

    @property
    def activations(self) -> int:
        return self.channels * (self.size_in**2 + self.size**2)


@dataclass(frozen=True)
class SeparableSpec:
    """relu -> depthwise k x k -> 1x1 -> norm (a depthwise separable convolution, dilated or not).

    `step`: only every so-manieth pixel of the input is seen. A convolution whose stride equals its dilation sees no
    others, so it is written as a plain one on these.
    """

    depthwise: ConvSpec
    pointwise: ConvSpec
    step: int = 1

    @property
    def macs(self) -> int:
        return self.depthwise.macs + self.pointwise.macs

    @property
    def params(self) -> int:
        return self.depthwise.params + self.pointwise.params

    @property
    def bytes(self) -> int:
        return self.depthwise.bytes + self.pointwise.bytes

    @property
    def activations(self) -> int:
        return max(self.depthwise.activations, self.pointwise.activations)


@dataclass(frozen=True)
class SepConvSpec:
    """Two depthwise separable convolutions; the first has the stride (DARTS, ICLR 2019)."""

    first: SeparableSpec
    second: SeparableSpec

    @property
    def macs(self) -> int:
        return self.first.macs + self.second.macs

    @property
    def params(self) -> int:
        return self.first.params + self.second.params

    @property
    def bytes(self) -> int:
        return self.first.bytes + self.second.bytes

    @property
    def activations(self) -> int:
        return max(self.first.activations, self.second.activations)


EdgeSpec = IdentitySpec | PoolSpec | ConvSpec | SeparableSpec | SepConvSpec


@dataclass(frozen=True)
class JoinSpec:
    """The output of a cell: its last `count` nodes, joined along the channels.

    `activations` is what the whole cell holds, since that depends on its edges together; see `most_held`.
    """

    count: int
    activations: int
    macs: ClassVar[int] = 0
    params: ClassVar[int] = 0
    bytes: ClassVar[int] = 0


@dataclass(frozen=True)
class ResidualSpec:
    """Two times relu -> 3x3 -> norm, plus a shortcut; the first has the stride."""

    conv1: ConvSpec
    conv2: ConvSpec
    shortcut: ShortcutSpec

    @property
    def macs(self) -> int:
        return self.conv1.macs + self.conv2.macs + self.shortcut.macs

    @property
    def params(self) -> int:
        return self.conv1.params + self.conv2.params + self.shortcut.params

    @property
    def bytes(self) -> int:
        return self.conv1.bytes + self.conv2.bytes + self.shortcut.bytes

    @property
    def activations(self) -> int:
        kept = self.conv1.held_in  # for the shortcut, beside a copy that went through the relu
        around = self.shortcut.activations(kept, self.conv1.in_channels, self.conv2)
        return max(kept + self.conv1.activations, kept + self.conv2.activations, around)


@dataclass(frozen=True)
class NormHeadSpec:
    """norm -> relu -> global average pooling -> dropout -> classifier.

    `norm` tells the norm's width and the side of its input; it stands for a convolution that is not there.
    """

    norm: ConvSpec
    classifier: LinearSpec

    @property
    def macs(self) -> int:
        return self.classifier.macs

    @property
    def params(self) -> int:
        return self.classifier.params + 2 * self.norm.out_channels

    @property
    def bytes(self) -> int:
        return self.classifier.bytes + 16 * self.norm.out_channels + 8

    @property
    def activations(self) -> int:
        return max(self.norm.held_out + self.norm.out_channels, self.classifier.activations)


@dataclass(frozen=True)
class FlatHeadSpec:
    """2x2 max pooling -> flatten -> linear -> relu -> dropout -> classifier, for features [channels, size, size]."""

    channels: int
    size: int
    hidden: LinearSpec
    classifier: LinearSpec

    @property
    def macs(self) -> int:
        return self.hidden.macs + self.classifier.macs

    @property
    def params(self) -> int:
        return self.hidden.params + self.classifier.params

    @property
    def bytes(self) -> int:
        return self.hidden.bytes + self.classifier.bytes

    @property
    def activations(self) -> int:
        pooling = self.channels * self.size**2 + self.hidden.in_features
        return max(pooling, self.hidden.activations, self.classifier.activations)


def most_held(edges: Sequence[EdgeSpec | None], held_in: int, held: int, count: int) -> int:
    """The most numbers that a cell holds at a time, on one image.

    Args:
        edges: operations in the order of their targets, then of their sources; None: no connection.
        held_in: numbers of the cell's input.
        held: numbers of every other node.
        count: how many of the last nodes are joined; 1: the last is the output as it is.
    """
    return _most_held(tuple(_passes(edge) for edge in edges), held_in, held, count)


def _passes(edge: EdgeSpec | None) -> tuple[bool, int] | None:
    """(whether it starts with a relu, after how many layers it is through); more than 2 in a row hold no more."""
    if edge is None:
        return None
    if isinstance(edge, IdentitySpec | PoolSpec):
        return False, int(isinstance(edge, PoolSpec))
    if isinstance(edge, SeparableSpec) and edge.step > 1:
        return False, 2  # what it sees of the input is copied first
    return True, 1 if isinstance(edge, ConvSpec) else 2


@cache
def _most_held(passes: tuple[tuple[bool, int] | None, ...], held_in: int, held: int, count: int) -> int:
    trace = _Trace(held_in)
    nodes, edges = [0], iter(passes)
    left = len(passes)
    while left:
        total: int | None = None
        for source in nodes:
            edge, left = next(edges), left - 1
            if edge is None:
                continue
            value = source
            if edge[0]:
                value = trace.add((value,), trace.sizes[value], in_place=True)
            for _ in range(edge[1]):
                value = trace.add((value,), held)
            total = value if total is None else trace.add((total, value), held, in_place=True)
        nodes.append(trace.add((0,), held, in_place=True) if total is None else total)
    trace.add(tuple(nodes[-count:]), count * held if count > 1 else 0)
    return trace.peak()


class _Trace:
    """Operations in the order of their execution. A value lives from its operation to the last one that reads it."""

    def __init__(self, held_in: int) -> None:
        self.sizes = [held_in]
        self.inputs: list[tuple[int, ...]] = [()]
        self.in_place = [False]

    def add(self, inputs: tuple[int, ...], size: int, in_place: bool = False) -> int:
        """One more operation and its value; `in_place`: it can write over an input of its size that dies with it."""
        self.sizes.append(size)
        self.inputs.append(inputs)
        self.in_place.append(in_place)
        return len(self.sizes) - 1

    def peak(self) -> int:
        """The most numbers alive at a time."""
        last = list(range(len(self.sizes)))
        for step, inputs in enumerate(self.inputs):
            for value in inputs:
                last[value] = step
        most = alive = 0
        for step, size in enumerate(self.sizes):
            dying = {value for value in self.inputs[step] if last[value] == step}
            over = [value for value in dying if self.sizes[value] == size]
            reused = bool(self.in_place[step] and over)
            alive += 0 if reused else size
            most = max(most, alive)
            alive -= sum(self.sizes[value] for value in dying) - (size if reused else 0)
            if last[step] == step:
                alive -= size
        return most
