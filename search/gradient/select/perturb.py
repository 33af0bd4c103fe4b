"""Selection by perturbation (DARTS-PT, Wang et al., ICLR 2021): an option matters as much as its removal hurts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from search.constraint import Budget
from search.gradient.decode import decode
from search.gradient.select.base import SelectState
from search.gradient.select.completion import completed
from supernet.evaluate import Metrics
from supernet.space import Arch, Space

STREAM = 16  # keeps its random numbers apart from others' with the same seed
OPEN = -1  # in place of an option's index: not decided


@dataclass
class _Partial:
    """A selection so far; what is saved.

    Attributes:
        codes: option index per gene, or OPEN.
        way: option indices of a subnet inside the budget that agrees with all decisions.
        epochs: of tuning, so far; `pending`: to come before the next decision.
    """

    codes: list[int]
    way: list[int]
    epochs: int = 0
    pending: int = 0

    @property
    def decided(self) -> dict[int, int]:
        return {gene: code for gene, code in enumerate(self.codes) if code != OPEN}


class Perturb:
    """Decides one gene after the other, in random order, by what the mixture loses without each of its options.

    For every option its probability is set to 0, the others stay as they are, and the mixture is scored. The option
    without which it is worst is chosen, the first of equals, and the gene is frozen to it; then weights and the other
    genes adapt for some epochs. On an entangled axis a removed option is a slice that no longer adds to the weights
    (to the outputs, for depth).

    Options with which no subnet inside the budget is left are not considered; a gene with one option left is decided
    without a score, and so is a gene that an earlier decision made not count. The resolution cannot be mixed inside a
    pass: it is that of the most probable subnet inside the budget.

    Args:
        interval: epochs of tuning after each decision; 0: none.
        criterion: "top1" (lowest) or "loss" (highest), which tells options apart where the scores are coarse.
        max_images: score on the first so many images of the search split; None: on all.

    Raises:
        ValueError: if a number is out of range; names it.
    """

    def __init__(
        self, interval: int = 5, criterion: Literal["top1", "loss"] = "top1", max_images: int | None = None
    ) -> None:
        if interval < 0:
            raise ValueError(f"interval={interval}: must be at least 0")
        if criterion not in ("top1", "loss"):
            raise ValueError(f"criterion={criterion}: expected top1 or loss")
        if max_images is not None and max_images < 1:
            raise ValueError(f"max_images={max_images}: must be at least 1, or null for all")
        self.interval, self.criterion, self.max_images = interval, criterion, max_images

    def epochs(self, space: Space) -> int:
        """See `Select.epochs`: the interval times the genes with something to choose, but for the resolution."""
        return self.interval * sum(len(gene.options) > 1 and gene.key != "resolution" for gene in space.genes)

    def select(self, state: SelectState) -> Arch:
        """See `Select.select`. Saves after every decision and after every epoch of tuning."""
        space = state.budget.space
        partial = _begun(state) if state.restored is None else _Partial(**deepcopy(dict(state.restored)))
        order = np.random.default_rng([state.seed, STREAM]).permutation(len(space.genes)).tolist()
        left = [gene for gene in order if partial.codes[gene] == OPEN]
        with state.log.progress(len(order), "select", done=len(order) - len(left)) as progress:
            self._tune(state, partial)
            for gene in left:
                if may_count(space, gene, partial.decided):
                    self._decide(state, partial, gene)
                    self._tune(state, partial)
                else:
                    partial.codes[gene] = partial.way[gene] = 0
                progress.advance(1)
        arch = space.decode(partial.codes)
        assert state.budget.feasible(arch)
        return arch

    def _decide(self, state: SelectState, partial: _Partial, gene: int) -> None:
        probs = _frozen(state.trained.probabilities(), partial.decided)
        ways = _ways(state.budget, partial, gene, probs)
        scores: dict[int, Metrics] = {}
        if len(ways) > 1:
            scores = {option: self._without(state, probs, partial, gene, option) for option in ways}
        option = max(ways, key=lambda option: self._harm(scores[option])) if scores else next(iter(ways))
        partial.codes[gene], partial.way = option, ways[option]
        partial.pending = self.interval
        state.trained.save(asdict(partial))
        state.log.say(_account(state.budget.space, gene, option, scores))

    def _without(
        self, state: SelectState, probs: Sequence[Tensor], partial: _Partial, gene: int, option: int
    ) -> Metrics:
        """The score of the mixture without one option; the probabilities of the others stay as they are."""
        removed = list(probs)
        removed[gene] = probs[gene].clone()
        removed[gene][option] = 0
        support = [
            (code,) if code != OPEN else tuple(i for i in range(len(vector)) if (position, i) != (gene, option))
            for position, (code, vector) in enumerate(zip(partial.codes, probs, strict=True))
        ]
        return state.trained.evaluate(removed, support, self.max_images)

    def _harm(self, score: Metrics) -> tuple[float, float]:
        """How bad a mixture is; one that computes no numbers is the worst. The loss decides between equal top-1."""
        if math.isnan(score.loss):
            return math.inf, math.inf
        return (-score.top1 if self.criterion == "top1" else score.loss), score.loss

    def _tune(self, state: SelectState, partial: _Partial) -> None:
        while partial.pending:
            state.trained.tune(partial.decided, partial.epochs)
            partial.pending -= 1
            partial.epochs += 1
            state.trained.save(asdict(partial))


def may_count(space: Space, gene: int, decided: Mapping[int, int]) -> bool:
    """Whether the gene at this position counts for some choice of what is not decided among its ancestors."""
    ancestors = []
    above = space.genes[gene].parent
    while above is not None:
        ancestors.append(above)
        above = space.genes[above].parent
    codes = [0] * len(space.genes)
    choices = [[decided[i]] if i in decided else range(len(space.genes[i].options)) for i in ancestors]
    for chosen in product(*choices):
        for position, code in zip(ancestors, chosen, strict=True):
            codes[position] = code
        if space.counts(space.genes[gene], codes):
            return True
    return False


def _begun(state: SelectState) -> _Partial:
    """Nothing decided but what there is no choice about, and the resolution."""
    space = state.budget.space
    arch = decode(state.budget, [probs.log() for probs in state.trained.probabilities()])
    way = list(space.encode(arch))
    settled = [gene.key == "resolution" or len(gene.options) == 1 for gene in space.genes]
    return _Partial([code if known else OPEN for code, known in zip(way, settled, strict=True)], way)


def _ways(budget: Budget, partial: _Partial, gene: int, probs: Sequence[Tensor]) -> dict[int, list[int]]:
    """The options of a gene that leave a subnet inside the budget, each with one; never empty: `way` has an option."""
    log_probs = [vector.log() for vector in probs]
    ways = {}
    for option in range(len(probs[gene])):
        way = completed(budget, {**partial.decided, gene: option}, partial.way, log_probs)
        if way is not None:
            ways[option] = way
    return ways


def _frozen(probs: Sequence[Tensor], decided: Mapping[int, int]) -> list[Tensor]:
    """The probabilities, detached; those of decided genes are one-hot."""
    rows = [vector.detach() for vector in probs]
    for gene, option in decided.items():
        rows[gene] = F.one_hot(torch.tensor(option), len(rows[gene])).to(rows[gene])
    return rows


def _account(space: Space, gene: int, option: int, scores: Mapping[int, Metrics]) -> str:
    """What was decided and why, for people."""
    options = space.genes[gene].options
    found = [f"{options[i]}: {score.top1:.2f}% (loss {score.loss:.4f})" for i, score in scores.items()]
    reason = f"top-1 without {', '.join(found)}" if found else "the only option inside the budget"
    return f"{space.genes[gene].name}={options[option]}: {reason}"
