"""What a search leaves behind: the front and its progress as files, from trials alone."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from search.algorithm import Trial
from search.figures import plot_front, plot_progress
from search.pareto import MAXIMISED, OBJECTIVES, bounds, curves, front
from supernet.runs import write_json
from supernet.space import Arch

__all__ = ["front", "plot_front", "plot_progress", "write_front", "write_progress"]

NO_COST = ("top1", "loss", "stopped_after")


def write_front(
    folder: Path,
    trials: Sequence[Trial],
    chosen: Trial,
    validated: Mapping[Arch, float],
    objectives: Sequence[str] = OBJECTIVES,
) -> list[dict[str, Any]]:
    """Write `front.json` and `front.csv`; returns the rows.

    `validated` holds the top-1 (percent) of the finalists on the validation split; all finalists are listed in
    `front.json`, on the front or not.
    """
    costs = [name for name in chosen.metrics if name not in NO_COST]

    def row(trial: Trial) -> dict[str, Any]:
        return {
            "arch": trial.arch.to_json(),
            **{name: trial.metrics[name] for name in costs},
            "top1_search": trial.metrics["top1"],
            "top1_val": validated.get(trial.arch),
        }

    rows = [row(trial) for trial in front(trials, objectives)]
    finalists = [row(trial) for trial in {t.arch: t for t in trials if t.arch in validated}.values()]
    names = [name for name in objectives if name not in MAXIMISED]
    names += [f"{name}_search" for name in objectives if name in MAXIMISED]
    write_json(
        folder / "front.json", {"objectives": names, "rows": rows, "chosen": row(chosen), "finalists": finalists}
    )
    columns = [*costs, "top1_search", "top1_val"]
    lines = [[number, *(entry[key] for key in columns), json.dumps(entry["arch"])] for number, entry in enumerate(rows)]
    _write_csv(folder / "front.csv", ["row", *columns, "arch"], lines)
    return rows


def write_progress(
    folder: Path,
    trials: Sequence[Trial],
    baseline: Sequence[Trial],
    name: str,
    objectives: Sequence[str] = OBJECTIVES,
) -> None:
    """Write `progress.csv` and `progress.png`: best top-1 and hypervolume after each evaluation.

    Those of `baseline`, the trials of a random search, stand beside them where there are any. Both hypervolumes are
    shares of one box, from the best to the worst value that either of the two saw of every objective.
    """
    box = bounds([*trials, *baseline], objectives)
    lines = {name: curves(trials, objectives, *box)}
    if baseline:
        lines["random search"] = curves(baseline, objectives, *box)
    columns = [f"{label}: {key}" for label, curve in lines.items() for key in curve]
    series = [values for curve in lines.values() for values in curve.values()]
    table = [
        [i + 1, *(values[i] if i < len(values) else None for values in series)] for i in range(max(map(len, series)))
    ]
    _write_csv(folder / "progress.csv", ["evaluations", *columns], table)
    plot_progress(folder / "progress.png", lines, objectives)


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
