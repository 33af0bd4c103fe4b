"""Scores of a subnet's genes, slowly: from the gradients of the subnet as a network of its own, never of a slice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from supernet.net import Supernet
from supernet.space import Arch, Space


def sort_of(name: str) -> str:
    if ".norm." in name:
        return "norm"
    return "bias" if name.endswith(".bias") else "weight"


def corner(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The leading channels and the centre of the kernel."""
    for dim, length in enumerate(shape):
        start = (tensor.shape[dim] - length) // 2 if dim >= 2 else 0
        tensor = tensor[(slice(None),) * dim + (slice(start, start + length),)]
    return tensor


def shapes_with(space: Space, arch: Arch, position: int, option: int) -> dict[str, tuple[int, ...]]:
    """The parameters of the subnet with another option of one gene."""
    codes = list(space.encode(arch))
    codes[position] = option
    other = space.module(space.plan(space.decode(codes)))
    return {name: tuple(parameter.shape) for name, parameter in other.named_parameters()}


def reference_of_unit(
    kind: str, own: dict[str, tuple[Tensor, Tensor]], smaller: Mapping[str, tuple[int, ...]]
) -> float | None:
    """The score of one layer: `own` holds (gradient, weight) by name, `smaller` the shapes to compare with."""
    values = []
    for sort in ("weight", "bias", "norm"):
        squares, weights, size = 0.0, 0.0, 0
        for name, (gradient, weight) in own.items():
            if sort_of(name) != sort:
                continue
            inner = corner(gradient, smaller[name]) if name in smaller else gradient[:0]
            if kind == "core":
                squares, size = squares + inner.square().sum().item(), size + inner.numel()
            elif kind == "ring":
                squares += gradient.square().sum().item() - inner.square().sum().item()
                size += gradient.numel() - inner.numel()
            else:
                squares, size = squares + gradient.square().sum().item(), size + gradient.numel()
                weights += weight.square().sum().item()
        if not size:
            continue
        rms = (max(squares, 0.0) / size) ** 0.5
        values.append(
            {"total": squares**0.5, "core": squares**0.5, "relative": rms / ((weights / size) ** 0.5 + 1e-3)}.get(
                kind, rms
            )
        )
    return sum(values) / len(values) if values else None


def reference(kind: str, net: Supernet, arch: Arch, loss: Any) -> dict[str, float]:
    """All scores of a subnet, by gene."""
    space, subnet = net.space, net.extract(arch)
    loss(subnet).backward()
    everything = {n: (p.grad.clone(), p.detach()) for n, p in subnet.named_parameters() if p.grad is not None}
    codes, found = space.encode(arch), {}
    for position, gene in enumerate(space.genes):
        if len(gene.options) == 1 or not space.counts(gene, codes):
            continue
        prefixes = tuple(f"{unit.name}." for unit in space.units if position in unit.reads)
        own = {name: pair for name, pair in everything.items() if name.startswith(prefixes)}
        smaller: dict[str, tuple[int, ...]] = {}
        if kind == "ring" and codes[position]:
            smaller = shapes_with(space, arch, position, codes[position] - 1)
        if kind == "core":
            options = (shapes_with(space, arch, position, option) for option in range(len(gene.options)))
            smaller = next((shapes for shapes in options if shapes.keys() & own.keys()), {})
        scores = []
        for prefix in prefixes:
            of_unit = {name: pair for name, pair in own.items() if name.startswith(prefix)}
            score = reference_of_unit(kind, of_unit, smaller)
            scores += [] if score is None else [score]
        if scores:
            found[gene.name] = sum(scores) / len(scores)
    return found
