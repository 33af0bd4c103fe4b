"""Compound path sampling: choices tied to others of the same stage (CompOFA, Sahni et al., ICLR 2021).

A deeper stage is a wider one too: with expand tied to depth, a stage of the i-th depth has the i-th expand ratio in
all its blocks. The supernet then trains a small part of the space, that of balanced subnets.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from supernet.horizon import Horizon
from supernet.paths.base import LossOf, Path
from supernet.space import Space


class Compound:
    """Free genes are uniform; a tied one takes the index of the gene that it is tied to. Options are ascending.

    Args:
        space: what is drawn from.
        seed: of the run.
        horizon: not used.
        ties: by key the key that it follows. Each gene under the first follows the one gene under the second that
            acts on layers of the same stage; where either has a single option, or the second is lacking, it is free.

    Raises:
        ValueError: if a key is unknown or follows one that is tied itself, genes of the two share no stage, a gene
            could follow several, or numbers of options differ.
    """

    def __init__(self, space: Space, seed: int, horizon: Horizon, ties: Mapping[str, str]) -> None:
        self.space, self.seed = space, seed
        keys = list(dict.fromkeys(gene.key for gene in space.genes))
        for key, leader in ties.items():
            for name in (key, leader):
                if name not in keys:
                    raise ValueError(
                        f"ties={{{key}: {leader}}}: space {space.name!r} has no choice {name!r}; its choices are {keys}"
                    )
            if leader in ties:
                raise ValueError(f"ties={{{key}: {leader}}}: {leader} is tied itself; tie {key} to a free choice")
        # The position that each gene takes its index from: its own where it is free.
        self.leaders = list(range(len(space.genes)))
        for key, leader in ties.items():
            for position, found in _tied(space, key, leader).items():
                self.leaders[position] = found

    def draw(self, step: int, count: int, loss_of: LossOf) -> list[Path]:
        limits = [len(gene.options) for gene in self.space.genes]
        rngs = (np.random.default_rng((self.seed, step, slot)) for slot in range(count))
        rows = (rng.integers(0, limits)[self.leaders].tolist() for rng in rngs)
        return [Path(self.space.decode(row)) for row in rows]


def _tied(space: Space, key: str, leader: str) -> dict[int, int]:
    """By the position of each gene under `key` that has something to follow, that of the gene which it follows."""
    what = f"ties={{{key}: {leader}}}"
    found: dict[int, int] = {}
    shares_stage = False
    for position, gene in enumerate(space.genes):
        if gene.key != key:
            continue
        leaders = _of_same_stages(space, position, leader)
        shares_stage = shares_stage or bool(leaders)
        if len(leaders) > 1:
            names = ", ".join(space.genes[i].name for i in leaders)
            raise ValueError(f"{what}: {gene.name} acts on the stages of several choices: {names}; tie it to one")
        leaders = [i for i in leaders if len(space.genes[i].options) > 1]
        if not leaders or len(gene.options) == 1:
            continue
        followed = space.genes[leaders[0]]
        if len(followed.options) != len(gene.options):
            raise ValueError(
                f"{what}: {gene.name} has {len(gene.options)} options {list(gene.options)}, "
                f"{followed.name} has {len(followed.options)} {list(followed.options)}: give both as many"
            )
        found[position] = leaders[0]
    if not shares_stage:
        raise ValueError(f"{what}: in space {space.name!r} no choice of {key} is in the stage of one of {leader}")
    return found


def _of_same_stages(space: Space, position: int, key: str) -> list[int]:
    """The genes under `key` that act on layers of the same stages as the gene at `position`."""
    stages = {_stage(unit.name) for unit in space.units if position in unit.reads}
    reads = {i for unit in space.units if _stage(unit.name) in stages for i in unit.reads}
    return sorted(i for i in reads if space.genes[i].key == key)


def _stage(unit: str) -> str:
    """stages.1 for stages.1.0; a layer outside of stages is one of its own."""
    return unit.rpartition(".")[0] or unit
