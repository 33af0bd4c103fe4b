"""Path importance sampling (PA&DA: Lu et al., CVPR 2023), for choices that share weights too.

Options whose gradients are large are drawn more often: that lowers the variance of the gradient that a random
subnet gives. Published for operations of a cell; here for every gene with more than one option, with the indicators
of `supernet.paths.indicators`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from supernet.horizon import Horizon
from supernet.paths.base import LossOf, Path
from supernet.paths.indicators import Indicator, Indicators, upload
from supernet.space import Arch, Space

Mode = Literal["curriculum", "unbiased"]
Share = Literal["gene", "key"]
Average = float | Literal["halved"]
Unscored = Literal["mean", "zero"]


class Importance:
    """Draws each gene's option with probability tau G / sum(G) + (1 - tau) / K, where G are running scores.

    Probabilities change once an epoch; tau grows with the run. A new run, and a new phase with a space of its own,
    begins uniform: blocks whose last norm starts with a zero scale give the weights before it no gradient at first,
    so early scores say nothing. Data-parallel training must average the gradients before they are observed.

    Args:
        space: what is drawn from.
        seed: of the run.
        horizon: the length of the run.
        indicator: total, rms, relative, core or ring, see `supernet.paths.indicators`.
        mode: "curriculum": losses are not weighted, as published; "unbiased": weighted with uniform / own
            probability, so that the expected gradient is that of uniform sampling. Genes that do not count do not
            enter the weight.
        share: "gene": every gene has scores of its own; "key": all genes of a key with the same options share them.
        ema: momentum of the running scores, corrected for their start; "halved": (old + new) / 2 from 0, as published.
        restart: forget all scores at the start of every epoch, as published.
        unscored: what options without parameters, and those not yet seen, count: "mean", that of the others; "zero",
            as published: they keep (1 - tau) / K.
        update_every: steps between observations.
        warmup_epochs: how long to stay uniform.
        tau: a constant; None: epoch / epochs, at most tau_max.
        tau_max: 1 leaves no probability to options without gradients.
        max_weight: the largest weight in mode unbiased; None: any. Clipping makes the estimate biased.
        normalise: in mode unbiased, divide the weights of a step by their mean.

    Raises:
        ValueError: naming the argument out of range.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        horizon: Horizon,
        indicator: Indicator = "rms",
        mode: Mode = "curriculum",
        share: Share = "gene",
        ema: Average = 0.9,
        restart: bool = False,
        unscored: Unscored = "mean",
        update_every: int = 1,
        warmup_epochs: float = 1.0,
        tau: float | None = None,
        tau_max: float = 0.9,
        max_weight: float | None = 5.0,
        normalise: bool = False,
    ) -> None:
        _check(ema, update_every, warmup_epochs, {"tau": tau, "tau_max": tau_max}, max_weight)
        for name, value, words in (("mode", mode, Mode), ("share", share, Share), ("unscored", unscored, Unscored)):
            if value not in get_args(words):
                raise ValueError(f"{name}={value!r}: choose one of {', '.join(get_args(words))}")
        self.space, self.seed, self.horizon = space, seed, horizon
        self.mode, self.ema, self.restart, self.update_every = mode, ema, restart, update_every
        self.unscored = unscored
        self.warmup_epochs, self.tau, self.tau_max = warmup_epochs, tau, tau_max
        self.max_weight, self.normalise = max_weight, normalise
        self.indicators = Indicators(space, indicator)
        genes = [space.genes[position] for position in self.indicators.sites]
        keys = [(g.key, g.options) if share == "key" else i for i, g in enumerate(genes)]
        order = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        self._row = np.array([order[key] for key in keys], dtype=np.int64)  # of each site
        options = dict(zip(self._row.tolist(), (len(gene.options) for gene in genes), strict=True))
        self._options = np.array([options[row] for row in range(len(order))], dtype=np.int64)  # of each row
        shape = (len(order), max(options.values(), default=1))
        self._real = np.arange(shape[1]) < self._options[:, None]
        self._uniform = self._real / self._options[:, None]
        # Sums and weights of the running means [rows, options]; a weight of 0: not yet seen.
        self._scores = torch.zeros(2, *shape, dtype=torch.float64)
        self._chosen_tau = 0.0
        self._first: int | None = None  # the first step drawn
        self._epoch: int | None = None  # the one that the probabilities are for
        self._drawn = [0.0, 0.0, 0.0]  # number, sum and squares of the weights since the last report
        self._set(self._uniform)

    @property
    def probabilities(self) -> dict[str, list[float]]:
        """Those that the present epoch uses, by gene."""
        rows = zip(self.indicators.sites, self._row, strict=True)
        return {self.space.genes[i].name: self._pi[row][self._real[row]].tolist() for i, row in rows}

    def attach(self, weights: Mapping[str, Tensor]) -> None:
        """Show the parameters of `Supernet.net` by name; indicator=relative needs them."""
        self.indicators.weights = weights

    def draw(self, step: int, count: int, loss_of: LossOf) -> list[Path]:
        """See `PathSampler.draw`. Waits for the device once an epoch, at its first step."""
        self._first = step if self._first is None else self._first
        if self.horizon.epoch(step) != self._epoch:
            self._begin(step)
        archs = [self._sample(np.random.default_rng((self.seed, step, slot))) for slot in range(count)]
        weights = [self._weight(arch) for arch in archs]
        if self.normalise and count:
            mean = sum(weights) / count
            weights = [weight / mean for weight in weights]
        new = (float(count), math.fsum(weights), math.fsum(weight**2 for weight in weights))
        self._drawn = [old + more for old, more in zip(self._drawn, new, strict=True)]
        return [Path(arch, weight) for arch, weight in zip(archs, weights, strict=True)]

    def wants(self, step: int) -> bool:
        """See `WatchesGradients.wants`."""
        return step % self.update_every == 0

    def observe(self, step: int, arch: Arch, gradients: Mapping[str, Tensor]) -> None:
        """See `WatchesGradients.observe`."""
        codes = self.space.encode(arch)
        sites, values = self.indicators.measure(codes, gradients)
        if not sites:
            return
        self._scores = self._scores.to(values.device)
        cells = [int(self._row[s]) * self._scores.shape[2] + codes[self.indicators.sites[s]] for s in sites]
        distinct, place = np.unique(cells, return_inverse=True)
        mean = np.equal(np.arange(len(distinct))[:, None], place).astype(np.float64)  # over the sites of a cell
        new = upload(mean / mean.sum(1, keepdims=True), values.device) @ values
        index = upload(distinct, values.device)
        flat = self._scores.view(2, -1)
        old = flat[:, index]
        if self.ema == "halved":
            moved = torch.stack(((old[0] + new) / 2, torch.ones_like(new)))
        else:
            moved = self.ema * old + (1 - self.ema) * torch.stack((new, torch.ones_like(new)))
        flat[:, index] = torch.where(new.isfinite(), moved, old)

    def report(self) -> dict[str, float]:
        """Figures for the log. Entropy and effective sample size are shares of those of uniform sampling.

        entropy: mean over genes; tau; ess: of the weights since the last report; observed: share of options seen.
        """
        number, total, squares = self._drawn
        self._drawn = [0.0, 0.0, 0.0]
        pi = self._pi[self._row]
        entropy = -np.sum(pi * np.log(np.where(pi > 0, pi, 1.0)), axis=1) / np.log(self._options[self._row])
        seen = self._scores[1].cpu().numpy()[self._real] > 0
        return {
            "entropy": float(entropy.mean()) if len(entropy) else 1.0,
            "tau": self._chosen_tau,
            "ess": total**2 / (number * squares) if squares else 1.0,
            "observed": float(seen.mean()) if len(seen) else 1.0,
        }

    def state_dict(self) -> dict[str, Any]:
        """Running scores, and the probabilities of the present epoch, which were made of earlier ones."""
        return {
            "scores": self._scores.clone(),
            "probabilities": torch.from_numpy(self._pi.copy()),
            "tau": self._chosen_tau,
            "first": self._first,
            "epoch": self._epoch,
            "drawn": list(self._drawn),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            ValueError: if the state is that of another space or of another `share`.
        """
        if state["scores"].shape != self._scores.shape:
            raise ValueError(f"scores of {list(state['scores'].shape)}, expected {list(self._scores.shape)}")
        if tuple(state["probabilities"].shape) != self._pi.shape:
            raise ValueError(f"probabilities of {list(state['probabilities'].shape)}, expected {list(self._pi.shape)}")
        self._scores = state["scores"].clone()
        self._chosen_tau, self._first, self._epoch = state["tau"], state["first"], state["epoch"]
        self._drawn = list(state["drawn"])
        self._set(state["probabilities"].cpu().numpy().copy())

    # Internals -------------------------------------------------------------------------------------------------

    def _begin(self, step: int) -> None:
        """The probabilities of the epoch that `step` lies in, from what was observed so far."""
        assert self._first is not None
        self._epoch = self.horizon.epoch(step)
        self._chosen_tau = 0.0
        if step - self._first >= self.warmup_epochs * self.horizon.steps_per_epoch:
            ramp = min(self._epoch / self.horizon.epochs, self.tau_max)
            self._chosen_tau = ramp if self.tau is None else self.tau
        self._set(self._chosen_tau * self._shares() + (1 - self._chosen_tau) * self._uniform)
        if self.restart:
            self._scores.zero_()

    def _shares(self) -> np.ndarray:
        """G / sum(G) [rows, options]; uniform if all are 0."""
        sums, weights = self._scores.cpu().numpy()
        seen = weights > 0
        scores = np.where(seen, sums / np.where(seen, weights, 1.0), 0.0)
        means = scores.sum(1, keepdims=True) / np.maximum(seen.sum(1, keepdims=True), 1)
        scores = np.where(seen, scores, means if self.unscored == "mean" else 0.0) * self._real
        totals = scores.sum(1, keepdims=True)
        return np.where(totals > 0, scores / np.where(totals > 0, totals, 1.0), self._uniform)

    def _set(self, pi: np.ndarray) -> None:
        """Use the probabilities [rows, options]."""
        self._pi = pi
        # Options before the drawn one; the last needs no bound, and so no sum that is 1 to the last digit.
        bounds = np.where(self._real[:, 1:], np.cumsum(pi, axis=1)[:, :-1], np.inf)
        self._bounds = bounds[self._row]

    def _sample(self, rng: np.random.Generator) -> Arch:
        if self._chosen_tau == 0.0:
            return self.space.sample(rng)  # the very draws of uniform sampling
        codes = np.zeros(len(self.space.genes), dtype=np.int64)
        draws = rng.random((len(self.indicators.sites), 1))
        codes[self.indicators.sites] = (draws >= self._bounds).sum(axis=1)
        return self.space.decode(codes.tolist())

    def _weight(self, arch: Arch) -> float:
        """Uniform probability / own probability, over the genes that count."""
        if self.mode == "curriculum" or self._chosen_tau == 0.0:
            return 1.0
        codes, weight = self.space.encode(arch), 1.0
        for row, position in zip(self._row, self.indicators.sites, strict=True):
            if self.space.counts(self.space.genes[position], codes):
                weight /= float(self._options[row] * self._pi[row, codes[position]])
        return weight if self.max_weight is None else min(weight, self.max_weight)


def _check(
    ema: Average,
    update_every: int,
    warmup_epochs: float,
    shares: Mapping[str, float | None],
    max_weight: float | None,
) -> None:
    """Refuse numbers out of range."""
    if ema != "halved" and not (isinstance(ema, float | int) and 0 <= ema < 1):
        raise ValueError(f"ema={ema}: must be at least 0 and less than 1, or halved")
    if update_every < 1:
        raise ValueError(f"update_every={update_every}: must be at least 1")
    if warmup_epochs < 0:
        raise ValueError(f"warmup_epochs={warmup_epochs}: must not be negative")
    for name, value in shares.items():
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: must be between 0 and 1")
    if max_weight is not None and max_weight < 1:
        raise ValueError(f"max_weight={max_weight}: must be at least 1")
