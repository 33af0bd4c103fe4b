"""Search algorithms on tables: how far from the optimum after how many evaluations.

    python -m benchmarks.search_tables --data <folder> [--out <folder>] [--seeds 20] [--only nas-bench] [--workers 2]

Tables: NAS-Bench-Macro and NAS-Bench-201 with bounds on MACs or latency, restricted to the rows that are given, whose
constrained optimum is known by enumeration; and Once-for-All's accuracy predictor with the latency table of a Samsung
Note10 at 25 and 30 ms (5 seeds). Every algorithm runs with the settings of `configs/algorithm`, the same on all tables.
Writes `search_tables.json`, `.md` and `.png`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.tables import macro, nb201, ofa
from benchmarks.tables.table import Table
from supernet.construct import construct
from supernet.runs import config_dir, write_json

SHARE = 0.1  # of the given rows: how many evaluations an algorithm has on a table
OFA_EVALUATIONS, OFA_SEEDS = 5000, 5
BASELINE = "random"
TOLERANCE = 1e-9


@lru_cache(maxsize=1)
def tables(data: Path) -> dict[str, Table]:
    """Every table, by name."""
    return {**macro.tables(data), **nb201.tables(data), **ofa.tables(data)}


def algorithms() -> list[str]:
    """Names of the configurations, the baseline first."""
    return sorted((path.stem for path in (config_dir() / "algorithm").glob("*.yaml")), key=lambda n: (n != BASELINE, n))


def play(data: Path, table_name: str, name: str, seed: int, evaluations: int) -> dict[str, Any]:
    """One search: the best so far after every evaluation, and whether the budget was kept."""
    table = tables(data)[table_name]
    config = yaml.safe_load((config_dir() / "algorithm" / f"{name}.yaml").read_text())
    if "objectives" in config:
        bounded = next(key for key in table.budget.windows if key != "missing")
        config["objectives"] = ["top1", bounded]
    algorithm = construct(config, "algorithm", budget=table.budget, seed=seed)
    found: list[float] = []
    start, kept = time.perf_counter(), True
    while len(found) < evaluations:
        trials = table(algorithm.ask(min(algorithm.batch, evaluations - len(found))))
        if not trials:
            break
        algorithm.tell(trials)
        found += [trial.metrics["top1"] for trial in trials]
        kept = kept and not table.budget.excess([trial.arch for trial in trials]).any()
    seconds = time.perf_counter() - start
    return {"best": np.maximum.accumulate(found), "kept": kept, "seconds": seconds}


def run(data: Path, seeds: int, only: str, workers: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Every table and algorithm: one search per seed."""
    jobs = []
    for table_name, table in tables(data).items():
        known = table.rows is not None
        evaluations = int(SHARE * table.rows) if table.rows is not None else OFA_EVALUATIONS
        for name in algorithms() if only in table_name else ():
            jobs += [(table_name, name, s, evaluations) for s in range(seeds if known else min(seeds, OFA_SEEDS))]
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    columns = zip(*((data, *job) for job in jobs), strict=True)
    with ProcessPoolExecutor(workers) as pool:
        for (table_name, name, *_), result in zip(jobs, pool.map(play, *columns), strict=True):
            results.setdefault(table_name, {}).setdefault(name, []).append(result)
    return results


