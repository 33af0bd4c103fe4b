"""Images in proportion to how much they matter (PA&DA, CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from supernet.data.base import epoch_order, generator
from supernet.data_samplers.base import Visits
from supernet.horizon import Horizon


class ImportanceSampling:
    """Draws an epoch's N images with replacement from q_i = tau s_i / sum(s) + (1 - tau) / N.

    s_i is the running mean of image i's scores, see `WatchesImages`; images without one count as the mean of the
    others. No image is ever less likely than (1 - tau) / N. Scores change the draws from the next epoch on. At
    tau = 0 an epoch is that of `Shuffle`, bit for bit. PA&DA (CVPR 2023), section 3.3.

    Args:
        mode: "curriculum" (as published) leaves the losses as they are: harder images count more. "unbiased" weighs
            each image's loss by w_i = (1/N) / q_i, clipped at `max_weight`, so that the expected loss is the plain mean
            over the images. Clipped weights are divided by their mean over *draws*, sum_i q_i w_i. That mean is 1 where
            nothing is clipped, so the estimate is exactly unbiased there; dividing by the mean over images would not
            be. Where something is clipped, the division keeps the scale of the losses, and the bias that remains
            favours images of high scores.
        tau: the share that scores decide, from 0 to 1, for the whole run; null: epoch / epochs, at most `tau_max`.
        tau_max: where the share stops to rise.
        momentum: how much of its score an image keeps when it is seen again, from 0 to below 1.
        max_weight: clip of unbiased weights, at least 1; null: none.
        forget_unseen: images that the last epoch did not visit score 0, as in the authors' program. Fewer and fewer
            images are visited then: at tau near 1 less than a third instead of up to 63%. For comparison.

    Raises:
        ValueError: if a value is out of range.
    """

    def __init__(
        self,
        num_images: int,
        seed: int,
        horizon: Horizon,
        mode: Literal["curriculum", "unbiased"] = "curriculum",
        tau: float | None = None,
        tau_max: float = 1.0,
        momentum: float = 0.5,
        max_weight: float | None = 5.0,
        forget_unseen: bool = False,
    ) -> None:
        for name, share in (("tau", tau), ("tau_max", tau_max)):
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name}={share}: must be from 0 to 1")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: must be from 0 to below 1")
        if max_weight is not None and not max_weight >= 1:
            raise ValueError(f"max_weight={max_weight}: must be at least 1, or null for no limit")
        self.num_images, self.seed, self.horizon, self.mode = num_images, seed, horizon, mode
        self.momentum, self.max_weight, self.forget_unseen = momentum, max_weight, forget_unseen
        self._tau, self._tau_max = tau, tau_max
        self._scores = torch.full((num_images,), torch.nan)  # NaN: none
        self._seen = torch.zeros(num_images, dtype=torch.bool)
        self._epoch = 0
        # Of epoch `_epoch`. Kept, because the scores that they come from change during the epoch.
        self._probabilities = _uniform(num_images)

    def tau(self, epoch: int) -> float:
        """The share of the probabilities of `epoch` that scores decide."""
        return min(epoch / self.horizon.epochs, self._tau_max) if self._tau is None else self._tau

    def visits(self, epoch: int) -> Visits:
        """The order and the weights of one epoch, from the scores at its start."""
        if epoch != self._epoch:
            scores, tau = self._filled(), self.tau(epoch)
            total = scores.sum()
            shares = scores / total if total > 0 else _uniform(self.num_images)
            self._probabilities = tau * shares + (1 - tau) / self.num_images
            self._epoch = epoch
            if self.forget_unseen:
                self._scores.fill_(torch.nan)
        return self._draw()

    def observe(self, index: Tensor, score: Tensor) -> None:
        """`score` [B] of the images at positions `index` [B]; an image that the batch holds twice counts once."""
        if self._scores.device != index.device:
            self._scores, self._seen = self._scores.to(index.device), self._seen.to(index.device)
        same = index[:, None] == index
        score = score.float()
        mean = torch.where(same, score, torch.zeros_like(score)).sum(1) / same.sum(1)
        # Copies of an image take the very value of the first one: which of them is written last changes nothing.
        mean = mean[same.to(torch.uint8).argmax(1)]
        old = self._scores[index]
        self._scores[index] = torch.where(old.isnan(), mean, self.momentum * old + (1 - self.momentum) * mean)
        self._seen.index_fill_(0, index, True)  # a value set by [index] would be sent to the device, and waited for

    def state_dict(self) -> dict[str, Any]:
        """Scores and the probabilities of the present epoch: copies, on the CPU."""
        return {
            "scores": self._scores.to("cpu", copy=True),
            "seen": self._seen.to("cpu", copy=True),
            "epoch": self._epoch,
            "probabilities": self._probabilities.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`. Raises ValueError if it is of another number of images."""
        if len(state["scores"]) != self.num_images:
            raise ValueError(f"scores of {len(state['scores'])} images, but there are {self.num_images}")
        if len(state["probabilities"]) != self.num_images or len(state["seen"]) != self.num_images:
            raise ValueError(f"probabilities of {len(state['probabilities'])} images, there are {self.num_images}")
        self._scores, self._seen = state["scores"].clone(), state["seen"].clone()
        self._epoch, self._probabilities = int(state["epoch"]), state["probabilities"].clone()

    def report(self) -> dict[str, float]:
        """Of the epoch that was drawn last; waits for the device, and draws the epoch again.

        coverage: distinct images in the order, share of all; seen: images that ever had a score, share of all; ess:
        effective sample size (sum w)^2 / sum w^2 of the order's weights, share of N; tau; score_mean and score_max:
        of the present scores.
        """
        drawn = self._draw()
        order = drawn.order
        weights = torch.ones(len(order)) if drawn.weights is None else drawn.weights[order].double()
        scores = self._filled()
        return {
            "coverage": len(order.unique()) / self.num_images,
            "seen": self._seen.double().mean().item(),
            "ess": (weights.sum().square() / weights.square().sum() / len(order)).item(),
            "tau": self.tau(self._epoch),
            "score_mean": scores.mean().item(),
            "score_max": scores.max().item(),
        }

    def _draw(self) -> Visits:
        """A function of the seed, the epoch and its probabilities."""
        if self.tau(self._epoch) == 0:
            return Visits(epoch_order(self.num_images, self.seed, self._epoch))
        # By hand, not by torch.multinomial, which adds up in fp32 and ends at 2^24 images. The key is none of those
        # that orders and augmentation use.
        rng = generator(self.seed, self._epoch, 0, 1)
        sums = self._probabilities.cumsum(0)
        points = torch.rand(self.num_images, dtype=torch.float64, generator=rng) * sums[-1]
        order = torch.searchsorted(sums, points, right=True).clamp(max=self.num_images - 1)
        return Visits(order, self._weights() if self.mode == "unbiased" else None)

    def _weights(self) -> Tensor:
        q = self._probabilities
        weights = torch.where(q > 0, 1 / (self.num_images * q), 0.0)  # q = 0: never drawn
        if self.max_weight is not None:
            weights = weights.clamp(max=self.max_weight)
        return (weights / (q * weights).sum()).float()

    def _filled(self) -> Tensor:
        """Scores float64 [N] on the CPU with a value for every image."""
        scores = self._scores.cpu().double()
        known = scores.nanmean()
        fill = 0.0 if self.forget_unseen or known.isnan() else known
        return torch.where(scores.isnan(), fill, scores)


def _uniform(num_images: int) -> Tensor:
    return torch.full((num_images,), 1 / num_images, dtype=torch.float64)
