"""What subnets of a certain cost look like: one categorical distribution for every gene and bin of MACs.

The sampler of AttentiveNAS (Wang et al., CVPR 2021): uniform subnets are sorted into bins by their MACs, and inside a
bin the genes are taken as independent. That is an approximation, so that what is drawn for a bin must be priced again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from supernet.cost import macs_of
from supernet.space import Space
from supernet.sweep import extremes

BINS = 64  # over the range of the space, where no width is given
MOST = 4096


@dataclass(frozen=True)
class Prior:
    """The distributions of the bins that a sample of uniform subnets fell into.

    Attributes:
        space: of the subnets.
        width: of a bin, MACs.
        bins: [N], bin b holds the subnets of about b times `width` MACs, that is rint(MACs / width) = b.
        up_to: [N], the share of uniform subnets in the bins up to each.
        below: [N, G, K], of every gene the share of a bin's subnets with at most each option; 1 where it has fewer.
    """

    space: Space
    width: float
    bins: NDArray[np.int64]
    up_to: NDArray[np.float64]
    below: NDArray[np.float64]

    def rows(self, rng: np.random.Generator, count: int, tries: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A bin drawn as often as uniform subnets are in it: its number [], and gene rows [count, tries, G] for it."""
        row = int(np.searchsorted(self.up_to, rng.random(), side="right"))
        below = self.below[row]
        genes = np.zeros((count, tries, len(below)), dtype=np.int64)
        uniform = rng.random(genes.shape)
        for option in range(below.shape[1] - 1):
            genes += uniform >= below[:, option]
        return self.bins[row], genes

    def bin_of(self, genes: NDArray[np.int64]) -> NDArray[np.int64]:
        """The bins [N] of gene rows [N, G]."""
        return _bins(macs_of(self.space).batch(genes), self.width)


def make_prior(space: Space, rng: np.random.Generator, samples: int, width: float | None = None) -> Prior:
    """The prior of `samples` uniform subnets. `width` of the bins, MACs; None: about 1/64 of the space's range.

    Raises:
        ValueError: if an argument is out of range, or there would be more than 4,096 bins.
    """
    if samples < 1:
        raise ValueError(f"prior_samples={samples}: must be at least 1")
    macs = macs_of(space)
    least, most = extremes(space, macs)
    if width is None:
        width = float(f"{(most - least) / BINS:.2g}") or 1.0
    if not width > 0:
        raise ValueError(f"bin_width={width:g}: must be positive")
    if (most - least) / width > MOST:
        least_width = (most - least) / MOST
        raise ValueError(f"bin_width={width:g}: more than {MOST} bins; give at least {least_width:.2g} MACs")
    options = [len(gene.options) for gene in space.genes]
    genes = rng.integers(0, options, size=(samples, len(options)))
    bins, row, count = np.unique(_bins(macs.batch(genes), width), return_inverse=True, return_counts=True)
    below = np.ones((len(bins), len(options), max(options)))
    for gene, number in enumerate(options):
        found = np.bincount(row * number + genes[:, gene], minlength=len(bins) * number).reshape(len(bins), number)
        below[:, gene, :number] = found.cumsum(axis=1) / count[:, None]
    return Prior(space, width, bins, count.cumsum() / samples, below)


def _bins(macs: NDArray[np.int64], width: float) -> NDArray[np.int64]:
    return np.rint(macs / width).astype(np.int64)
