"""From subnets to trials: scored with inherited weights and statistics of their own, each subnet once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from search.algorithm import Trial
from supernet.evaluate import evaluate_subnet
from supernet.space import Arch

if TYPE_CHECKING:
    from supernet.data import Data
    from supernet.net import Supernet


Costs = Callable[[Arch], Mapping[str, float]]


class Evaluator(Protocol):
    """Scores subnets."""

    def __call__(self, archs: Sequence[Arch]) -> list[Trial]:
        """One trial per subnet, in order."""


class SupernetEvaluator:
    """extract -> calibrate -> evaluate on one split; the supernet is left as it was.

    Batches come from the data's own cache, so a candidate costs its forward passes. Subnets seen before are
    answered from a cache.

    Args:
        split: the data split that candidates are scored on.
        calibration_images: training images that set the batch-norm statistics of every candidate.
        costs: what is known of a subnet without running it, see `search.constraint.Budget.costs`.
    """

    def __init__(self, net: Supernet, data: Data, calibration_images: int, costs: Costs, split: str = "search") -> None:
        self.net, self.data, self.costs = net, data, costs
        self.calibration_images, self.split = calibration_images, split
        self._cache: dict[Arch, Trial] = {}

    def __call__(self, archs: Sequence[Arch]) -> list[Trial]:
        for arch in archs:
            if arch not in self._cache:
                start = time.perf_counter()
                score = evaluate_subnet(self.net, arch, self.data, self.split, self.calibration_images)
                metrics = {"top1": score.top1, "loss": score.loss, **self.costs(arch)}
                self._cache[arch] = Trial(arch, metrics, time.perf_counter() - start)
        return [self._cache[arch] for arch in archs]


class TableEvaluator:
    """Scores from a function of the subnet that returns metrics; costs are added."""

    def __init__(self, function: Callable[[Arch], Mapping[str, float]], costs: Costs) -> None:
        self.function, self.costs = function, costs

    def __call__(self, archs: Sequence[Arch]) -> list[Trial]:
        return [Trial(arch, {**self.function(arch), **self.costs(arch)}) for arch in archs]
