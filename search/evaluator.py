"""From subnets to trials: scored with inherited weights and statistics of their own, each subnet once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from search.algorithm import Trial
from supernet.distributed import Ranks
from supernet.evaluate import Metrics, Stopped, evaluate_subnet, evaluate_subnet_unless_below
from supernet.passes import PLAIN, Passes
from supernet.prefix import evaluate_group, groups, has_prefixes
from supernet.space import Arch, Space

if TYPE_CHECKING:
    from supernet.data import Data
    from supernet.sharing.members import AnySupernet


Costs = Callable[[Arch], Mapping[str, float]]
Groups = Callable[[Sequence[Arch]], list[list[int]]]


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
    answered from a cache. Subnets of one call that begin with the same layers run these once; no score depends on it.

    Args:
        split: the data split that candidates are scored on.
        calibration_images: training images that set the batch-norm statistics of every candidate.
        costs: what is known of a subnet without running it, see `search.constraint.Budget.costs`.
        passes: batch sizes and precision of the forward passes.
        reuse_mb: MB for weights and activations of subnets that are scored together; 0: each alone. Families whose
            subnets are no sequences of layers are scored alone too.
    """

    def __init__(
        self,
        net: AnySupernet,
        data: Data,
        calibration_images: int,
        costs: Costs,
        split: str = "search",
        passes: Passes = PLAIN,
        reuse_mb: float = 0.0,
    ) -> None:
        self.net, self.data, self.costs = net, data, costs
        self.calibration_images, self.split, self.passes = calibration_images, split, passes
        self.reuse_mb = reuse_mb if has_prefixes(net) else 0.0
        self._cache: dict[Arch, Trial] = {}
        self._at_once: dict[int, int] = {}  # images, by resolution

    def __call__(self, archs: Sequence[Arch]) -> list[Trial]:
        return self._trials(archs, None)

    def stopping(self, below: float) -> Evaluator:
        """The same, but the pass over the images ends once a subnet's top-1 must end below `below`, percent.

        A trial that was stopped has "stopped_after" (images seen) among its metrics and no "loss"; its "top1" is the
        share of all images that were right by then, which is below its true top-1, and so below `below`.
        """
        return partial(self._trials, below=below)

    def groups(self, archs: Sequence[Arch]) -> list[list[int]]:
        """Positions of `archs` in the groups that are scored together."""
        if not self.reuse_mb:
            return [[i] for i in range(len(archs))]
        return groups(self.net, archs, self.reuse_mb, self._images_at_once)

    def _images_at_once(self, side: int) -> int:
        if side not in self._at_once:  # asking for a batch can mean decoding files
            images, _ = self.data.evaluation(self.split, side)[0]
            self._at_once[side] = max(len(part) for part in self.passes.parts(images))
        return self._at_once[side]

    def _trials(self, archs: Sequence[Arch], below: float | None) -> list[Trial]:
        new = [arch for arch in dict.fromkeys(archs) if arch not in self._cache]
        found: dict[Arch, Trial] = {}
        for group in self.groups(new):
            chosen = [new[i] for i in group]
            start = time.perf_counter()
            scores = self._scores(chosen, below)
            seconds = (time.perf_counter() - start) / len(group)
            for arch, score in zip(chosen, scores, strict=True):
                found[arch] = Trial(arch, {**_metrics(score), **self.costs(arch)}, seconds)
                if isinstance(score, Metrics):  # what was stopped is not kept: another bound may ask for all of it
                    self._cache[arch] = found[arch]
        return [found[arch] if arch in found else self._cache[arch] for arch in archs]

    def _scores(self, archs: Sequence[Arch], below: float | None) -> Sequence[Metrics | Stopped]:
        how = (self.data, self.split, self.calibration_images)
        if len(archs) > 1:
            return evaluate_group(self.net, archs, *how, self.passes, below)
        if below is None:
            return [evaluate_subnet(self.net, archs[0], *how, self.passes)]
        return [evaluate_subnet_unless_below(self.net, archs[0], *how, below, self.passes)]


def _metrics(score: Metrics | Stopped) -> dict[str, float]:
    if isinstance(score, Stopped):
        return {"top1": score.low, "stopped_after": score.images}
    return {"top1": score.top1, "loss": score.loss}


class SharedEvaluator:
    """Another evaluator, each process of a group scoring its share; all of them get all trials, in order.

    The subnets must be the same in every process, and so must what the evaluator makes of them.

    Args:
        groups: positions of subnets that are better scored in one process, one after another; None: no matter.
    """

    def __init__(self, evaluator: Evaluator, space: Space, ranks: Ranks, groups: Groups | None = None) -> None:
        self.evaluator, self.space, self.ranks, self.groups = evaluator, space, ranks, groups

    def __call__(self, archs: Sequence[Arch]) -> list[Trial]:
        shares = self._shares(archs)
        found = self.ranks.map(lambda share: [t.to_json() for t in self.evaluator([archs[i] for i in share])], shares)
        trials = {
            i: Trial.from_json(data, self.space)
            for share, scored in zip(shares, found, strict=True)
            for i, data in zip(share, scored, strict=True)
        }
        return [trials[i] for i in range(len(archs))]

    def stopping(self, below: float) -> Evaluator:
        """Raises ValueError if the evaluator cannot stop."""
        return SharedEvaluator(stopping(self.evaluator, below), self.space, self.ranks, self.groups)

    def _shares(self, archs: Sequence[Arch]) -> list[list[int]]:
        """Positions for every process, as many for each as can be; neighbours stay together."""
        world = self.ranks.world
        if self.groups is None:
            return [list(range(rank, len(archs), world)) for rank in range(world)]
        order = [i for group in self.groups(archs) for i in group]
        ends = [len(order) * rank // world for rank in range(world + 1)]
        return [order[begin:end] for begin, end in pairwise(ends)]


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
