"""The operations that edges of cells choose among, by the names of the published spaces.

`sep_conv_5x5` and the like: relu, depthwise 5x5, 1x1, norm, twice (DARTS, ICLR 2019). `dil_conv_5x5`: once, with
dilation 2. `nor_conv_3x3`: relu, 3x3, norm (NAS-Bench-201, ICLR 2020). `avg_pool_3x3`, `max_pool_3x3`,
`skip_connect`: no weights; with a stride the latter is relu, 1x1, norm. `none`: no connection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from supernet.choices import Choice, unit
from supernet.space import Unit
from supernet.specs import ConvSpec, EdgeSpec, IdentitySpec, PoolSpec, SeparableSpec, SepConvSpec

KINDS = {  # kind -> name of the layer in which all its kernels share weights
    "none": "none",
    "skip_connect": "skip",
    "avg_pool": "avg_pool",
    "max_pool": "max_pool",
    "nor_conv": "conv",
    "dil_conv": "dil",
    "sep_conv": "sep",
}
NAME = re.compile(r"(none|skip_connect)|(avg_pool|max_pool)_3x3|(nor_conv|dil_conv|sep_conv)_([1-9])x\4")


@dataclass(frozen=True)
class Operation:
    """An operation as its name says; `kernel` is that of its convolutions, 0 where it has none."""

    name: str
    kind: str
    kernel: int

    def layer(self, entangled: bool) -> str:
        """The name of the layer that holds its weights: kernels of a kind share one if they are entangled."""
        return KINDS[self.kind] if entangled or not self.kernel else self.name


@dataclass(frozen=True)
class Around:
    """What the operations of an edge have in common. `size_in` and `size`: sides before and after, px."""

    channels: int
    size_in: int
    size: int
    stride: int
    affine: bool
    norm_eps: float


def operations(where: str, names: Any, connected: bool = False) -> tuple[Operation, ...]:
    """The operations of a list of names, distinct ones. With `connected` there must be no "none".

    Raises:
        ValueError: naming `where` and the name that is wrong.
    """
    found = []
    for name in names if isinstance(names, Sequence) and not isinstance(names, str) else [names]:
        match = NAME.fullmatch(name) if isinstance(name, str) else None
        if match is None or (match[4] and int(match[4]) % 2 == 0) or (connected and name == "none"):
            known = [*([] if connected else ["none"]), "skip_connect", "avg_pool_3x3", "max_pool_3x3"]
            known += [f"{kind}_<k>x<k>" for kind in ("nor_conv", "dil_conv", "sep_conv")]
            raise ValueError(f"{where}: unknown operation {name!r}; known are {', '.join(known)} with odd k up to 9")
        found.append(Operation(name, match[1] or match[2] or match[3], int(match[4] or 0)))
    if not found or len(set(found)) != len(found):
        raise ValueError(f"{where}={names!r}: give a list of operations without repeats")
    return tuple(found)


def edge_units(
    name: str,
    side: Choice,
    choice: Choice,
    ops: Sequence[Operation],
    entangled: bool,
    around: Callable[[int], Around],
) -> list[Unit]:
    """One unit "<name>.<layer>" for each layer that the operations of an edge need; a subnet has at most one of them.

    Args:
        side: the resolution, from which `around` computes the sides.
        choice: the name of the operation.
    """
    by_name = {op.name: op for op in ops}

    def of_layer(layer: str) -> Callable[..., EdgeSpec | None]:
        def spec(resolution: int, chosen: str) -> EdgeSpec | None:
            op = by_name[chosen]
            return edge_spec(op, around(resolution)) if op.layer(entangled) == layer else None

        return spec

    layers = dict.fromkeys(op.layer(entangled) for op in ops if op.kind != "none")
    return [unit(f"{name}.{layer}", [side, choice], of_layer(layer)) for layer in layers]


def edge_spec(op: Operation, around: Around) -> EdgeSpec | None:
    """The spec of an operation; None for no connection."""
    if op.kind == "none":
        return None
    if op.kind in ("avg_pool", "max_pool"):
        return PoolSpec(op.kind[:3], around.channels, around.size_in, around.size, around.stride)
    if op.kind == "nor_conv" or (op.kind == "skip_connect" and around.stride > 1):
        return _conv(around, kernel=max(op.kernel, 1), stride=around.stride, size_in=around.size_in)
    if op.kind == "skip_connect":
        return IdentitySpec()
    if op.kind == "dil_conv":
        return _separable(around, op.kernel, around.stride, dilation=2)
    return SepConvSpec(_separable(around, op.kernel, around.stride), _separable(around, op.kernel, stride=1))


def _separable(around: Around, kernel: int, stride: int, dilation: int = 1) -> SeparableSpec:
    """Where stride and dilation are both 2, every second pixel is all that is seen: a plain convolution of these.

    PyTorch's backward pass of the plain one is several times faster.
    """
    step = dilation if dilation == stride else 1
    size_in = around.size if stride == step else around.size_in
    depthwise = ConvSpec(
        around.channels,
        around.channels,
        around.size,
        kernel=kernel,
        stride=stride // step,
        depthwise=True,
        norm_eps=None,
        size_in=size_in,
        dilation=dilation // step,
    )
    return SeparableSpec(depthwise, _conv(around), step)


def _conv(around: Around, **rest: Any) -> ConvSpec:
    channels = around.channels
    return ConvSpec(channels, channels, around.size, affine=around.affine, norm_eps=around.norm_eps, **rest)
