"""How much a choice matters, read off the gradients of one subnet.

Path importance sampling (PA&DA, CVPR 2023) scores an operation by the norm of its gradient. Choices that share
weights are nested: the norm of a larger slice is larger for its size alone. The indicators differ in what they do
about it:

- total: the norm of the gradient of the layer, as published;
- rms: the norm / sqrt(number of weights), so that size does not count;
- relative: the rms of the gradient / (rms of the weights + 1e-3);
- core: the norm over the slice of the smallest option that shares weights with the chosen one, all other genes as
  chosen: the same weights for every option;
- ring: the rms over what the chosen option adds to the next smaller one; of the smallest, over all of its slice.

A layer's score is the mean over three sorts of parameters, as far as it has them: weights of more than one axis,
biases, norms. A gene's score is the mean over the layers of the subnet that read it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from supernet.slicing import CONV_KERNEL_DIMS, take
from supernet.space import Space

Indicator = Literal["total", "rms", "relative", "core", "ring"]
SORTS = ("weight", "bias", "norm")
LEAST_RMS = 1e-3  # of weights: a scale or bias that is still zero must not outweigh everything
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)

Shape = tuple[int, ...]
Shapes = dict[str, Shape]  # of parameters, by name
Piece = tuple[str, Shape | None]  # a parameter's name, and the shape of its slice; None: all of it


@dataclass(frozen=True)
class Group:
    """Parameters of one sort in one layer: the squares of `inside` less those of `outside`, `size` numbers."""

    inside: tuple[Piece, ...]
    outside: tuple[Piece, ...]
    size: int


@dataclass(frozen=True, eq=False)  # equal parts are the same object, see `Indicators._part`
class Part:
    """What of a layer is measured."""

    groups: tuple[Group, ...]


class Indicators:
    """Scores the genes of a subnet that have more than one option, the *sites*.

    Layers are built without memory to learn the shapes of their parameters, once for each of their specs.

    Args:
        space: of the subnets.
        kind: one of the five, see the top of this file.

    Attributes:
        sites: positions of the genes with more than one option.
        weights: the parameters of `Supernet.net` by name; must be set for "relative", and is read by it alone.
    """

    def __init__(self, space: Space, kind: Indicator) -> None:
        if kind not in get_args(Indicator):
            raise ValueError(f"indicator={kind!r}: choose one of {', '.join(get_args(Indicator))}")
        self.space, self.kind = space, kind
        self.sites = [position for position, gene in enumerate(space.genes) if len(gene.options) > 1]
        self.weights: Mapping[str, Tensor] | None = None
        with torch.device("meta"):
            net = space.module(space.widest)
        self._modules = dict(net.named_modules())
        self._sorts = {name: _sort(self._modules[name.rpartition(".")[0]], name) for name, _ in net.named_parameters()}
        self._cropped = {f"{name}.weight" for name, module in self._modules.items() if isinstance(module, nn.Conv2d)}
        # Units that read a site; a unit without a module has no parameters.
        self._units = [
            [u for u, unit in enumerate(space.units) if position in unit.reads and unit.name in self._modules]
            for position in self.sites
        ]
        # Equal shapes are the same object, so that what follows from them can be kept by identity.
        self._nothing: Shapes = {}
        self._distinct: dict[tuple[tuple[str, Shape], ...], Shapes] = {(): self._nothing}
        self._by_spec: dict[tuple[int, Any], Shapes] = {}
        self._by_codes: dict[tuple[int, Shape], Shapes] = {}
        self._parts: dict[tuple[int, int], Part | None] = {}
        self._same: dict[tuple[Group, ...], Part] = {}

    @torch.no_grad()
    def measure(self, codes: Sequence[int], gradients: Mapping[str, Tensor]) -> tuple[list[int], Tensor]:
        """The sites of a subnet that could be measured, and their scores, float64 [sites], on the gradients' device.

        Left out are genes that do not count and options without parameters. Nothing waits for the device.

        Args:
            codes: option indices of the subnet's genes, see `Space.encode`.
            gradients: of the parameters of `Supernet.net` by name, zero outside the subnet's slices.
        """
        parts = self._measured(codes)
        found = sorted({site for sites in parts.values() for site in sites})
        groups = [group for part in parts for group in part.groups]
        if not groups:
            return [], torch.empty(0)
        pieces = list(dict.fromkeys(piece for group in groups for piece in (*group.inside, *group.outside)))
        device = next(iter(gradients.values())).device
        members = upload(_members(groups, pieces), device)
        values = self._norms(pieces, gradients, members)
        factors = _means(parts, found)
        if self.kind in ("rms", "ring"):
            factors /= np.sqrt([group.size for group in groups])
        elif self.kind == "relative":
            assert self.weights is not None, "indicator=relative needs the weights"
            roots = upload(np.sqrt([float(group.size) for group in groups]), device)
            values = values / (self._norms(pieces, self.weights, members) + LEAST_RMS * roots)
        return found, upload(factors, device) @ values

    def _measured(self, codes: Sequence[int]) -> dict[Part, list[int]]:
        """What to measure of the subnet, and for which sites (indices into `sites`)."""
        own = [tuple(codes[i] for i in unit.reads) for unit in self.space.units]
        found: dict[Part, list[int]] = defaultdict(list)
        for site, position in enumerate(self.sites):
            if not self.space.counts(self.space.genes[position], codes):
                continue
            chosen, units = codes[position], self._units[site]
            for base in range(chosen + 1) if self.kind == "core" else (chosen - 1,):
                parts = [part for u in units if (part := self._part(u, own[u], position, base)) is not None]
                if parts:
                    for part in parts:
                        found[part].append(site)
                    break
        return found

    def _part(self, unit: int, own: Shape, position: int, base: int) -> Part | None:
        """What to measure of a unit for one gene; `base` is the option that core and ring compare with."""
        held, smaller = self._shapes(unit, own), self._nothing
        if self.kind in ("core", "ring") and base >= 0:
            reads = self.space.units[unit].reads
            smaller = self._shapes(unit, tuple(base if i == position else c for i, c in zip(reads, own, strict=True)))
        key = (id(held), id(smaller))
        if key not in self._parts:
            groups = tuple(group for sort in SORTS if (group := self._group(sort, held, smaller)) is not None)
            self._parts[key] = self._same.setdefault(groups, Part(groups)) if groups else None
        return self._parts[key]

    def _group(self, sort: str, held: Shapes, smaller: Shapes) -> Group | None:
        """The parameters of one sort among those `held`, compared with those of the `smaller` option."""
        own = {name: shape for name, shape in held.items() if self._sorts[name] == sort}
        common = {
            name: tuple(min(pair) for pair in zip(shape, smaller[name], strict=True))
            for name, shape in own.items()
            if name in smaller
        }
        size, shared = (sum(int(np.prod(shape)) for shape in shapes.values()) for shapes in (own, common))
        if self.kind == "core":
            return Group(tuple(common.items()), (), shared) if shared else None
        if self.kind == "ring":
            grown = {name: shape for name, shape in own.items() if common.get(name) != shape}
            outside = tuple((name, common[name]) for name in grown if name in common)
            return Group(tuple(grown.items()), outside, size - shared) if size > shared else None
        # Gradients are zero outside the slice, and whole tensors are faster to go through.
        sliced = self.kind == "relative"
        return Group(tuple((n, s if sliced else None) for n, s in own.items()), (), size) if size else None

    def _shapes(self, unit: int, codes: Shape) -> Shapes:
        """The shapes of the parameters that a unit holds; `codes` are those of the genes that it reads."""
        key = (unit, codes)
        if key not in self._by_codes:
            reads, genes = self.space.units[unit].reads, self.space.genes
            spec = self.space.units[unit].spec(*(genes[i].options[c] for i, c in zip(reads, codes, strict=True)))
            if (unit, spec) not in self._by_spec:
                shapes = {} if spec is None else self._built(unit, spec)
                self._by_spec[unit, spec] = self._distinct.setdefault(tuple(shapes.items()), shapes)
            self._by_codes[key] = self._by_spec[unit, spec]
        return self._by_codes[key]

    def _built(self, unit: int, spec: Any) -> Shapes:
        """The shapes of a layer's parameters, as a subnet holds them: its class is built of the spec alone."""
        name = self.space.units[unit].name
        with torch.device("meta"):
            layer = type(self._modules[name])(spec)
        named = ((f"{name}.{key}", tuple(parameter.shape)) for key, parameter in layer.named_parameters())
        return {key: shape for key, shape in named if key in self._sorts}

    def _norms(self, pieces: Sequence[Piece], tensors: Mapping[str, Tensor], members: Tensor) -> Tensor:
        """The norm over each group, float64 [groups]."""
        views = [
            tensors[name] if shape is None else take(tensors[name], shape, self._centred(name))
            for name, shape in pieces
        ]
        each = torch.stack(torch._foreach_norm(views)).double().square()
        inside, outside = torch.cat((each, each.new_zeros(1)))[members].sum(2)
        return (inside - outside).clamp(min=0).sqrt()

    def _centred(self, name: str) -> tuple[int, ...]:
        return CONV_KERNEL_DIMS if name in self._cropped else ()


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """An array on the device, without waiting for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _sort(module: nn.Module, name: str) -> str:
    """Which of `SORTS` a parameter of `module` is."""
    if isinstance(module, NORMS):
        return "norm"
    return "bias" if name.endswith("bias") else "weight"


def _members(groups: Sequence[Group], pieces: Sequence[Piece]) -> np.ndarray:
    """The rows in `pieces` of what each group is inside and outside of, int64 [2, groups, most]; empty: one past."""
    row = {piece: i for i, piece in enumerate(pieces)}
    most = max(len(group.inside) for group in groups)
    found = np.full((2, len(groups), most), len(pieces))
    for g, group in enumerate(groups):
        found[0, g, : len(group.inside)] = [row[piece] for piece in group.inside]
        found[1, g, : len(group.outside)] = [row[piece] for piece in group.outside]
    return found


def _means(parts: Mapping[Part, Sequence[int]], found: Sequence[int]) -> np.ndarray:
    """The matrix [found sites, groups] that takes the mean over groups, then over the parts of each site."""
    row = {site: i for i, site in enumerate(found)}
    matrix = np.zeros((len(found), sum(len(part.groups) for part in parts)))
    column = 0
    for part, sites in parts.items():
        for site in sites:
            matrix[row[site], column : column + len(part.groups)] += 1 / len(part.groups)
        column += len(part.groups)
    return matrix / matrix.sum(1, keepdims=True)
