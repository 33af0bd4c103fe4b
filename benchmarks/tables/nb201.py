"""NAS-Bench-201 (Dong and Yang, ICLR 2020) with measured latencies (HW-NAS-Bench, HELP): six edges, five operations."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from benchmarks.tables.table import Table, listed

BUDGETS = (("eyeriss", 3.0), ("eyeriss", 5.0), ("fpga", 3.0), ("raspi4", 15.0))  # device and its bound in ms
EDGES = 6
OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


def tables(data: Path) -> dict[str, Table]:
    """CIFAR-100 test accuracy; one table per device and bound."""
    with np.load(data / "nas_bench_201.npz") as file:
        order = [_number(str(arch)) for arch in file["arch"]]
        columns = {key: file[key].astype(np.float64) for key in file.files if key.startswith(("lat_", "acc_"))}
    sizes = len(OPERATIONS) ** EDGES
    spread = {key: np.full(sizes, np.nan) for key in columns}
    for key, column in columns.items():
        spread[key][order] = column
    return {
        f"nas-bench-201-{device}-{bound:g}ms": listed(
            "nas_bench_201",
            EDGES,
            len(OPERATIONS),
            spread["acc_c100"],
            {"latency_ms": spread[f"lat_{device}"]},
            {"latency_ms": bound},
        )
        for device, bound in BUDGETS
    }


def _number(arch: str) -> int:
    """The operations of an arch string as a number of base 5, its first edge the most significant digit."""
    number = 0
    for operation in re.findall(r"\|?([a-z_0-9]+)~\d", arch):
        number = number * len(OPERATIONS) + OPERATIONS.index(operation)
    return number
