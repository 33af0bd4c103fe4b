"""How fast subnets are priced, and drawn inside windows of their MACs and parameters.

    python -m benchmarks.pricing [file.json]

Prints two tables and writes the figures to `file.json` where one is given. Times are the median of five on one
thread; set-up and the first draw happen once per space and window, so they are measured once.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import supernet
from supernet.cost import Additive, Measure, cost, macs_of, memory_of, params_of, size_of
from supernet.sampling import window_table
from supernet.space import Space
from supernet.sweep import extremes
from supernet.window import sample_in_window

SPACES = ("alphanet", "bignas", "ofa_mbv3", "ofa_resnet50", "autoformer_small", "mobilenetv2_slimmable")
ROWS = 1_000_000
DRAWN = 1000
FIXED = {"alphanet": [(200e6, 300e6), (203.4e6, 206e6), (700e6, 701e6)]}  # MACs
SHARES = [(0.0, 0.05), (0.3, 0.301), (0.95, 1.0)]  # of the range of a cost
REPEATS = 5
OTHERS: dict[str, Callable[[Space], Measure]] = {"macs": macs_of, "size_mb": size_of, "memory_mb": memory_of}


def pricing(space: Space) -> dict[str, Any]:
    """Seconds of set-up, and for 10^6 random rows of genes: MACs and parameters together, and each other measure."""
    limits = np.array([len(gene.options) for gene in space.genes])
    genes = np.random.default_rng(0).integers(0, limits, size=(ROWS, len(limits)))
    setup = seconds(lambda: cost.batch(space, genes[:1]), 1)
    together = seconds(lambda: cost.batch(space, genes))
    alone = {}
    for name, of in OTHERS.items():
        measure = of(space)
        measure.batch(genes[:1])
        alone[name] = seconds(partial(measure.batch, genes))
    return {"space": space.name, "rows": ROWS, "setup": setup, "macs and params": together, **alone}


def windows(space: Space) -> list[dict[str, Any]]:
    """For some windows: seconds of set-up, of the first 1,000 subnets and of the next; the shares that fit."""
    rows = []
    for name, measure in (("macs", macs_of(space)), ("params", params_of(space))):
        least, most = extremes(space, measure)
        ends = [(least + low * (most - least), least + high * (most - least)) for low, high in SHARES]
        for window in [*(FIXED.get(space.name, []) if name == "macs" else []), *ends]:
            rows.append({"space": space.name, "cost": name, "window": window, **_window(space, name, measure, window)})
    return rows


def _window(space: Space, name: str, measure: Additive, window: tuple[float, float]) -> dict[str, Any]:
    window_table.cache_clear()
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    made = window_table(measure, *window)
    setup = time.perf_counter() - start
    if made is None or not made.rows:
        return {"setup": setup, "empty": True}
    values = measure.batch(made.draw(rng, 10 * DRAWN))
    accepted = float(((values >= window[0]) & (values <= window[1])).mean())
    window_table.cache_clear()
    draw = partial(sample_in_window, space, rng, DRAWN, {name: window})
    first = seconds(draw, 1)
    return {
        "setup": setup,
        "first": first,
        "next": seconds(draw),
        "accepted": accepted,
        "share": made.share * accepted,
        "uniform draws each": 1 / (made.share * accepted) if accepted else None,
    }


def seconds(function: Callable[[], Any], repeats: int = REPEATS) -> float:
    """The median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return median(times)


def main(file: Path | None) -> None:
    torch.set_num_threads(1)
    spaces = [supernet.build(name, num_classes=1000).space for name in SPACES]
    priced = [pricing(space) for space in spaces]
    drawn = [row for space in spaces for row in windows(space)]
    header = ["space", "set-up, ms", "MACs and params of 10^6, s", "10^6 a second", "size, s", "memory, s"]
    print("| " + " | ".join(header) + " |")
    for row in priced:
        rate = ROWS / row["macs and params"] / 1e6
        cells = [f"{1e3 * row['setup']:.0f}", f"{row['macs and params']:.3f}", f"{rate:.1f}"]
        print("| " + " | ".join([row["space"], *cells, f"{row['size_mb']:.3f}", f"{row['memory_mb']:.3f}"]) + " |")
    print("\n| space | window | share of uniform draws | set-up, ms | first 1,000, ms | next, ms | accepted |")
    for row in drawn:
        low, high = row["window"]
        cells = [row["space"], f"{row['cost']} {low / 1e6:.2f} to {high / 1e6:.2f} M"]
        if row.get("empty"):
            cells += ["0", f"{1e3 * row['setup']:.0f}", "-", "-", "-"]
        else:
            times = [f"{1e3 * row[key]:.0f}" for key in ("setup", "first", "next")]
            cells += [f"{row['share']:.2g}", *times, f"{row['accepted']:.2f}"]
        print("| " + " | ".join(cells) + " |")
    if file is not None:
        facts = {"machine": platform.processor() or platform.machine(), "numpy": np.__version__}
        file.write_text(json.dumps({**facts, "pricing": priced, "windows": drawn}, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, nargs="?", help="also write the figures here")
    main(parser.parse_args().json)
