"""The picture of `benchmarks.gradient_toy`: how good the decoded cell is alone, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

LINES = {"mean": ":", "95th percentile": "--", "best": "-"}


def plot(path: Path, found: Mapping[str, Any]) -> None:
    """Write the picture: a panel for each method, a line for each seed; hollow marks are predictions.

    Args:
        found: the summary of the study.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = found["methods"]
    figure = Figure(figsize=(1.2 + 5.0 * len(methods), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for axes, (method, facts) in zip(panels, methods.items(), strict=True):
        for number, row in enumerate(facts["seeds"]):
            _seed(axes, row, f"C{number}")
        for name, value in found["whole"].items():
            axes.axhline(value, color="grey", linewidth=1, linestyle=LINES[name])
            place = {"transform": axes.get_yaxis_transform(), "va": "bottom", "fontsize": "x-small"}
            axes.text(0.01, value, f"{name} of the space", **place)
        axes.set(title=method, xlabel="epoch (the star: what was chosen)")
        axes.legend(fontsize="x-small", loc="lower right")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("decoded cell trained alone, top-1 % (hollow: predicted)")
    figure.savefig(path, dpi=110)


def _seed(axes: Any, row: Mapping[str, Any], color: str) -> None:
    """One search: a line with a mark for each epoch, and a star for the cell that it chose."""
    top1, published = row["epochs"]["top1"], row["epochs"]["published"]
    epochs = range(1, 1 + len(top1))
    axes.plot(epochs, top1, color=color, linewidth=1, label=f"seed {row['seed']}")
    for given in (True, False):
        chosen = [(epoch, value) for epoch, value, known in zip(epochs, top1, published, strict=True) if known == given]
        if chosen:
            face = color if given else "white"
            axes.scatter(*zip(*chosen, strict=True), s=22, facecolors=face, edgecolors=color, zorder=3)
    face = color if row["published"] else "white"
    axes.scatter([len(top1)], [row["top1"]], s=130, marker="*", facecolors=face, edgecolors=color, zorder=4)
