"""How well scores rank subnets: pure functions of predicted and true accuracies.

Predictions and truths are sequences of equal length, more is better, a pair for each subnet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Statistic = Callable[["NDArray[np.float64]", "NDArray[np.float64]"], float]


def kendall(predicted: ArrayLike, true: ArrayLike) -> float:
    """Kendall's tau-b, which allows for ties; NaN where one side is constant."""
    from scipy.stats import kendalltau

    x, y = _pairs(predicted, true)
    return math.nan if _constant(x, y) else float(kendalltau(x, y, variant="b").statistic)


def spearman(predicted: ArrayLike, true: ArrayLike) -> float:
    """Spearman's rho; NaN where one side is constant."""
    from scipy.stats import spearmanr

    x, y = _pairs(predicted, true)
    return math.nan if _constant(x, y) else float(spearmanr(x, y).statistic)


def weighted_kendall(predicted: ArrayLike, true: ArrayLike) -> float:
    """Kendall's tau with hyperbolic weights, so that the best subnets count most; NaN where one side is constant.

    The mean over both ways to rank, by prediction and by truth (Vigna, WWW 2015).
    """
    from scipy.stats import weightedtau

    x, y = _pairs(predicted, true)
    return math.nan if _constant(x, y) else float(weightedtau(x, y, rank=True).statistic)


CORRELATIONS: Mapping[str, Callable[..., float]] = {
    "kendall": kendall,
    "spearman": spearman,
    "weighted_kendall": weighted_kendall,
}


@dataclass(frozen=True)
class TopK:
    """What the `k` subnets with the highest predictions are, out of `n`.

    Attributes:
        precision: share of them that are truly among the best k (those tied with the k-th included).
        best_rank: true rank of the best of them; 1: it is the best of all.
        best_rank_share: the same over n (BR@K); less is better.
        worst_rank_share: that of the worst of them (WR@K).
        regret: by how much the best of all is better than the best of them, in the truth's unit.
        hit: whether the best of all is among them.
    """

    k: int
    n: int
    precision: float
    best_rank: int
    best_rank_share: float
    worst_rank_share: float
    regret: float
    hit: bool


def top_k(predicted: ArrayLike, true: ArrayLike, k: int, seed: int = 0) -> TopK:
    """The choice of the k best by prediction; ties between predictions are broken at random, by `seed`.

    Raises:
        ValueError: if k is not from 1 to the number of subnets.
    """
    x, y = _pairs(predicted, true)
    if not 1 <= k <= len(x):
        raise ValueError(f"k={k}: must be from 1 to {len(x)}")
    chosen = np.lexsort([np.random.default_rng(seed).random(len(x)), -x])[:k]
    ranks = ranks_of(y)[chosen]
    return TopK(
        k=k,
        n=len(x),
        precision=float((ranks <= k).mean()),
        best_rank=int(ranks.min()),
        best_rank_share=float(ranks.min() / len(x)),
        worst_rank_share=float(ranks.max() / len(x)),
        regret=float(y.max() - y[chosen].max()),
        hit=bool(ranks.min() == 1),
    )


def ranks_of(true: ArrayLike) -> NDArray[np.int64]:
    """1 for the best; equals share the lowest number."""
    y = np.asarray(true, dtype=np.float64)
    return len(y) - np.searchsorted(np.sort(y), y, side="right") + 1


def ties(values: ArrayLike) -> int:
    """How many subnets share their value with another one."""
    _, counts = np.unique(np.asarray(values), return_counts=True)
    return int(counts[counts > 1].sum())


def bootstrap(
    statistic: Statistic, predicted: ArrayLike, true: ArrayLike, samples: int, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """A confidence interval: percentiles over subnets drawn with replacement; NaN if no sample had a value.

    It covers which subnets were looked at, not how each of them was trained. A subnet that is drawn twice is tied
    with itself, which pulls correlations a little towards their tied forms.
    """
    x, y = _pairs(predicted, true)
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(len(x), size=len(x)) for _ in range(samples))
    values = np.array([statistic(x[index], y[index]) for index in drawn])
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def summarise(
    predicted: ArrayLike, true: ArrayLike, ks: Sequence[int] = (1, 5, 10), samples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """All correlations with 95% intervals, over all subnets and over the top decile by truth; top-k; ties.

    The top decile is None with fewer than 30 subnets: three is the least that has a rank correlation worth the name.
    """
    x, y = _pairs(predicted, true)
    decile = ranks_of(y) <= len(y) / 10
    parts = {"all": np.ones(len(y), dtype=bool), "top_decile": decile}
    return {
        "subnets": len(x),
        "ties": {"predicted": ties(x), "true": ties(y)},
        "top_k": [vars(top_k(x, y, k, seed)) for k in sorted({min(k, len(x)) for k in ks})],
        **{
            name: _correlations(x[part], y[part], samples, seed) if name == "all" or part.sum() >= 3 else None
            for name, part in parts.items()
        },
    }


def _correlations(x: NDArray[np.float64], y: NDArray[np.float64], samples: int, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {"subnets": len(x)}
    for name, statistic in CORRELATIONS.items():
        found[name] = {"value": statistic(x, y), "interval": bootstrap(statistic, x, y, samples, seed)}
    return found


def agreement(scores: Sequence[ArrayLike]) -> dict[str, float]:
    """S-tau: how far rankings of the same subnets agree, [M, N] with M from several checkpoints or seeds.

    Mean, highest and lowest of Kendall's tau-b over all pairs of rankings (Zhang et al., "Deeper Insights into Weight
    Sharing in Neural Architecture Search", 2020).

    Raises:
        ValueError: if there are fewer than two.
    """
    if len(scores) < 2:
        raise ValueError("agreement needs at least two rankings")
    values = [kendall(a, b) for a, b in combinations(scores, 2)]
    return {"mean": float(np.mean(values)), "max": float(np.max(values)), "min": float(np.min(values))}


def against_truth(scores: Sequence[ArrayLike], true: ArrayLike) -> dict[str, float]:
    """GT-tau over several checkpoints: mean and standard deviation (of the population) of tau-b to the truth.

    Over the checkpoints of the last k mini-batches these are the paper's GT-Tau-Mean-k and GT-Tau-Std-k.
    """
    values = [kendall(score, true) for score in scores]
    return {"mean": float(np.mean(values)), "std": float(np.std(values))}


def _pairs(predicted: ArrayLike, true: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 1:
        raise ValueError(f"predictions {x.shape} and truths {y.shape} must be two lists of one length")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("predictions and truths must be finite")
    return x, y


def _constant(x: NDArray[np.float64], y: NDArray[np.float64]) -> bool:
    return bool((x == x[0]).all() or (y == y[0]).all())
