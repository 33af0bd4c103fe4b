"""State dicts as the original codes were run with, filled and read as the tests do; and measures of error."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supernet.net import Supernet
from supernet.pretrained import import_weights
from supernet.pretrained.layout import Layout

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from golden import fill, names
from golden import images as images

Numbers = dict[str, NDArray[Any]]
State = dict[str, Tensor]
LOGIT, VALUE = "largest logit", "largest value"  # what errors are relative to


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text())


def load(path: Path) -> Numbers:
    """All arrays of an npz file."""
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def original_state(listing: Path, tame: bool = False) -> State:
    """A state dict of an original code, filled, from the list of its keys and shapes; `tame` as in `fill`."""
    return {entry["key"]: fill(entry["key"], entry["shape"], tame) for entry in read(listing)}


def fill_errors(listing: Path, state: State) -> dict[str, float]:
    """How far the sums of the filled tensors are from the listed ones."""
    return {e["key"]: abs(state[e["key"]].double().sum().item() - e["sum_f64"]) for e in read(listing)}


def imported(state: State, family: str, **overrides: Any) -> Supernet:
    """The supernet of an original state dict, through a file; fp64, in eval mode.

    Raises:
        ValueError: if the file is taken for another family's.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "original.pth"
        torch.save(state, path)
        found = import_weights(path, **overrides)
    if found.family != family:
        raise ValueError(f"weights of {family} are taken for {found.family}")
    return found.net.double().eval()


def error(actual: Tensor, expected: NDArray[Any]) -> float:
    """The largest difference, by the largest of the expected values; infinite where shapes differ."""
    if tuple(actual.shape) != expected.shape:
        return float("inf")
    difference = np.abs(actual.detach().double().numpy() - expected).max()
    return float(difference / (np.abs(expected).max() or 1.0))


def gradient_errors(
    net: Supernet, layout: Layout, expected: Mapping[str, Mapping[str, float] | None], noise: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Norms and sums, then the numbers of non-zeros, of all gradients against the listed ones; both relative.

    A sum of n entries is relative to sqrt(n) times the norm. Gradients of a norm below `noise` are zero in exact
    arithmetic and only have to be below it too; without one, nothing may flow.
    """
    values, counts = {}, {}
    ours = names(net.net, layout)
    parameters = {ours[key]: parameter for key, parameter in net.net.named_parameters()}
    if set(parameters) != set(expected):
        raise ValueError(f"parameters differ: {sorted(set(parameters) ^ set(expected))[:5]}")
    for key, listed in expected.items():
        flat = parameters[key].grad
        norm = 0.0 if flat is None else flat.norm().item()
        if listed is None or flat is None or listed["l2"] < noise:
            floor = 0.0 if listed is None else noise
            values[key] = 0.0 if norm <= floor else float("inf")
            continue
        off = abs(flat.sum().item() - listed["sum"]) / flat.count_nonzero().item() ** 0.5
        values[key] = max(abs(norm - listed["l2"]), off) / listed["l2"]
        counts[key] = abs(int(flat.count_nonzero()) - listed["nonzero"]) / listed["nonzero"]
    return values, counts
