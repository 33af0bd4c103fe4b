"""From subnets to trials: scored with inherited weights and statistics of their own, each subnet once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from search.algorithm import Trial
from supernet.distributed import Ranks
from supernet.evaluate import Stopped, evaluate_subnet, evaluate_subnet_unless_below
from supernet.space import Arch, Space

if TYPE_CHECKING:
    from supernet.data import Data
    from supernet.net import Supernet


Costs = Callable[[Arch], Mapping[str, float]]


class Evaluator(Protocol):
    """Scores subnets."""

    def __call__(self, archs: Sequence[Arch]) -> list[Trial]:
        """One trial per subnet, in order."""


@runtime_checkable
class Stopping(Protocol):
    """An evaluator that can give up on subnets that are not good enough."""

    def stopping(self, below: float) -> Evaluator:
        """An evaluator that stops where top-1 (percent) must end below `below`."""


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

    def stopping(self, below: float) -> Evaluator:
        """The same, but the pass over the images ends once a subnet's top-1 must end below `below`, percent.

        A trial that was stopped has "stopped_after" (images seen) among its metrics and no "loss"; its "top1" is the
        share of all images that were right by then, which is below its true top-1, and so below `below`.
        """
        return partial(self._unless_below, below)

    def _unless_below(self, below: float, archs: Sequence[Arch]) -> list[Trial]:
        return [self._cache[arch] if arch in self._cache else self._try(arch, below) for arch in archs]

    def _try(self, arch: Arch, below: float) -> Trial:
        start = time.perf_counter()
        found = evaluate_subnet_unless_below(
            self.net, arch, self.data, self.split, self.calibration_images, stop_below=below
        )
        if isinstance(found, Stopped):  # not kept: another bound may ask for all of it
            metrics = {"top1": found.low, "stopped_after": found.images, **self.costs(arch)}
            return Trial(arch, metrics, time.perf_counter() - start)
        metrics = {"top1": found.top1, "loss": found.loss, **self.costs(arch)}
        self._cache[arch] = Trial(arch, metrics, time.perf_counter() - start)
        return self._cache[arch]


class SharedEvaluator:
    """Another evaluator, each process of a group scoring its share; all of them get all trials, in order.

    The subnets must be the same in every process, and so must what the evaluator makes of them.
    """

    def __init__(self, evaluator: Evaluator, space: Space, ranks: Ranks) -> None:
        self.evaluator, self.space, self.ranks = evaluator, space, ranks

    def __call__(self, archs: Sequence[Arch]) -> list[Trial]:
        found = self.ranks.map(lambda arch: self.evaluator([arch])[0].to_json(), archs)
        return [Trial.from_json(data, self.space) for data in found]

    def stopping(self, below: float) -> Evaluator:
        """Raises ValueError if the evaluator cannot stop."""
        return SharedEvaluator(stopping(self.evaluator, below), self.space, self.ranks)


class TableEvaluator:
    """Scores from a function of the subnet that returns metrics; costs are added."""

    def __init__(self, function: Callable[[Arch], Mapping[str, float]], costs: Costs) -> None:
        self.function, self.costs = function, costs

    def __call__(self, archs: Sequence[Arch]) -> list[Trial]:
        return [Trial(arch, {**self.function(arch), **self.costs(arch)}) for arch in archs]


def stopping(evaluator: Evaluator, below: float) -> Evaluator:
    """`evaluator`, giving up on subnets whose top-1 must end below `below`. Raises ValueError if it cannot."""
    if not isinstance(evaluator, Stopping):
        raise ValueError(f"{type(evaluator).__name__} cannot stop early")
    return evaluator.stopping(below)
