"""How fast subnets are priced, drawn inside windows of their costs, and handled by a search.

    python -m benchmarks.pricing [--spaces alphanet mbv3_tiny] [--rows 1000000] [--repeats 5] [--threads 1]
                                 [--windows] [--json <file>]

Prices random rows of genes of every named space: MACs and parameters together, the other measures alone, and a latency
table with a number of its own for every layer. Then times what a search does beside its evaluations, see
`benchmarks.bookkeeping`. `--windows` adds the drawing of subnets inside windows. Times are medians, in seconds of CPU
time where one thread computes. Exits with 1 where a target is missed: a million rows a second of MACs and parameters,
and of latencies, in every space; 50,000 candidates a second of an evolution in `alphanet` and in `mbv3_tiny`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.bookkeeping import MEASURED, bookkeeping, parts, recorded
from benchmarks.spaces import named_space, names_of_spaces
from search.latency.model import LatencyModel
from supernet.cost import Additive, Measure, cost, macs_of, memory_of, params_of, size_of
from supernet.memory import keep_freed_memory
from supernet.runs import environment, write_json
from supernet.sampling import window_table
from supernet.space import Space
from supernet.sweep import extremes
from supernet.window import sample_in_window

PRICED = 1e6  # rows a second
HANDLED = 50_000  # candidates a second
SEARCHED = ("alphanet", "mbv3_tiny")
GENERATIONS = 30
DRAWN = 1000
FIXED = {"alphanet": [(200e6, 300e6), (203.4e6, 206e6), (700e6, 701e6)]}  # MACs
SHARES = [(0.0, 0.05), (0.3, 0.301), (0.95, 1.0)]  # of the range of a cost
OTHERS: dict[str, Callable[[Space], Measure]] = {"macs": macs_of, "size_mb": size_of, "memory_mb": memory_of}


def pricing(space: Space, rows: int, repeats: int) -> dict[str, Any]:
    """Seconds of set-up, and of random rows: MACs and parameters together, and each other measure."""
    limits = np.array([len(gene.options) for gene in space.genes])
    genes = np.random.default_rng(0).integers(0, limits, size=(rows, len(limits)))
    setup = seconds(lambda: cost.batch(space, genes[:1]), 1)
    found = {"macs and params": seconds(lambda: cost.batch(space, genes), repeats)}
    others = {**{name: of(space) for name, of in OTHERS.items()}, "latency_ms": latency_table(space)}
    for name, measure in others.items():
        measure.batch(genes[:1])
        found[name] = seconds(partial(measure.batch, genes), repeats)
    return {"genes": len(limits), "rows": rows, "setup": setup, **found}


def latency_table(space: Space) -> LatencyModel:
    """Made-up milliseconds of every layer in all its shapes, the kind of table that is measured on a device."""
    rng = np.random.default_rng(0)
    return LatencyModel(space, Additive.of_units(space, lambda name, spec: rng.random(), np.float64, offset=0.5))


def windows(space: Space, repeats: int) -> list[dict[str, Any]]:
    """For some windows: seconds of set-up, of the first 1,000 subnets and of the next; the shares that fit."""
    rows = []
    for name, measure in (("macs", macs_of(space)), ("params", params_of(space))):
        least, most = extremes(space, measure)
        ends = [(least + low * (most - least), least + high * (most - least)) for low, high in SHARES]
        for window in [*(FIXED.get(space.name, []) if name == "macs" else []), *ends]:
            rows.append(
                {"space": space.name, "cost": name, "window": window, **_window(space, name, measure, window, repeats)}
            )
    return rows


def _window(space: Space, name: str, measure: Additive, window: tuple[float, float], repeats: int) -> dict[str, Any]:
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
        "next": seconds(draw, repeats),
        "accepted": accepted,
        "share": made.share * accepted,
        "uniform draws each": 1 / (made.share * accepted) if accepted else None,
    }


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """The median time of a call: of the processor, where one thread computes, as others may use the machine too."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times = []
    for _ in range(repeats):
        start = clock()
        function()
        times.append(clock() - start)
    return median(times)


