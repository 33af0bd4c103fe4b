"""What an update is: one step of the weights and of the architecture parameters, in the order of a method."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn


class Problem(Protocol):
    """One step: a batch for the weights, one for the architecture parameters, and the optimizers.

    Losses are computed with the present values whenever they are asked for. The mixture is drawn once for each of
    the step's forward passes, except inside `same_draw`. Nothing but an update calls `backward` or an optimizer.
    `for_weights`: only the weights learn from the pass (see `Mix.draw`).
    """

    def train_loss(self, copy: int = 0, for_weights: bool = False) -> Tensor:
        """Of network `copy` on the step's batch for the weights, 0-d."""

    def val_loss(self, copy: int = 0, for_weights: bool = False) -> Tensor:
        """Of network `copy` on the step's batch for the architecture parameters, 0-d."""

    def same_draw(self) -> AbstractContextManager[None]:
        """Inside, all forward passes use the same random numbers: draws of the mixture, dropout, dropped paths."""

    def arch_terms(self) -> Tensor:
        """What is added to the architecture parameters' loss: regulariser and budget, 0-d; free of the weights."""

    def weights(self, copy: int = 0) -> list[nn.Parameter]:
        """The weights of network `copy`."""

    def arch(self) -> list[nn.Parameter]:
        """The architecture parameters, which all networks share."""

    def weight_optimizer(self, copy: int = 0) -> torch.optim.Optimizer:
        """Its learning rate is that of this step. Used for reading; `step_weights` takes the step."""

    def step_weights(self, copy: int = 0) -> None:
        """Clip the weights' gradients, take the optimizer's step, and clear them."""

    def step_arch(self) -> None:
        """Take the architecture optimizer's step, then clear the gradients."""


class Update(Protocol):
    """Made of its settings only.

    Attributes:
        copies: networks that it needs, with weights of their own.
    """

    copies: int

    def step(self, problem: Problem, learn_weights: bool, learn_arch: bool) -> dict[str, Tensor]:
        """One step. Returns detached losses by name ("train", "val"), those that were computed, and what else is
        worth a curve (0-d each).

        With one of the two off (warm-up; weights of a trained supernet, which stay), the other learns alone. All
        gradients are zero or None afterwards, also those of what does not learn.
        """
