"""The picture of `benchmarks.ground_truth`: rank correlations of all methods, and a cloud of points for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLUMNS = 5


def plot(
    path: Path, found: Mapping[str, Any], true: NDArray[np.float64], predicted: Mapping[str, Sequence[float]]
) -> None:
    """Write the picture.

    Args:
        found: the summary of the study.
        true: stand-alone top-1 of the rows, percent.
        predicted: inherited top-1 of the rows by method, of one seed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(predicted) // COLUMNS)
    figure = Figure(figsize=(15, 4 + 2.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1 + rows, COLUMNS, height_ratios=[4, *[2.8] * rows])
    _bars(figure.add_subplot(grid[0, :]), found)
    for number, (name, scores) in enumerate(predicted.items()):
        axes = figure.add_subplot(grid[1 + number // COLUMNS, number % COLUMNS])
        axes.scatter(scores, true, s=5, alpha=0.6)
        axes.set_title(f"{name}: tau {found['methods'][name]['tau']['mean']:.3f}", fontsize="small")
        axes.tick_params(labelsize="x-small")
        if number % COLUMNS == 0:
            axes.set_ylabel("alone, %", fontsize="small")
        axes.set_xlabel("inherited, %", fontsize="small")
    figure.savefig(path, dpi=110)


def _bars(axes: Any, found: Mapping[str, Any]) -> None:
    """Tau of every method with its standard deviation over seeds; lines: the ceiling, and the number of parameters."""
    facts = found["methods"]
    places = np.arange(len(facts))
    for shift, (column, label) in enumerate((("tau", "all rows"), ("tau_top_decile", "top decile"))):
        means = [row[column]["mean"] for row in facts.values()]
        errors = np.nan_to_num([row[column]["sd"] for row in facts.values()])
        axes.bar(places + 0.4 * shift - 0.2, means, 0.38, yerr=errors, capsize=3, label=label, color=f"C{shift}")
        same = [row for row in found["ceiling"] if not row["other_images"]]
        middle = same[len(same) // 2]
        note = f"ceiling, {label} (noise {middle['noise']:.2f} points)"
        axes.axhline(middle[column], color=f"C{shift}", linestyle="--", linewidth=1.2, label=note)
        size = found["references"]["params"][column]
        axes.axhline(size, color=f"C{shift}", linestyle=":", linewidth=1.2, label=f"number of parameters, {label}")
    axes.axhline(0, color="black", linewidth=0.8)
    labels = [f"{name}\n{len(row['seeds'])} seed(s)" for name, row in facts.items()]
    axes.set_xticks(places, labels, fontsize="small")
    axes.set(ylabel="Kendall's tau-b", title=f"{found['space']}: {found['rows']} rows, {found['steps']:,} steps")
    axes.legend(fontsize="x-small", ncols=2)
    axes.grid(axis="y", alpha=0.3)
