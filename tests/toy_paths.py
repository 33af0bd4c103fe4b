"""A space without layers, and path importance samplers with given scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from tiny import tiny_space
from torch import Tensor, nn

from supernet.horizon import Horizon
from supernet.paths.base import Path
from supernet.paths.importance import Importance
from supernet.space import Arch, Gene, Space

HORIZON = Horizon(steps_per_epoch=10, total_steps=100)
TINY = tiny_space()


def no_loss(arch: Arch) -> Tensor:
    raise AssertionError("importance sampling costs no forward passes")


def toy_space() -> Space:
    """Words and numbers, unequal option counts, and a gene that counts for some depths only; no layers."""
    genes = [
        Gene("resolution", None, (8,)),
        Gene("op", None, ("none", "pool", "conv")),
        Gene("depth", None, (1, 2)),
        Gene("kernel", 0, (3, 5)),
        Gene("kernel", 1, (3, 5), parent=2, above=1),
    ]
    return Space("toy", genes, [], lambda plan: nn.Module(), {})


def sampler(
    space: Space | None = None, scores: Mapping[str, Sequence[float]] | None = None, **config: Any
) -> Importance:
    """A sampler that is past its warm-up; `scores` are running scores of the genes, by name."""
    made = Importance(space or toy_space(), 7, HORIZON, **{"warmup_epochs": 0.0, **config})
    if scores is not None:
        plant(made, scores)
    return made


def plant(made: Importance, scores: Mapping[str, Sequence[float]]) -> None:
    state = made.state_dict()
    genes = [made.space.genes[position] for position in made.indicators.sites]
    for row, gene in enumerate(genes):
        for option, score in enumerate(scores.get(gene.name, ())):
            state["scores"][:, row, option] = torch.tensor([score, 1.0])
    made.load_state_dict(state)


def observed(made: Importance, scores: Mapping[tuple[int, ...], Mapping[str, float]], rounds: int = 1) -> None:
    """Show `made` subnets (codes) whose genes have the given scores, in place of measured ones."""
    names = [made.space.genes[position].name for position in made.indicators.sites]
    for _ in range(rounds):
        for codes, by_name in scores.items():
            sites = [site for site, name in enumerate(names) if name in by_name]
            values = torch.tensor([by_name[names[site]] for site in sites], dtype=torch.float64)
            made.indicators.measure = lambda codes, gradients, s=sites, v=values: (s, v)  # type: ignore[method-assign]
            made.observe(0, made.space.decode(codes), {})


def drawn(made: Importance, steps: Sequence[int], count: int = 1) -> list[Path]:
    return [path for step in steps for path in made.draw(step, count, no_loss)]


def archs_of(space: Space) -> list[Arch]:
    codes = product(*(range(len(gene.options)) for gene in space.genes))
    return list(dict.fromkeys(space.decode(code) for code in codes))


def probability(made: Importance, arch: Arch) -> float:
    """Of a draw: the sum over all raw codes that decode to `arch`."""
    space, pi = made.space, made.probabilities
    total = 0.0
    for codes in product(*(range(len(gene.options)) for gene in space.genes)):
        if space.decode(codes) == arch:
            total += float(np.prod([pi[g.name][c] for g, c in zip(space.genes, codes, strict=True) if g.name in pi]))
    return total


def uniform_probability(space: Space, arch: Arch) -> float:
    return probability(sampler(space), arch)


SCORES = {"op": (1.0, 2.0, 3.0), "depth": (1.0, 4.0), "kernel[0]": (3.0, 1.0), "kernel[1]": (1.0, 2.0)}


def real_gradients(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    named = TINY.module(TINY.widest).named_parameters()
    return {name: torch.randn(parameter.shape, generator=generator) for name, parameter in named}
