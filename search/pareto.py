"""Fronts and hypervolumes of trials in two or three objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from search.algorithm import Trial
from search.history import is_complete

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OBJECTIVES = ("top1", "macs")
MAXIMISED = ("top1",)  # every other metric is a cost


def losses(trials: Sequence[Trial], objectives: Sequence[str]) -> NDArray[np.float64]:
    """[N, M]: the objectives, each turned so that less is better.

    Raises:
        ValueError: if there are not two or three, or a trial lacks one.
    """
    import numpy as np

    if len(objectives) not in (2, 3) or len(set(objectives)) != len(objectives):
        raise ValueError(f"objectives={list(objectives)}: two or three different ones are needed")
    signs = [-1.0 if name in MAXIMISED else 1.0 for name in objectives]
    try:
        rows = [[sign * t.metrics[name] for sign, name in zip(signs, objectives, strict=True)] for t in trials]
    except KeyError as error:
        raise ValueError(f"objective {error} is not among the metrics {sorted(trials[0].metrics)}") from None
    return np.array(rows, dtype=np.float64).reshape(len(trials), len(objectives))


def front(trials: Sequence[Trial], objectives: Sequence[str] = OBJECTIVES) -> list[Trial]:
    """The complete trials that no other one beats in all objectives, by rising costs; one of each equal group.

    A trial beats another where it is at least as good in every objective and better in one. Trials that were stopped
    early count for nothing: what they would have reached is not known.
    """
    import numpy as np

    whole = [trial for trial in trials if is_complete(trial)]
    points = losses(whole, objectives)
    costs_first = sorted(range(len(objectives)), key=lambda i: objectives[i] in MAXIMISED)
    order = np.lexsort(points[:, costs_first[::-1]].T)  # whatever beats a point comes before it
    kept: list[int] = []
    for i in order:
        if not kept or not (points[kept] <= points[i]).all(axis=1).any():
            kept.append(int(i))
    return [whole[i] for i in kept]


def bounds(trials: Sequence[Trial], objectives: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The best and the worst value of every objective among complete trials, as `losses` [M]."""
    points = losses([trial for trial in trials if is_complete(trial)], objectives)
    return points.min(axis=0), points.max(axis=0)


def hypervolume(points: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """The volume between points [N, M] and a reference point [M], M = 1 to 3, less is better; exact.

    Points that are not below the reference in every coordinate add nothing. Sweeps over the last coordinate.
    """
    import numpy as np

    inside = points[(points < reference).all(axis=1)]
    if not len(inside):
        return 0.0
    if points.shape[1] == 1:
        return float(reference[0] - inside.min())
    inside = inside[np.argsort(inside[:, -1], kind="stable")]
    tops = np.append(inside[1:, -1], reference[-1])
    volume = 0.0
    for i, height in enumerate(tops - inside[:, -1]):
        if height > 0:
            volume += float(height) * hypervolume(inside[: i + 1, :-1], reference[:-1])
    return volume


def curves(
    trials: Sequence[Trial],
    objectives: Sequence[str],
    best: NDArray[np.float64],
    worst: NDArray[np.float64],
) -> Mapping[str, list[float]]:
    """What was reached after each trial: "top1", the highest so far in percent, and "hypervolume".

    The hypervolume is a share of the box between `best` and `worst` (see `bounds`), so curves over the same box can
    be compared; 0 where the box is flat.
    """
    import numpy as np

    points = losses(trials, objectives)
    width = np.where(worst > best, worst - best, np.inf)
    scaled, unit = (points - best) / width, np.ones(len(objectives))
    reached: dict[str, list[float]] = {"top1": [], "hypervolume": []}
    known = np.empty((0, len(objectives)))
    top1, volume = float("-inf"), 0.0
    for trial, point in zip(trials, scaled, strict=True):
        if is_complete(trial):
            top1 = max(top1, trial.metrics["top1"])
            if (worst > best).all() and not (known <= point).all(axis=1).any():
                known = np.vstack([known[~(point <= known).all(axis=1)], point])
                volume = hypervolume(known, unit)
        reached["top1"].append(top1)
        reached["hypervolume"].append(volume)
    return reached
