"""Predictor-assisted search (LINAS, Cummings et al., 2022): score, fit a model, evolve on the model, score its best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.algorithm import Trial, at_least_one, ranking, share
from search.codes import Codes, Unseen
from search.constraint import Budget
from supernet.space import Arch

STREAM = 6  # keeps its random numbers apart from other algorithms' with the same seed
MUTATION = 0.5  # share of children by mutation, on the model and beside it
POOL = 100  # the best subnets by the model have children there
BROODS = 3  # broods of children per generation on the model
WIDTHS = (0.1, 0.3, 1.0)  # of the RBF kernels: exp(-width · ||a - b||² / genes)
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of ridge regression, on standardised scores


class Predictor:
    """Maximises top-1 inside the budget with few evaluations; every proposal costs a fit, some tenths of a second.

    Args:
        batch: subnets proposed between two fits; the first are random.
        explore: share of proposals that are children of the best scored subnets, whatever the model says. They
            keep the model from running in circles.
        parents: how many of the best scored have such children.
        generations: of the evolution on the model.
        examples: the best so many trials are fitted.
        patience: after so many evaluations without a new best, start again from random subnets.

    Raises:
        ValueError: if a number is out of range; names it.
    """

    def __init__(
        self,
        budget: Budget,
        seed: int,
        batch: int = 20,
        explore: float = 0.25,
        parents: int = 20,
        generations: int = 20,
        examples: int = 500,
        patience: int = 400,
    ) -> None:
        at_least_one(batch=batch, parents=parents, generations=generations, examples=examples, patience=patience)
        share(explore=explore)
        self.budget, self.seed, self.batch = budget, seed, batch
        self.explore, self.parents, self.generations = explore, parents, generations
        self.examples, self.patience = examples, patience
        self._unseen = Unseen(budget)
        self._trials: list[Trial] = []  # since the last start, best first
        self._idle = 0  # since the last new best
        self._asks = 0

    def ask(self, n: int) -> list[Arch]:
        rng = np.random.default_rng([self.seed, STREAM, self._asks])
        self._asks += 1
        rows = self._unseen.random(rng, n) if len(self._trials) < self.batch else self._propose(rng, n)
        self._unseen.take(rows)
        return self._unseen.archs(rows)

    def tell(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            better = not self._trials or ranking(trial) < ranking(self._trials[0])
            self._idle = 0 if better else self._idle + 1
            self._trials = sorted([*self._trials, trial], key=ranking)[: max(self.examples, self.batch)]
        if self._idle >= self.patience:
            self._trials, self._idle = [], 0

    def _propose(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        """The best by the model with children of the best scored among them; random ones where both run out."""
        scored = self._unseen.of([trial.arch for trial in self._trials])
        top1 = np.array([trial.metrics["top1"] for trial in self._trials])
        model = fit(self._unseen, scored, top1)
        promising = self._unseen.fresh(evolve(self._unseen, model, scored[:POOL], rng, self.generations))
        bred = [self._unseen.offspring(scored[: self.parents], rng, MUTATION, None) for _ in range(BROODS)]
        beside = self._unseen.fresh(self._unseen.repair(np.concatenate(bred), rng))
        rows = merge(promising, beside, self.explore, n)
        return np.concatenate([rows, self._unseen.random(rng, n - len(rows), besides=rows)])


@dataclass(frozen=True)
class Model:
    """Kernel ridge regression on one-hot genes; genes that do not count are zero.

    `width` is that of an RBF kernel; None: a linear one, which makes it plain ridge regression.
    """

    codes: Codes
    examples: NDArray[np.float64]  # one-hot [N, F]
    weights: NDArray[np.float64]  # [N]
    mean: float
    scale: float
    width: float | None
    error: float  # leave-one-out, in units of the scores' standard deviation

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Predicted top-1 [M] of rows [M, G]."""
        similarity = kernel(one_hot(self.codes, rows), self.examples, self.width, len(self.codes.limits))
        return similarity @ self.weights * self.scale + self.mean


def fit(codes: Codes, rows: NDArray[np.int64], scores: NDArray[np.float64]) -> Model:
    """The ridge or RBF model of scores [N] of rows [N, G] with the least leave-one-out error, which is exact.

    With the kernel matrix K = Q diag(w) Q', the weights are c = (K + penalty)^-1 y and the error of example i, had it
    been left out, is c_i / ((K + penalty)^-1)_ii.
    """
    examples, mean, scale = one_hot(codes, rows), float(scores.mean()), float(scores.std()) or 1.0
    standard = (scores - mean) / scale
    best: Model | None = None
    for width in (None, *WIDTHS):
        values, vectors = np.linalg.eigh(kernel(examples, examples, width, len(codes.limits)))
        projected, squares = vectors.T @ standard, vectors**2
        for penalty in PENALTIES:
            inverse = 1 / (np.maximum(values, 0) + penalty)
            weights = vectors @ (inverse * projected)
            error = float(np.sqrt(np.mean((weights / (squares @ inverse)) ** 2)))
            if best is None or error < best.error:
                best = Model(codes, examples, weights, mean, scale, width, error)
    assert best is not None
    return best


def kernel(a: NDArray[np.float64], b: NDArray[np.float64], width: float | None, genes: int) -> NDArray[np.float64]:
    """Similarity [N, M] of one-hot rows [N, F] and [M, F]."""
    products = a @ b.T
    if width is None:
        return products / genes
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * products
    return np.exp(-width * squares / genes)


def one_hot(codes: Codes, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """[N, F]: one column for every option of every gene, all zero where the gene does not count."""
    counts = codes.counting(rows)
    columns = [(rows[:, [i]] == np.arange(k)) & counts[:, [i]] for i, k in enumerate(codes.limits.tolist())]
    return np.concatenate(columns, axis=1).astype(np.float64)


def evolve(
    codes: Codes, model: Model, start: NDArray[np.int64], rng: np.random.Generator, generations: int
) -> NDArray[np.int64]:
    """Evolve on the model inside the budget; every subnet it met, best first [N, G]."""
    rows = start
    scores = model(rows)
    for _ in range(generations):
        parents = rows[np.argsort(-scores, kind="stable")[:POOL]]
        bred = [codes.offspring(parents, rng, MUTATION, None) for _ in range(BROODS)]
        children = codes.repair(np.concatenate(bred), rng)
        if len(children):
            rows, first = np.unique(np.concatenate([rows, children]), axis=0, return_index=True)
            scores = np.concatenate([scores, model(children)])[first]
    return rows[np.argsort(-scores, kind="stable")]


def merge(main: NDArray[np.int64], beside: NDArray[np.int64], ratio: float, n: int) -> NDArray[np.int64]:
    """`n` distinct rows, a share `ratio` of them from `beside`, both in order; fewer where both run out.

    A longer result begins with a shorter one.
    """
    queues = [list(map(tuple, beside.tolist())), list(map(tuple, main.tolist()))]
    for queue in queues:
        queue.reverse()
    chosen: dict[tuple[int, ...], None] = {}
    position = 0
    while len(chosen) < n and any(queues):
        turn = 0 if int((position + 1) * ratio) > int(position * ratio) else 1
        queue = queues[turn] or queues[1 - turn]
        before = len(chosen)
        chosen[queue.pop()] = None
        position += len(chosen) > before
    return np.array(list(chosen), dtype=np.int64).reshape(len(chosen), main.shape[1])
