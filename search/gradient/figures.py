"""Figures of a gradient-based search: probabilities over time; losses, entropy and expected costs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.figures import AXES
from search.gradient.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 6
PANELS = 60  # genes that are drawn at most
SHORT = 6  # characters of an option that fit into a panel's legend


def plot_trace(folder: Path, trace: Trace) -> None:
    """Draw `probabilities.png` (one panel per gene that has a choice) and `search.png` into `folder`."""
    if trace.records:
        _probabilities(folder / "probabilities.png", trace)
        _curves(folder / "search.png", trace)


def _probabilities(path: Path, trace: Trace) -> None:
    from matplotlib.figure import Figure

    free = [i for i, gene in enumerate(trace.space.genes) if len(gene.options) > 1]
    shown = free[:PANELS]
    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(2.6 * columns + 0.6, 2.0 * rows + 0.8), layout="constrained")
    left_out = f", the first {len(shown)} of {len(free)} genes" if len(shown) < len(free) else ""
    figure.suptitle(f"Probabilities of the options by epoch{left_out}")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    last: dict[str, Any] = {}
    long: Any = None  # the options that the figure's own legend has
    for number, (axes, position) in enumerate(zip(panels, shown, strict=False)):
        gene = trace.space.genes[position]
        lines = _options(axes, trace, position)
        axes.tick_params(labelsize="x-small", labelleft=number % columns == 0)
        if last.get(gene.key) == gene.options:  # once for all genes of a kind
            continue
        names = [str(option) for option in gene.options]
        if max(map(len, names)) > SHORT and long in (None, gene.options):  # no room for them in a panel
            if long is None:
                figure.legend(
                    lines, names, loc="outside lower center", ncols=min(len(names), columns), fontsize="small"
                )
            long = gene.options
        else:  # lines begin below, all options being about as probable
            axes.legend(fontsize="xx-small", loc="upper left", framealpha=0.6, ncols=2, handlelength=1.0)
        last[gene.key] = gene.options
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    figure.savefig(path, dpi=110)


def _options(axes: Axes, trace: Trace, position: int) -> list[Any]:
    """The lines of one gene's options."""
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    gene, epochs = trace.space.genes[position], [record.epoch for record in trace.records]
    colors = colormaps["tab10" if len(gene.options) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    lines = []
    for option, value in enumerate(gene.options):
        values = [record.probs[position][option] for record in trace.records]
        style = {"color": colors[option % len(colors)], "marker": "." if len(epochs) < 3 else None}
        lines += axes.plot(epochs, values, label=str(value), linewidth=1.2, **style)
    axes.set_title(gene.name, fontsize="small")
    axes.set(ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return lines


def _curves(path: Path, trace: Trace) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    costs = list(trace.records[-1].expected)
    figure = Figure(figsize=(4.6 * (2 + len(costs)), 3.8), layout="constrained")
    panels = figure.subplots(1, 2 + len(costs))
    epochs = [record.epoch for record in trace.records]
    mark = "o" if len(epochs) < 3 else None
    for name in ("train", "val"):
        values = [record.losses.get(name, math.nan) for record in trace.records]
        if not all(map(math.isnan, values)):
            images = {"train": "weights'", "val": "architecture's"}[name]
            panels[0].plot(epochs, values, label=f"on the {images} images", marker=mark)
    panels[0].set(title="Loss of the mixture", xlabel="epoch", ylabel="cross-entropy [nats]")
    panels[0].legend(fontsize="small")
    panels[1].plot(epochs, [trace.mean_entropy(record) for record in trace.records], color="tab:purple", marker=mark)
    panels[1].set(title="Entropy, mean over genes", xlabel="epoch", ylabel="share of the uniform's", ylim=(0, 1.05))
    for axes, name in zip(panels[2:], costs, strict=True):
        _cost(axes, trace, name, mark)
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path, dpi=120)


def _cost(axes: Axes, trace: Trace, name: str, mark: str | None) -> None:
    label, scale = AXES.get(name, (name, 1.0))
    epochs = [record.epoch for record in trace.records]
    axes.plot(epochs, [record.expected[name] / scale for record in trace.records], label="expected", marker=mark)
    decoded = [record.costs[name] / scale for record in trace.records]
    axes.plot(epochs, decoded, label="decoded subnet", linestyle=":", color="black", marker=mark)
    for bound in trace.budget.windows.get(name, ()):
        if math.isfinite(bound):
            axes.axhline(bound / scale, color="tab:red", linestyle="--", linewidth=1, label="budget")
    axes.set(title="Cost", xlabel="epoch", ylabel=label)
    axes.legend(fontsize="small")
