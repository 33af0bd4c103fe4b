"""Single-level optimisation: one loss, from which weights and architecture parameters both learn."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from search.gradient.updates.base import Problem
from search.gradient.updates.gradients import accumulate


class SingleLevel:
    """Weights and architecture parameters learn at the same time, from one forward pass on one batch.

    SNAS (Xie et al., ICLR 2019), section 2.3, and the single-level ablation of DARTS, section 3.3.

    Args:
        batch: whose images are used: those for the weights ("train"), or for the architecture parameters ("val").
    """

    copies = 1

    def __init__(self, batch: Literal["train", "val"] = "train") -> None:
        if batch not in ("train", "val"):
            raise ValueError(f"batch={batch}: must be train or val")
        self.batch = batch

    def step(self, problem: Problem, learn_weights: bool, learn_arch: bool) -> dict[str, Tensor]:
        """See `Update.step`."""
        if not (learn_weights or learn_arch):
            return {}
        loss_of = problem.train_loss if self.batch == "train" else problem.val_loss
        loss = loss_of(for_weights=not learn_arch)
        learning = [*(problem.weights() if learn_weights else ()), *(problem.arch() if learn_arch else ())]
        accumulate(loss, learning)
        # All gradients are there before anything moves.
        if learn_arch:
            accumulate(problem.arch_terms(), problem.arch())
        if learn_weights:
            problem.step_weights()
        if learn_arch:
            problem.step_arch()
        return {self.batch: loss.detach()}
