"""Stratified splits that depend on the labels and on `split_seed` alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def stratified(labels: Tensor, fractions: Mapping[str, float], seed: int) -> dict[str, Tensor]:
    """Hold out shares of `labels` `[N]` class by class; what remains is "train".

    Returns index tensors (int64) that partition 0..N-1: one for each name in `fractions`, holding
    round(N * fraction) images with per-class counts within one of their exact share, and "train". Every
    class keeps at least one training image. Each list is in random order, so that its first n entries
    are a random subset.
    """
    labels_n = labels.cpu().numpy()
    rng = np.random.default_rng(np.random.SeedSequence((seed, len(labels_n))))
    members = [rng.permutation(np.flatnonzero(labels_n == c)) for c in np.unique(labels_n)]
    taken = np.zeros(len(members), dtype=np.int64)
    counts = np.array([len(m) for m in members], dtype=np.int64)
    chosen: dict[str, list[np.ndarray]] = {}
    for name, fraction in fractions.items():
        quota = np.minimum(_apportion(counts, fraction), counts - taken - 1)
        chosen[name] = [m[t : t + q] for m, t, q in zip(members, taken, quota, strict=True)]
        taken += quota
    chosen["train"] = [m[t:] for m, t in zip(members, taken, strict=True)]
    return {name: torch.from_numpy(rng.permutation(np.concatenate(part))) for name, part in chosen.items()}


def shuffled(num_images: int, seed: int) -> Tensor:
    """A fixed random order `[num_images]` int64 of a given test set, so that a prefix is a random subset."""
    rng = np.random.default_rng(np.random.SeedSequence((seed, num_images)))
    return torch.from_numpy(rng.permutation(num_images))


def _apportion(counts: np.ndarray, fraction: float) -> np.ndarray:
    """Whole numbers nearest to counts * fraction that sum to round(total * fraction): largest remainders."""
    exact = counts * fraction
    quota = np.floor(exact).astype(np.int64)
    missing = round(float(counts.sum() * fraction)) - int(quota.sum())
    quota[np.argsort(-(exact - quota), kind="stable")[: max(missing, 0)]] += 1
    return quota


def fingerprint(items: Tensor | Sequence[str]) -> str:
    """SHA-256 of a list of indices or of file names, in order."""
    values = items.tolist() if isinstance(items, Tensor) else list(items)
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
