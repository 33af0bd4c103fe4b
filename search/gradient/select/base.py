"""What a selection is: the rule that turns a trained mixture into one subnet at the end of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from search.constraint import Budget
from supernet.evaluate import Metrics
from supernet.log import RunLog
from supernet.space import Arch, Space


class Trained(Protocol):
    """The mixture at the end of a search, as far as a selection needs it."""

    def probabilities(self) -> Sequence[Tensor]:
        """One vector [options] per gene, float64 on the CPU, of the present architecture parameters."""

    def evaluate(self, probs: Sequence[Tensor], support: Sequence[tuple[int, ...]], max_images: int | None) -> Metrics:
        """Score the network mixed with `probs`, running the options of `support`, on the split held out for searches.

        In training mode (statistics of each batch), without gradients; nothing changes. `probs` are taken as they
        are: a vector from which an option was removed sums to less than 1. `max_images`: only the first so many;
        None: all.
        """

    def tune(self, frozen: Mapping[int, int], epoch: int) -> None:
        """Train weights and architecture parameters for one epoch; genes in `frozen` are one-hot at that option.

        `epoch` counts the selection's epochs from 0; there are at most `Select.epochs`.
        """

    def save(self, partial: Mapping[str, Any]) -> None:
        """Keep plain values together with the weights, so that an interrupted selection can go on from here."""


@dataclass(frozen=True)
class SelectState:
    """What a selection works with.

    Attributes:
        budget: the subnet has to meet it; it knows the space.
        trained: the mixture.
        seed: all random choices follow from it.
        restored: what was saved last, where an interrupted selection goes on; None: from the start.
    """

    budget: Budget
    trained: Trained
    seed: int
    log: RunLog
    restored: Mapping[str, Any] | None = None


class Select(Protocol):
    """Made of its settings only."""

    def epochs(self, space: Space) -> int:
        """Epochs of tuning that it asks for, at most."""

    def select(self, state: SelectState) -> Arch:
        """The subnet, inside the budget.

        Raises:
            UserError: if no subnet is.
        """
