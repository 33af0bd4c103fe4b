"""Subnets whose stand-alone accuracy was published, and how well any score can rank them at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.statistics import spread
from search.ranking import kendall, ranks_of, top_k
from supernet.errors import UserError
from supernet.models import macro
from supernet.runs import read_json
from supernet.space import Arch, Space

TOP = 10


@dataclass(frozen=True)
class Truth:
    """Subnets with top-1 (percent) of every seed [N, S]."""

    archs: tuple[Arch, ...]
    seeds: NDArray[np.float64]

    @property
    def top1(self) -> NDArray[np.float64]:
        """Mean over the seeds, [N]."""
        return self.seeds.mean(axis=1)

    def subset(self, rows: int, seed: int = 0) -> Truth:
        """So many rows at random, the same for the same seed; all of them where there are no more."""
        if rows >= len(self.archs):
            return self
        index = np.sort(np.random.default_rng(seed).choice(len(self.archs), rows, replace=False))
        return Truth(tuple(self.archs[i] for i in index), self.seeds[index])


def toy_cell(table: Any) -> list[tuple[dict[str, Any], list[float]]]:
    """TangleNAS (2025), toy cell space on Fashion-MNIST: one seed."""
    return [({key: row[key] for key in ("normal", "reduce")}, [row["test_top1"]]) for row in table]


def conv_macro(table: Any) -> list[tuple[dict[str, Any], list[float]]]:
    """TangleNAS (2025), convolutional macro space on CIFAR-10: one seed."""
    return [({key: row[key] for key in ("width", "kernel")}, [row["test_top1"]]) for row in table]


def nb_macro(table: Any) -> list[tuple[dict[str, Any], list[float]]]:
    """NAS-Bench-Macro (Su et al., CVPR 2021) on CIFAR-10: three seeds."""
    return [({"blocks": [macro.PUBLISHED[int(digit)] for digit in key]}, row["top1"]) for key, row in table.items()]


def plain_rows(table: Any) -> list[tuple[dict[str, Any], list[float]]]:
    """Any other space: a list of {"arch": ..., "top1": [one for each seed]}."""
    return [(row["arch"], row["top1"]) for row in table]


READERS: Mapping[str, Callable[[Any], list[tuple[dict[str, Any], list[float]]]]] = {
    "toy_cell": toy_cell,
    "conv_macro": conv_macro,
    "nb_macro": nb_macro,
    "nb_macro_separate": nb_macro,
}


def read_truth(path: Path, space: Space) -> Truth:
    """The table of a space. The resolution, where rows do not state it, is the largest.

    Raises:
        UserError: if the file is missing, or a row is not a subnet of the space.
    """
    resolution = space.largest()["resolution"]
    try:
        rows = READERS.get(space.name, plain_rows)(read_json(path))
        archs = tuple(space.from_json({"resolution": resolution, **arch}) for arch, _ in rows)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{path} is not a table of space {space.name} ({type(error).__name__}: {error})") from None
    return Truth(archs, np.array([top1 for _, top1 in rows], dtype=np.float64))


def figures(predicted: NDArray[np.float64], true: NDArray[np.float64]) -> dict[str, float]:
    """How well scores rank subnets: tau-b over all and in the truth's top decile, and the choice of the best ten."""
    decile = ranks_of(true) <= len(true) / 10
    best = top_k(predicted, true, min(TOP, len(true)))
    return {
        "tau": kendall(predicted, true),
        "tau_top_decile": kendall(predicted[decile], true[decile]) if decile.sum() > 2 else float("nan"),
        "top10_precision": best.precision,
        "top10_best_rank": float(best.best_rank),
    }


def seed_sd(truth: Truth) -> float | None:
    """Standard deviation of one stand-alone training, pooled over the rows; None with one seed."""
    return float(np.sqrt(truth.seeds.var(axis=1, ddof=1).mean())) if truth.seeds.shape[1] > 1 else None


def ceiling(true: NDArray[np.float64], sd: float | NDArray[np.float64], samples: int = 200) -> dict[str, float]:
    """Mean figures of the table against itself with normal noise of standard deviation `sd`, points.

    A score that knew the accuracies without noise would rank the table's rows about so well. It is a little too high:
    the table's own spread holds its noise already.
    """
    rng = np.random.default_rng(0)
    found = [figures(true + sd * rng.normal(size=len(true)), true) for _ in range(samples)]
    return {name: spread([each[name] for each in found])["mean"] for name in found[0]}


def ceilings(truth: Truth, assumed: tuple[float, ...], images: int) -> list[dict[str, Any]]:
    """`ceiling` for the seeds' own noise, or for assumed values where there is one seed; without and with the
    binomial error of other `images` test images on top, for a score that was taken on others than the truth."""
    own = seed_sd(truth)
    top1 = truth.top1
    binomial = 100 * np.sqrt(np.clip(top1 / 100, 0, 1) * np.clip(1 - top1 / 100, 0, 1) / images)
    noises = assumed if own is None else (own / np.sqrt(truth.seeds.shape[1]),)
    rows = []
    for noise in noises:
        both = np.sqrt(noise**2 + binomial**2)
        rows.append({"noise": float(noise), "assumed": own is None, "other_images": False, **ceiling(top1, noise)})
        rows.append({"noise": float(noise), "assumed": own is None, "other_images": True, **ceiling(top1, both)})
    return rows


def seed_agreement(truth: Truth) -> float | None:
    """Mean tau-b between the rankings of single seeds; None with one seed."""
    columns = truth.seeds.T
    taus = [kendall(columns[i], columns[j]) for i in range(len(columns)) for j in range(i)]
    return float(np.mean(taus)) if taus else None
