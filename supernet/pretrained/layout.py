"""How the tensors of an original code are named and shaped: what such a code has to say, and what several share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Table = Mapping[str, str]


def _same(key: str) -> str:
    return key


def _needed(key: str, blocks: Collection[str]) -> None:
    return None


def _as_it_is(name: str, tensor: Tensor, shape: torch.Size, space: Mapping[str, Any]) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Layout:
    """The state dict of one original code.

    Attributes:
        mark: how the names of some of its tensors begin, and those of no other code do.
        first, classifier: its first convolution [out, in, ..] and its classifier [classes, ..].
        family: the family whose supernet the tensors belong to, by their shapes; None: unknown.
        table: from our module or tensor names to the original ones, given all our tensor names.
        unused: why a tensor is not needed, given the names of our blocks; None: it is.
        normal: one spelling for names that older versions of the code wrote in another way.
        fit: a tensor in our form, given our name and shape, and the description of the space.
    """

    mark: str
    first: str
    classifier: str
    family: Callable[[Mapping[str, Tensor]], str | None]
    table: Callable[[Collection[str]], Table]
    unused: Callable[[str, list[str]], str | None] = _needed
    normal: Callable[[str], str] = _same
    fit: Callable[[str, Tensor, torch.Size, Mapping[str, Any]], Tensor] = _as_it_is


def original_name(name: str, table: Table) -> str:
    """The original name of our tensor `name`: that of the tensor itself or of its module, by `table`.

    Raises:
        KeyError: if the table has neither, so the original code has no such layer.
    """
    if name in table:
        return table[name]
    module, _, leaf = name.rpartition(".")
    return f"{table[module]}.{leaf}"


def blocks_of(names: Collection[str]) -> list[str]:
    """Our blocks "stages.<s>.<b>" in the order of execution; the original codes number them through."""
    return list(dict.fromkeys(".".join(name.split(".")[:3]) for name in names if name.startswith("stages.")))


def conv_norm(ours: str, theirs: str, conv: str = "conv", norm: str = "bn") -> dict[str, str]:
    """The entries of a table for a convolution with its norm."""
    return {f"{ours}.conv": f"{theirs}.{conv}", f"{ours}.norm": f"{theirs}.{norm}"}


def mobile_block(ours: str, theirs: str, conv: str, norm: str) -> dict[str, str]:
    """The entries for an inverted residual block, as MIT's and Facebook's codes name its parts alike."""
    return {
        **conv_norm(f"{ours}.expand", f"{theirs}.inverted_bottleneck", conv, norm),
        **conv_norm(f"{ours}.depthwise", f"{theirs}.depth_conv", conv, norm),
        **conv_norm(f"{ours}.project", f"{theirs}.point_linear", conv, norm),
        f"{ours}.se.reduce.conv": f"{theirs}.depth_conv.se.fc.reduce",
        f"{ours}.se.expand.conv": f"{theirs}.depth_conv.se.fc.expand",
    }
