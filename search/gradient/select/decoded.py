"""Selection by magnitude: the options of largest probability, inside the budget."""

from __future__ import annotations

from search.gradient.decode import decode
from search.gradient.select.base import SelectState
from supernet.space import Arch, Space


class Decoded:
    """The subnet of largest probability inside the budget (see `search.gradient.decode`); no training, no images."""

    def epochs(self, space: Space) -> int:
        return 0

    def select(self, state: SelectState) -> Arch:
        return decode(state.budget, [probs.log() for probs in state.trained.probabilities()])
