"""NAS-Bench-Macro (Su et al., 2021): eight layers of three blocks each, trained alone on CIFAR-10."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.tables.table import Table, listed

BOUNDS = (40, 60, 80)  # M multiply-accumulates
LAYERS, BLOCKS = 8, 3


def tables(data: Path) -> dict[str, Table]:
    """One table per bound on the MACs."""
    networks = json.loads((data / "nas_bench_macro_cifar10.json").read_text())
    top1 = np.full(BLOCKS**LAYERS, np.nan)
    costs = {name: np.full(BLOCKS**LAYERS, np.nan) for name in ("macs", "params")}
    for digits, network in networks.items():
        number = int(digits, BLOCKS)
        top1[number] = network["mean"]
        for name, column in costs.items():
            column[number] = network[name]
    return {
        f"nas-bench-macro-{bound}M": listed("nas_bench_macro", LAYERS, BLOCKS, top1, costs, {"macs": bound * 1e6})
        for bound in BOUNDS
    }
