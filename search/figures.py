"""Figures of a search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from search.algorithm import Trial
from search.constraint import Budget
from search.history import is_complete
from search.pareto import MAXIMISED, OBJECTIVES, front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Axis label, and what the values are divided by.
AXES = {
    "top1": ("top-1 on the search split, %", 1.0),
    "macs": ("MMACs per image", 1e6),
    "params": ("parameters, millions", 1e6),
    "latency_ms": ("latency, ms", 1.0),
    "memory_mb": ("peak activation memory, MB", 1.0),
    "size_mb": ("model size, MB", 1.0),
}
COLORS = ("tab:blue", "tab:orange")


def plot_front(
    path: Path,
    trials: Sequence[Trial],
    chosen: Trial,
    budget: Budget,
    baseline: Sequence[Trial],
    name: str,
    objectives: Sequence[str] = OBJECTIVES,
) -> None:
    """Draw every trial, the front, the budget, the chosen subnet, and random search if there is one.

    Costs are on the horizontal axis. Of three objectives each of the two costs has a panel of its own.
    """
    costs = [objective for objective in objectives if objective not in MAXIMISED]
    goal = next((objective for objective in objectives if objective in MAXIMISED), costs[-1])
    panels = [cost for cost in costs if cost != goal]
    figure = _figure(7.5 * len(panels))
    for place, (axes, cost) in enumerate(zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True)):
        if baseline:
            _scatter(axes, baseline, (cost, goal), objectives, COLORS[1], "random search")
        _scatter(axes, trials, (cost, goal), objectives, COLORS[0], name)
        label, scale = AXES.get(cost, (cost, 1.0))
        bounds = [bound / scale for bound in budget.windows.get(cost, ()) if math.isfinite(bound)]
        for i, bound in enumerate(bounds):
            text = None if i else f"budget: {' to '.join(f'{b:.4g}' for b in bounds)}"
            axes.axvline(bound, color="tab:red", linestyle="--", linewidth=1, label=text)
        x, y = _xy([chosen], (cost, goal))
        star = {"marker": "*", "markersize": 16, "color": "gold", "markeredgecolor": "black", "linestyle": "none"}
        axes.plot(x, y, label="chosen (best finalist on val)", zorder=5, **star)
        axes.set_xlabel(label)
        axes.set_ylabel(AXES.get(goal, (goal, 1.0))[0])
        axes.grid(alpha=0.3)
        if not place:
            axes.legend(loc="best", fontsize="small")
    beside = f", {len(baseline)} by random search" if baseline else ""
    figure.suptitle(f"{len(trials)} subnets scored by {name}{beside}")
    figure.savefig(path, dpi=150)


def plot_progress(path: Path, lines: Mapping[str, Mapping[str, list[float]]], objectives: Sequence[str]) -> None:
    """Draw best top-1 so far (left) and hypervolume (right) against evaluations, a line for each search.

    `lines` holds what `search.pareto.curves` returns, by the searches' names.
    """
    figure = _figure(11)
    left, right = figure.subplots(1, 2)
    for color, (label, curve) in zip(COLORS, lines.items(), strict=False):
        count = range(1, len(curve["top1"]) + 1)
        left.step(count, curve["top1"], where="post", label=label, color=color)
        right.step(count, curve["hypervolume"], where="post", label=label, color=color)
    left.set(title="Best so far", xlabel="evaluations", ylabel="top-1 on the search split, %")
    right.set(title=f"Hypervolume of the front ({', '.join(objectives)})", xlabel="evaluations")
    right.set_ylabel("share of the box between best and worst seen")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=150)


def scatter(path: Path, x: Sequence[float], y: Sequence[float], labels: tuple[str, str], title: str) -> None:
    """Draw points with axis labels (horizontal, vertical)."""
    figure = _figure(6)
    axes = figure.add_subplot()
    axes.scatter(x, y, s=14, alpha=0.5, linewidths=0)
    axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def _figure(width: float) -> Figure:
    """The object interface, unlike pyplot, keeps no global state and needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _xy(trials: Sequence[Trial], names: tuple[str, str]) -> tuple[list[float], list[float]]:
    x, y = ([t.metrics[name] / AXES.get(name, (name, 1.0))[1] for t in trials] for name in names)
    return x, y


def _scatter(
    axes: Axes, trials: Sequence[Trial], names: tuple[str, str], objectives: Sequence[str], color: str, label: str
) -> None:
    axes.scatter(*_xy([t for t in trials if is_complete(t)], names), s=12, alpha=0.4, color=color, linewidths=0)
    best = _xy(front(trials, objectives), names)
    if len(objectives) == 2:
        axes.step(*best, where="post", marker="o", markersize=4, color=color, label=f"{label}: front")
    else:
        axes.plot(*best, marker="o", markersize=4, color=color, linestyle="none", label=f"{label}: front")
