"""From subnets to trials: scored with inherited weights and statistics of their own, each subnet once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from search.algorithm import Trial
from supernet.evaluate import evaluate_subnet
from supernet.space import Arch, Space

if TYPE_CHECKING:
    from supernet.data import Data
    from supernet.net import Supernet


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
    """

    def __init__(self, net: Supernet, data: Data, calibration_images: int, split: str = "search") -> None:
        self.net, self.data = net, data
        self.calibration_images, self.split = calibration_images, split
        self._cache: dict[Arch, Trial] = {}

    def __call__(self, archs: Sequence[Arch]) -> list[Trial]:
        for arch in archs:
            if arch not in self._cache:
                start = time.perf_counter()
                score = evaluate_subnet(self.net, arch, self.data, self.split, self.calibration_images)
                metrics = {"top1": score.top1, "loss": score.loss, **costs(self.net.space, arch)}
                self._cache[arch] = Trial(arch, metrics, time.perf_counter() - start)
        return [self._cache[arch] for arch in archs]


class TableEvaluator:
    """Scores from a function of the subnet that returns metrics; MACs and parameters are added."""

    def __init__(self, space: Space, function: Callable[[Arch], Mapping[str, float]]) -> None:
        self.space, self.function = space, function

    def __call__(self, archs: Sequence[Arch]) -> list[Trial]:
        return [Trial(arch, {**self.function(arch), **costs(self.space, arch)}) for arch in archs]


def costs(space: Space, arch: Arch) -> dict[str, int]:
    """MACs of one image and parameters, exact."""
    plan = space.plan(arch)
    return {"macs": plan.macs, "params": plan.params}
