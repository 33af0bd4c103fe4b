"""Stands for a trained mixture: what selections ask of it, with a score that is a plain function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search.constraint import Budget
from search.gradient.select.base import SelectState
from supernet.evaluate import Metrics
from supernet.log import RunLog
from supernet.space import Gene, Space

Score = Callable[[Sequence[Tensor]], Metrics]


class KilledError(Exception):
    """Stands for a killed process."""


@dataclass
class Call:
    """One evaluation: what was decided by then, and which option of which gene was removed."""

    probs: list[Tensor]
    support: list[tuple[int, ...]]
    gene: int
    option: int


@dataclass
class Fake:
    """A mixture whose score is a plain function; tuning moves every architecture parameter, frozen or not."""

    logits: list[Tensor]
    score: Score
    drift: float = 0.0
    stop_at: int = 10**9  # raises there, in steps of any kind
    calls: list[Call] = field(default_factory=list)
    tuned: list[tuple[dict[int, int], int]] = field(default_factory=list)
    saved: list[tuple[dict[str, Any], list[Tensor]]] = field(default_factory=list)
    images: set[int | None] = field(default_factory=set)
    steps: int = 0

    def probabilities(self) -> list[Tensor]:
        return [logits.softmax(0) for logits in self.logits]

    def evaluate(self, probs: Sequence[Tensor], support: Sequence[tuple[int, ...]], max_images: int | None) -> Metrics:
        self._step()
        removed = [
            (gene, option)
            for gene, vector in enumerate(probs)
            for option in range(len(vector))
            if vector[option] == 0 and vector.max() < 1
        ]
        assert len(removed) == 1
        self.calls.append(Call([p.clone() for p in probs], list(support), *removed[0]))
        self.images.add(max_images)
        return self.score(probs)

    def tune(self, frozen: Mapping[int, int], epoch: int) -> None:
        self._step()
        self.tuned.append((dict(frozen), epoch))
        rng = np.random.default_rng(epoch)
        self.logits = [x + self.drift * torch.from_numpy(rng.standard_normal(len(x))) for x in self.logits]

    def save(self, partial: Mapping[str, Any]) -> None:
        self.saved.append((deepcopy(dict(partial)), [x.clone() for x in self.logits]))
        self._step()

    def _step(self) -> None:
        self.steps += 1
        if self.steps > self.stop_at:
            raise KilledError


def space_of(*genes: Gene | Sequence[Any]) -> Space:
    """A space of choices alone, without layers."""
    made = [g if isinstance(g, Gene) else Gene(f"choice_{i}", None, tuple(g)) for i, g in enumerate(genes)]
    return Space("choices", made, [], lambda plan: torch.nn.Identity(), {})


def free(space: Space) -> Budget:
    return Budget(space, {}, {})


def uniform(space: Space) -> list[Tensor]:
    return [torch.zeros(len(gene.options), dtype=torch.float64) for gene in space.genes]


def state(budget: Budget, fake: Fake, tmp_path: Path, seed: int = 0, restored: Any = None) -> SelectState:
    return SelectState(budget, fake, seed, RunLog(tmp_path, quiet=True), restored)


def separable(values: Sequence[Sequence[float]]) -> Score:
    """A loss to which every option adds its own share: -sum_g sum_k p_gk v_gk; top-1 follows it."""

    def score(probs: Sequence[Tensor]) -> Metrics:
        gain = sum(float(p @ torch.tensor(v, dtype=p.dtype)) for p, v in zip(probs, values, strict=True))
        return Metrics(gain, -gain, 1)

    return score
