"""Figures over seeds: mean and spread, Student's intervals, paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, sample standard deviation (NaN for one value) and number of values that are not NaN."""
    known = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
    mean = float(known.mean()) if len(known) else math.nan
    sd = float(known.std(ddof=1)) if len(known) > 1 else math.nan
    return {"mean": mean, "sd": sd, "n": len(known)}


def interval(values: Sequence[float], level: float = 0.95) -> dict[str, float]:
    """`spread` with the bounds `low` and `high` of Student's interval of the mean; NaN for one value."""
    from scipy.stats import t

    found = spread(values)
    n = int(found["n"])
    half = float(t.ppf((1 + level) / 2, n - 1)) * found["sd"] / math.sqrt(n) if n > 1 else math.nan
    return {**found, "low": found["mean"] - half, "high": found["mean"] + half}


def paired(values: Mapping[int, float], baseline: Mapping[int, float], level: float = 0.95) -> dict[str, float]:
    """`interval` of the differences to `baseline`, seed by seed, over the seeds that both have."""
    return interval([values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())], level)


def shown(found: Mapping[str, float], digits: int = 3) -> str:
    """`mean ± sd` as text, or what is known of it."""
    if math.isnan(found["mean"]):
        return "-"
    sd = "" if math.isnan(found["sd"]) else f" ± {found['sd']:.{digits}f}"
    return f"{found['mean']:.{digits}f}{sd}"


def shown_interval(found: Mapping[str, float], digits: int = 2) -> str:
    """`mean [low, high]` with signs, as text; `-` for what is not known."""
    if math.isnan(found["mean"]):
        return "-"
    bounds = "" if math.isnan(found["low"]) else f" [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]"
    return f"{found['mean']:+.{digits}f}{bounds}"
