"""Strictly fair path sampling: every option of a gene is trained equally often (FairNAS, Chu et al., ICCV 2021).

Uniform sampling gives the options of a gene equal numbers of updates in the mean only. Here the draws of a block use
every option the same number of times, so that these numbers have no variance. Published for genes with equal numbers
of options, K models a step; here a block is as long as the least common multiple of all these numbers, and a gene
with fewer options goes through several permutations in it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from supernet.errors import UserError
from supernet.horizon import Horizon
from supernet.paths.base import LossOf, Path
from supernet.space import Space


class Fair:
    """In every block of draws each gene goes through fresh random permutations of its options.

    What is fair is the draw itself: where a drawn depth skips a block, the options drawn for that block train
    nothing, so what counts is fair given the depths only in the mean.

    Args:
        space: what is drawn from.
        seed: of the run.
        horizon: not used.
        strict: a step is one block or several, as published: after each step all options have been used equally often.
            Otherwise a block can span several steps, so that any number of subnets a step will do.
    """

    def __init__(self, space: Space, seed: int, horizon: Horizon, strict: bool = True) -> None:
        self.space, self.seed, self.strict = space, seed, strict
        self.options = [len(gene.options) for gene in space.genes]
        self.block = math.lcm(*self.options)

    def draw(self, step: int, count: int, loss_of: LossOf) -> list[Path]:
        """See `PathSampler`.

        Raises:
            UserError: if a step is to be fair and `count` is not a multiple of the block.
        """
        self.check(count)
        draws = range(step * count, (step + 1) * count)
        blocks = {number: self._block(number) for number in {draw // self.block for draw in draws}}
        return [Path(self.space.decode(blocks[draw // self.block][draw % self.block].tolist())) for draw in draws]

    def check(self, count: int) -> None:
        """See `Counts`."""
        if self.strict and count % self.block:
            near = max(1, math.ceil(count / self.block)) * self.block
            raise UserError(
                f"num_random={count}: a step is fair to every option only with a multiple of {self.block} random "
                f"subnets: set sampler.num_random={near}, or path_sampler.strict=false for fairness over several steps"
            )

    def _block(self, number: int) -> NDArray[np.int64]:
        """The option indices [draws, G] of a block."""
        rng = np.random.default_rng((self.seed, number))
        orders = (np.tile(np.arange(options), (self.block // options, 1)) for options in self.options)
        return np.stack([rng.permuted(order, axis=1).reshape(-1) for order in orders], axis=1)
