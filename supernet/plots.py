"""Figures of a training run."""

from itertools import cycle
from pathlib import Path
from typing import Any

from supernet.errors import UserError
from supernet.log import read_metrics

ROLES = {"largest": "tab:blue", "random": "tab:orange", "smallest": "tab:green"}
OTHERS = ("tab:orange", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan")
# Where a legend covers no line, however short the run is.
BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "ncols": 5, "fontsize": "small"}
BELOW |= {"frameon": False}


def curves(metrics_jsonl: Path, out_png: Path) -> None:
    """Draw losses and learning rate (left) and accuracy of the evaluated subnets (right) per step.

    Reads records of kind "train" (`loss/<role>`, `lr`) and "eval" (`<subnet>/top1`, percent).
    Raises `UserError` when the file is missing or holds neither.
    """
    rows = read_metrics(metrics_jsonl)
    train = [row for row in rows if row["kind"] == "train"]
    evals = [row for row in rows if row["kind"] == "eval"]
    if not train and not evals:
        raise UserError(f"{metrics_jsonl} holds no records of training or evaluation to draw")
    # The object interface, unlike pyplot, keeps no global state and needs no display: PNG goes through Agg.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(f"Training of {metrics_jsonl.resolve().parent.name}")
    _losses(left, train)
    _accuracies(right, evals)
    figure.savefig(out_png, dpi=120)


def _losses(axes: Any, rows: list[dict[str, Any]]) -> None:
    for name in _names(rows, lambda name: name.startswith("loss/")):
        role = name.removeprefix("loss/")
        axes.plot(*_points(rows, name), label=role, color=ROLES.get(role), linewidth=1)
    axes.set(title="Loss and learning rate", xlabel="optimizer step", ylabel="loss [nats]")
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    if any("lr" in row for row in rows):
        rate = axes.twinx()
        (line,) = rate.plot(*_points(rows, "lr"), color="tab:gray", linestyle="--", linewidth=1)
        rate.set_ylabel("learning rate", color="tab:gray")
        rate.set_ylim(bottom=0)
        handles, labels = [*handles, line], [*labels, "learning rate"]
    if handles:
        axes.legend(handles, labels, **BELOW)


def _accuracies(axes: Any, rows: list[dict[str, Any]]) -> None:
    names = _names(rows, lambda name: name.endswith("/top1"))
    others = cycle(OTHERS)
    for name in names:
        subnet = name.removesuffix("/top1")
        fixed = subnet in ROLES
        axes.plot(
            *_points(rows, name),
            label=subnet,
            color=ROLES[subnet] if fixed else next(others),
            linewidth=1.6 if fixed else 0.9,
            marker="o" if fixed else ".",
            markersize=3,
        )
    axes.set(title="Accuracy of subnets", xlabel="optimizer step", ylabel="top-1 accuracy [%]")
    axes.grid(alpha=0.3)
    if names:
        axes.legend(**BELOW)


def _names(rows: list[dict[str, Any]], wanted: Any) -> list[str]:
    return [name for name in dict.fromkeys(key for row in rows for key in row) if wanted(name)]


def _points(rows: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    found = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]
