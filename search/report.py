"""What a search leaves behind: the front as JSON, CSV and PNG."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.algorithm import Trial
from search.constraint import Budget
from supernet.runs import write_json
from supernet.space import Arch

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other one beats in both MACs and top-1, by rising MACs; one of each equal pair."""
    best: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.metrics["macs"], -t.metrics["top1"])):
        if not best or trial.metrics["top1"] > best[-1].metrics["top1"]:
            best.append(trial)
    return best


def write_front(
    folder: Path, trials: Sequence[Trial], chosen: Trial, validated: Mapping[Arch, float]
) -> list[dict[str, Any]]:
    """Write `front.json` and `front.csv`; returns the rows.

    `validated` holds the top-1 (percent) of the finalists on the validation split.
    """

    def row(trial: Trial) -> dict[str, Any]:
        return {
            "arch": trial.arch.to_json(),
            "macs": trial.metrics["macs"],
            "params": trial.metrics["params"],
            "top1_search": trial.metrics["top1"],
            "top1_val": validated.get(trial.arch),
        }

    rows = [row(trial) for trial in front(trials)]
    content = {"objectives": ["macs", "top1_search"], "rows": rows, "chosen": row(chosen)}
    write_json(folder / "front.json", content)
    with (folder / "front.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "macs", "params", "top1_search", "top1_val", "arch"])
        for number, entry in enumerate(rows):
            values = [entry[key] for key in ("macs", "params", "top1_search", "top1_val")]
            writer.writerow([number, *values, json.dumps(entry["arch"])])
    return rows


def plot_front(
    path: Path, trials: Sequence[Trial], chosen: Trial, budget: Budget, baseline: Sequence[Trial], name: str
) -> None:
    """Draw every trial, the front, the MACs budget, the chosen subnet, and random search if there is one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if baseline:
        _scatter(axes, baseline, "tab:orange", "random search")
    _scatter(axes, trials, "tab:blue", name)
    bounds = [bound / 1e6 for bound in budget.windows.get("macs", ()) if math.isfinite(bound)]
    for i, bound in enumerate(bounds):
        label = None if i else f"budget: {' to '.join(f'{b:.4g}' for b in bounds)} MMACs"
        axes.axvline(bound, color="tab:red", linestyle="--", linewidth=1, label=label)
    axes.plot(
        chosen.metrics["macs"] / 1e6,
        chosen.metrics["top1"],
        marker="*",
        markersize=16,
        color="gold",
        markeredgecolor="black",
        linestyle="none",
        label="chosen (best finalist on val)",
        zorder=5,
    )
    axes.set_xlabel("MMACs per image")
    axes.set_ylabel("top-1 on the search split, %")
    beside = f", {len(baseline)} by random search" if baseline else ""
    axes.set_title(f"{len(trials)} subnets scored by {name}{beside}")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def _scatter(axes: Axes, trials: Sequence[Trial], color: str, label: str) -> None:
    points = [(t.metrics["macs"] / 1e6, t.metrics["top1"]) for t in trials]
    line = [(t.metrics["macs"] / 1e6, t.metrics["top1"]) for t in front(trials)]
    x, y = zip(*points, strict=True)
    axes.scatter(x, y, s=12, alpha=0.4, color=color, linewidths=0)
    axes.step(*zip(*line, strict=True), where="post", marker="o", markersize=4, color=color, label=f"{label}: front")