def summary(table: Table, searches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures of one algorithm on one table."""
    curves = np.array([_padded(search["best"], max(len(s["best"]) for s in searches)) for search in searches])
    at = [n for n in (50, 100, 200, 300, 500, 700, 1000, 2000, 5000) if n <= curves.shape[1]]
    facts: dict[str, Any] = {
        "evaluations": curves.shape[1],
        "median_best": float(np.median(curves[:, -1])),
        "worst_best": float(curves[:, -1].min()),
        "highest_best": float(curves[:, -1].max()),
        "median_best_after": {n: float(np.median(curves[:, n - 1])) for n in at},
        "inside_the_budget": all(search["kept"] for search in searches),
        "seconds": float(np.median([search["seconds"] for search in searches])),
    }
    if table.optimum is not None:
        hits = curves >= table.optimum - TOLERANCE
        first = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, np.inf)
        facts["optimum"] = table.optimum
        facts["found"] = float(hits[:, -1].mean())
        facts["median_evaluations_to_optimum"] = float(np.median(first))
        facts["mean_regret_after"] = {n: float((table.optimum - curves[:, n - 1]).mean()) for n in at}
        facts["mean_regret"] = float((table.optimum - curves[:, -1]).mean())
    return facts


def _padded(curve: np.ndarray, length: int) -> np.ndarray:
    return np.pad(curve, (0, length - len(curve)), mode="edge")


def markdown(facts: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The figures as two tables."""
    known = {name: rows for name, rows in facts.items() if "optimum" in next(iter(rows.values()))}
    others = {name: rows for name, rows in facts.items() if name not in known}
    lines: list[str] = []
    if known:
        names = list(next(iter(known.values())))
        lines += ["| table | optimum % | evaluations | " + " | ".join(names) + " |", "|---" * (3 + len(names)) + "|"]
        for table, rows in known.items():
            cells = [f"{r['found']:.0%}, {_whole(r['median_evaluations_to_optimum'])}" for r in rows.values()]
            first = next(iter(rows.values()))
            lines.append(f"| {table} | {first['optimum']:.2f} | {first['evaluations']} | " + " | ".join(cells) + " |")
        lines += ["", "Each cell: share of seeds that found the optimum, median evaluations to it.", ""]
    marks = [300, 1000, 5000]
    for table, rows in others.items():
        head = " | ".join(f"after {n}" for n in marks)
        lines += [f"{table}: median top-1 %", "", f"| algorithm | {head} | worst seed | best seed | s |"]
        lines += ["|---" * 7 + "|"]
        for name, row in rows.items():
            after = [_value(row["median_best_after"].get(n, np.inf)) for n in marks]
            ends = f"{row['worst_best']:.2f} | {row['highest_best']:.2f} | {row['seconds']:.0f}"
            lines.append(f"| {name} | {' | '.join(after)} | {ends} |")
        lines.append("")
    return "\n".join(lines)


def _whole(value: float) -> str:
    return f"{value:.0f}" if np.isfinite(value) else "-"


def _value(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "-"


def plot(path: Path, data: Path, results: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Regret (mean over seeds) or, where the optimum is not known, the median best, against evaluations."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 3
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(5 * columns, 3.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (table_name, searches) in enumerate(results.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        optimum = tables(data)[table_name].optimum
        for name, seeds in searches.items():
            curves = np.array([_padded(s["best"], max(len(t["best"]) for t in seeds)) for s in seeds])
            line = np.median(curves, axis=0) if optimum is None else (optimum - curves).mean(axis=0)
            style = "k--" if name == BASELINE else "-"
            axes.plot(np.arange(1, curves.shape[1] + 1), line, style, label=name, linewidth=1.4)
        if optimum is None:
            axes.set_xscale("log")
            axes.set_ylim(bottom=float(np.median([s["best"][99] for s in searches[BASELINE]])))
        else:
            axes.set_ylim(0, 2)
        label = "best top-1, % (median)" if optimum is None else "regret, points (mean)"
        axes.set(title=table_name, xlabel="evaluations", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", default="", help="part of a table's name")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    results = run(options.data, options.seeds, options.only, options.workers)
    facts = {
        name: {algorithm: summary(tables(options.data)[name], searches) for algorithm, searches in rows.items()}
        for name, rows in results.items()
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "search_tables.json", json.loads(json.dumps(facts)))
    (options.out / "search_tables.md").write_text(markdown(facts) + "\n")
    plot(options.out / "search_tables.png", options.data, results)
    print(markdown(facts))


if __name__ == "__main__":
    main()
