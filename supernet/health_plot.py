"""The figure of a run's health report."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

from supernet.log import read_metrics
from supernet.plots import OTHERS, ROLES

# prefix of the values -> title, unit; drawn in this order where there are any
PANELS = {
    "grad_norm/": ("Gradient of one pass", "L2 norm"),
    "cosine/": ("Gradients against the largest subnet's", "cosine"),
    "gap/": ("Distance to the teacher", "KL(teacher || student) [nats]"),
    "agreement/": ("Same class as the teacher", "share of images"),
    "paths/": ("Path sampler", "share"),
    "data/score_": ("Scores of images", "gradient norm by the logits"),
    "data/": ("Data sampler", "share"),
}
NAMES = {
    "ess": "effective sample size of the weights",
    "entropy": "entropy of the choices (1: uniform)",
    "observed": "options seen",
    "coverage": "images in this epoch",
    "seen": "images seen so far",
    "tau": "tau: decided by scores",
}


def health(metrics_jsonl: Path, out_png: Path) -> bool:
    """Draw the records of kind "health", a panel for each group of values; False if there are none."""
    rows = [row for row in read_metrics(metrics_jsonl) if row["kind"] == "health"]
    names = list(dict.fromkeys(key for row in rows for key in row))
    first = {name: next((prefix for prefix in PANELS if name.startswith(prefix)), "") for name in names}
    panels = {prefix: [name for name in names if first[name] == prefix] for prefix in PANELS}
    panels = {prefix: found for prefix, found in panels.items() if found}
    if not panels:
        return False
    from matplotlib.figure import Figure  # the object interface keeps no global state and needs no display

    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(5.5 * columns, 3.4 * lines), layout="constrained")
    figure.suptitle(f"Health of {metrics_jsonl.resolve().parent.name}")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis, (prefix, found) in zip(axes, panels.items(), strict=False):
        _panel(axis, rows, found, prefix)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.savefig(out_png, dpi=120)
    return True


def _panel(axis: Any, rows: list[dict[str, Any]], names: list[str], prefix: str) -> None:
    others = cycle(OTHERS)
    title, unit = PANELS[prefix]
    for name in names:
        short = name.removeprefix(prefix)
        label = NAMES.get(short, short)
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        steps, values = zip(*points, strict=True) if points else ((), ())
        axis.plot(
            steps, values, label=label, color=ROLES.get(label) or next(others), linewidth=1, marker=".", alpha=0.8
        )
    axis.set(title=title, xlabel="optimizer step", ylabel=unit)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
