"""What a search costs beside its evaluations: proposing, repairing, telling apart, pricing, telling. Used by `pricing`.

A search runs with an evaluator that is free: the score is a sum over genes, made outside of the clock. What is timed is
`ask`, the costs of what was proposed, and `tell`; then, apart, the same with the record of trials on the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from search.ageing import Ageing
from search.algorithm import Algorithm, Trial
from search.codes import BROOD, Unseen
from search.constraint import Budget, Constraint
from search.evolution import Evolution
from search.history import History
from search.loop import run_trials
from search.nsga2 import Nsga2
from search.random import Random
from supernet.codec import encoded
from supernet.log import RunLog
from supernet.space import Arch, Space

SEARCHES: dict[str, Callable[[Budget, int], Algorithm]] = {
    # The population and the parents of Once-for-All (Cai et al., ICLR 2020).
    "evolution of 100": lambda budget, seed: Evolution(budget, seed, population=100, parents=25, mutation_prob=0.1),
    "evolution of 20": Evolution,
    "ageing, 100 at once": lambda budget, seed: Ageing(budget, seed, population=100, batch=100),
    "nsga2 of 100": lambda budget, seed: Nsga2(budget, seed, population=100),
    "random, 100 at once": lambda budget, seed: Random(budget, seed, batch=100),
}
MEASURED = "evolution of 100"  # has the target
WINDOWS: dict[str, Any] = {"alphanet": [200e6, 300e6]}  # MACs; of other spaces at most half of the largest
RECORDED = 200  # trials that are written to the disk


class Worth:
    """A score that costs nothing: every option of every gene has a worth of its own, the larger the better."""

    def __init__(self, space: Space) -> None:
        rng = np.random.default_rng(0)
        worth = [np.cumsum(rng.exponential(size=len(gene.options))) for gene in space.genes]
        self.space, self.flat = space, np.concatenate(worth)
        self.starts = np.cumsum([0, *map(len, worth[:-1])])

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        scores: list[float] = self.flat[encoded(self.space, archs) + self.starts].sum(axis=1).tolist()
        return scores


def bookkeeping(space: Space, generations: int, repeats: int) -> list[dict[str, Any]]:
    """Microseconds of one core for each candidate, by search and part: medians of whole searches, run in turns."""
    budget, worth = Constraint(macs=WINDOWS.get(space.name, 0.5)).on(space), Worth(space)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SEARCHES}
    for seed in range(repeats):
        for name, make in SEARCHES.items():
            found[name].append(_searched(make(budget, seed), budget, worth, generations))
    rows = []
    for name, each in found.items():
        row = {part: median(figures[part] for figures in each) for part in each[0]}
        rows.append({"space": space.name, "budget": budget.describe(), "search": name, **row})
    return rows


def _searched(algorithm: Algorithm, budget: Budget, worth: Worth, generations: int) -> dict[str, float]:
    """One search. The first generation, which makes tables, is not counted."""
    seconds, count = {"ask": 0.0, "price": 0.0, "tell": 0.0}, 0
    for generation in range(generations + 1):
        begin = time.process_time()
        archs = algorithm.ask(algorithm.batch)
        asked = time.process_time()
        costs = budget.costs_all(archs)
        priced = time.process_time()
        scores = worth(archs)
        trials = [Trial(a, {"top1": s, "loss": 0.0, **c}) for a, s, c in zip(archs, scores, costs, strict=True)]
        told = time.process_time()
        algorithm.tell(trials)
        end = time.process_time()
        if generation:
            count += len(archs)
            for part, spent in (("ask", asked - begin), ("price", priced - asked), ("tell", end - told)):
                seconds[part] += spent
    each = {part: 1e6 * value / count for part, value in seconds.items()}
    return {**each, "candidates a second": 1e6 / sum(each.values())}


def parts(space: Space, repeats: int) -> dict[str, Any]:
    """Microseconds of one core for each of `BROOD` children of parents inside the budget, by what `ask` does."""
    budget = Constraint(macs=WINDOWS.get(space.name, 0.5)).on(space)
    unseen, rng = Unseen(budget), np.random.default_rng(0)
    parents = unseen.canonical(budget.sample_rows(rng, 25))
    seconds: dict[str, list[float]] = {}
    for _ in range(20 * repeats):
        value: Any = parents
        for part, call in (
            ("propose", lambda parents: unseen.offspring(parents, rng, 0.5, None)),
            ("repair", lambda rows: unseen.repair(rows, rng)),
            ("tell apart", unseen.fresh),
            ("archs", unseen.archs),
            ("price", budget.costs_all),
        ):
            begin = time.process_time()
            value = call(value)
            seconds.setdefault(part, []).append(time.process_time() - begin)
    return {"space": space.name, **{part: 1e6 * median(values) / BROOD for part, values in seconds.items()}}


def recorded(space: Space) -> float:
    """Microseconds, waiting for the disk included, for each candidate of a search whose trials are recorded."""
    budget, worth = Constraint(macs=WINDOWS.get(space.name, 0.5)).on(space), Worth(space)

    def evaluator(archs: Sequence[Arch]) -> list[Trial]:
        scores, costs = worth(archs), budget.costs_all(archs)
        return [Trial(a, {"top1": s, "loss": 0.0, **c}) for a, s, c in zip(archs, scores, costs, strict=True)]

    algorithm = SEARCHES[MEASURED](budget, 0)
    with TemporaryDirectory() as folder, RunLog(Path(folder), quiet=True) as log:
        history = History(Path(folder) / "trials.jsonl", space, {})
        begin = time.perf_counter()
        run_trials(algorithm, evaluator, history, RECORDED, log, "search", at_once=algorithm.batch)
        return 1e6 * (time.perf_counter() - begin) / RECORDED
