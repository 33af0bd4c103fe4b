"""What a mix is: the rule that turns architecture parameters into the probabilities of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """The probabilities of one forward pass.

    Attributes:
        probs: one vector [options] per gene; each sums to 1, none is negative; gradients flow to the logits.
        support: for every gene the positions of the options that are run, ascending; the probability of all others
            is 0, and they get no gradient of their own. An option can be run with probability 0, for its gradient.
        drawn: given by a method whose gradient needs the drawn option only (GDAS): its position for every gene.
            Where options share no weights (operations) it alone may be run, although the support holds all.
            None: run the support as it is.
    """

    probs: tuple[Tensor, ...]
    support: tuple[tuple[int, ...], ...]
    drawn: tuple[int, ...] | None = None


class Mix(Protocol):
    """Made of its settings only. All tensors are on the CPU: what depends on their values never waits for a device."""

    def draw(self, logits: Sequence[Tensor], generator: torch.Generator, progress: float, for_weights: bool) -> Draw:
        """Probabilities for one forward pass; drawn anew for every pass.

        Args:
            logits: architecture parameters, one vector [options] per gene.
            progress: share of the search that is done, 0 to 1, for temperatures.
            for_weights: only the weights learn from this pass, so an option that is not drawn need not be run.
        """

    def mean(self, logits: Sequence[Tensor]) -> list[Tensor]:
        """The probabilities themselves, differentiable: what is reported, decoded, and what expected costs are of."""

    def penalty(self, logits: Sequence[Tensor]) -> Tensor:
        """A regulariser of the architecture parameters, 0-d; zero where there is none."""


@runtime_checkable
class AfterStep(Protocol):
    """A mix that changes the parameters once more after the optimizer did."""

    def after_step(self, logits: Sequence[Tensor], before: Sequence[Tensor], draw: Draw) -> None:
        """In place. `before`: the values before the optimizer's step; `draw`: what the step learned from."""
