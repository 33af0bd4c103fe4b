"""Attentive path sampling: the best, or the worst, of a few subnets of similar cost (AttentiveNAS, CVPR 2021).

Uniform sampling wastes steps on subnets far from the Pareto front. Here a random slot draws a bin of MACs, then a few
candidates in it, and trains the one with the lowest loss on the step's own batch (bestup) or the highest (worstup).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from supernet.cost import macs_of
from supernet.horizon import Horizon
from supernet.paths.base import LossOf, Path
from supernet.paths.prior import make_prior
from supernet.space import Arch, Space


class Attentive:
    """The extreme one of `candidates` subnets drawn around a common number of MACs.

    A path's weight is 1: how probable a subnet is after drawing until the bin fits is not known, so that its loss
    cannot be importance-weighted. A step waits for the device once, for the losses of all its candidates. In
    data-parallel training the losses must be averaged over ranks, or these would choose differently.

    Args:
        space: what is drawn from.
        seed: of the run.
        horizon: not used.
        candidates: of a random slot; 1: no scores, the prior alone.
        mode: "bestup": the best candidate; "worstup": the worst.
        score: "loss": the lower, the better; "macs": the more, the better, without a look at the network.
        bin_width: MACs; None: about 1/64 of the space's range. Published: 25e6.
        prior_samples: uniform subnets that the prior is made of.
        retries: draws of a candidate after its first until it is in the bin; then the last one is taken.

    Raises:
        ValueError: naming the argument out of range.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        horizon: Horizon,
        candidates: int = 3,
        mode: Literal["bestup", "worstup"] = "bestup",
        score: Literal["loss", "macs"] = "loss",
        bin_width: float | None = None,
        prior_samples: int = 100_000,
        retries: int = 100,
    ) -> None:
        if candidates < 1:
            raise ValueError(f"candidates={candidates}: must be at least 1")
        if retries < 0:
            raise ValueError(f"retries={retries}: must not be negative")
        if mode not in ("bestup", "worstup"):
            raise ValueError(f"mode={mode!r}: choose bestup or worstup")
        if score not in ("loss", "macs"):
            raise ValueError(f"score={score!r}: choose loss or macs")
        self.space, self.seed, self.number, self.mode, self.score = space, seed, candidates, mode, score
        self.tries = 1 + retries
        # A stream of its own: no step's draws are those that the prior was made of.
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
        self.prior = make_prior(space, rng, prior_samples, bin_width)

    def draw(self, step: int, count: int, loss_of: LossOf) -> list[Path]:
        slots = self.candidates(step, count)
        # With a single candidate there is nothing to choose, and a subnet that came up twice is scored once.
        compared = dict.fromkeys(arch for slot in slots for arch in slot if len(set(slot)) > 1)
        scores = self._scores(list(compared), loss_of)
        extreme = max if self.mode == "bestup" else min
        return [Path(extreme(slot, key=lambda arch: scores.get(arch, 0.0))) for slot in slots]

    def candidates(self, step: int, count: int) -> list[list[Arch]]:
        """The candidates of each of the `count` random slots of a step."""
        if not count:
            return []
        rngs = (np.random.default_rng((self.seed, step, slot)) for slot in range(count))
        drawn = [self.prior.rows(rng, self.number, self.tries) for rng in rngs]
        bins, genes = np.array([bin_ for bin_, _ in drawn]), np.stack([rows for _, rows in drawn])
        shape = genes.shape[:3]  # slots, candidates, tries
        fits = self.prior.bin_of(genes.reshape(-1, genes.shape[3])).reshape(shape) == bins[:, None, None]
        chosen = np.where(fits.any(axis=2), fits.argmax(axis=2), self.tries - 1)  # the first that fits, else the last
        rows = np.take_along_axis(genes, chosen[:, :, None, None], axis=2)[:, :, 0]
        return [[self.space.decode(row) for row in slot] for slot in rows.tolist()]

    def _scores(self, archs: list[Arch], loss_of: LossOf) -> dict[Arch, float]:
        """The higher, the better."""
        if not archs:
            return {}
        if self.score == "macs":
            values = macs_of(self.space).batch(np.array([self.space.encode(arch) for arch in archs])).tolist()
        else:
            values = (-torch.stack([loss_of(arch) for arch in archs])).tolist()
        return dict(zip(archs, values, strict=True))