def main() -> int:
    """The exit code: 0 where every target is met."""
    options = _options()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    console = Console(highlight=False, width=None if Console().is_terminal else 130)
    spaces = {name: named_space(name) for name in options.spaces or names_of_spaces()}
    priced = [{**pricing(space, options.rows, options.repeats), "space": name} for name, space in spaces.items()]
    console.print(_priced_table(priced, options.rows))
    searched = [space for name, space in spaces.items() if name in SEARCHED]
    handled = [row for space in searched for row in bookkeeping(space, GENERATIONS, options.repeats)]
    apart = [{**parts(space, options.repeats), "recorded": recorded(space)} for space in searched]
    console.print(_handled_table(handled))
    for row in apart:
        shown = ", ".join(f"{name} {value:.1f}" for name, value in row.items() if name not in ("space", "recorded"))
        console.print(
            f"{row['space']}, us for each child: {shown}; with trials on the disk {row['recorded']:,.0f} in all"
        )
    drawn = [row for space in spaces.values() for row in windows(space, options.repeats)] if options.windows else []
    if drawn:
        console.print(_window_table(drawn))
    missed = [
        f"pricing of {r['space']}" for r in priced if min(_rate(r, "macs and params"), _rate(r, "latency_ms")) < 1
    ]
    missed += [f"search in {r['space']}" for r in handled if r["search"] == MEASURED and _handled(r) < 1]
    console.print(f"missed: {', '.join(missed)}" if missed else "every target is met")
    if options.json:
        figures = {"pricing": priced, "bookkeeping": handled, "parts": apart, "windows": drawn, "missed": missed}
        write_json(options.json, {"environment": environment(), "threads": options.threads, **figures})
    return 1 if missed else 0


def _rate(row: dict[str, Any], measure: str) -> float:
    """Rows a second over the target."""
    return float(row["rows"] / row[measure] / PRICED)


def _handled(row: dict[str, Any]) -> float:
    """Candidates a second over the target."""
    return float(row["candidates a second"] / HANDLED)


def _priced_table(rows: Sequence[dict[str, Any]], count: int) -> Table:
    measures = ["macs and params", *OTHERS, "latency_ms"]
    title = f"Millions of rows priced in a second ({count:,} rows at once; target {PRICED / 1e6:g})"
    table = Table("space", "genes", "set-up, ms", *measures, title=title)
    for row in rows:
        rates = [f"{_rate(row, measure):.1f}" for measure in measures]
        table.add_row(row["space"], str(row["genes"]), f"{1e3 * row['setup']:.0f}", *rates)
    return table


def _handled_table(rows: Sequence[dict[str, Any]]) -> Table:
    title = "Microseconds for each candidate of a search, its evaluation left out"
    table = Table("space", "budget", "search", "ask", "price", "tell", "candidates a second", "of target", title=title)
    for row in rows:
        figures = [f"{row[part]:.1f}" for part in ("ask", "price", "tell")]
        target = f"{_handled(row):.2f}" if row["search"] == MEASURED else ""
        table.add_row(
            row["space"], row["budget"], row["search"], *figures, f"{row['candidates a second']:,.0f}", target
        )
    return table


def _window_table(rows: Sequence[dict[str, Any]]) -> Table:
    names = ("share of uniform draws", "set-up, ms", "first 1,000, ms", "next, ms", "accepted")
    table = Table("space", "window", *names, title="Subnets drawn inside windows")
    for row in rows:
        low, high = row["window"]
        cells = [row["space"], f"{row['cost']} {low / 1e6:.2f} to {high / 1e6:.2f} M"]
        if row.get("empty"):
            cells += ["0", f"{1e3 * row['setup']:.0f}", "-", "-", "-"]
        else:
            times = [f"{1e3 * row[key]:.0f}" for key in ("setup", "first", "next")]
            cells += [f"{row['share']:.2g}", *times, f"{row['accepted']:.2f}"]
        table.add_row(*cells)
    return table


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser("python -m benchmarks.pricing", description=__doc__.splitlines()[0])
    parser.add_argument("--spaces", "--space", nargs="+", help="files of configs/space; all of them by default")
    parser.add_argument("--rows", type=int, default=1_000_000, help="priced at once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--windows", action="store_true", help="also draw inside windows")
    parser.add_argument("--json", type=Path, help="file for the figures, with machine and versions")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
