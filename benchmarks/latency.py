"""How well latency models predict: on this device, on published measurements, and against published sums.

    python -m benchmarks.latency [--device cpu] [--threads 2] [--batch 1] [--space alphanet] [--resolution 192 224]
                                 [--dtype float32] [--memory-format contiguous] [--minutes 10] [--json <file>]
    python -m benchmarks.latency --gpus ofa_mbv3_latency_2500x12gpu.json      (HELP's measurements of OFA subnets)
    python -m benchmarks.latency --note10 ofa_note10_latency_tables           (OFA's tables of a Samsung Note10)

The first measures 200 random subnets to fit on and 100 others; the targets are a MAPE of at most 8% on a CPU (5% on a
GPU) and a Kendall τ of at least 0.85 on the latter. The second splits 80/20, five seeds; the targets at batch 64 are a
MAPE of at most 3% and a τ of at least 0.93. The third must give 9.890, 17.769, 47.773 and 92.398 ms. `--json` writes
all figures to a file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.spaces import space_config
from search.latency.fit import fit_models, held_out
from search.latency.formats import read_block_tables
from search.latency.measure import FIT, TEST, Sample
from search.latency.mode import main as measure
from search.latency.model import LatencyModel
from supernet.build import build
from supernet.runs import RESULTS, environment, newest_finished, read_json, write_json

SEEDS = range(5)
RUNS = "runs"  # folder of run folders
NOTE10 = {("smallest", 160): 9.890, ("smallest", 224): 17.769, ("largest", 160): 47.773, ("largest", 224): 92.398}


def here(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, fit and test on this device; returns the content of the measurement's `results.json`."""
    names = ("device", "threads", "batch", "dtype", "memory_format", "space", "minutes", "subnets", "seed", "resume")
    config = {name: getattr(arguments, name) for name in names}
    if arguments.resolution:
        config["space"] = {**space_config(arguments.space), "resolution": sorted(arguments.resolution)}
    measure({"mode": "latency", "runs_dir": RUNS, "held_out": 100, **config})
    found: dict[str, Any] = read_json(newest_finished(Path(RUNS) / "latency") / RESULTS)
    return found


def gpus(path: Path) -> dict[str, Any]:
    """Every column of the published measurements, 80% to fit on, the median over seeds; returns these medians."""
    data = read_json(path)
    space = build("ofa_mbv3").space
    archs = [space.from_json(arch) for arch in data["archs"]]
    print(f"{len(archs)} subnets of {space.name}, 80/20, median of {len(SEEDS)} seeds")
    print(f"{'device_batch':14} {'model':13} {'MAPE %':>7} {'RMSE ms':>8} {'tau':>6} {'rho':>6}   all seeds' MAPE")
    rows: dict[str, list[dict[str, float]]] = {}
    medians: dict[str, Any] = {}
    for column, ms in data["latency_ms"].items():
        results, kinds = [], []
        for seed in SEEDS:
            order = np.random.default_rng(seed).permutation(len(archs)).tolist()
            cut = len(order) * 4 // 5
            fit, test = ([Sample(archs[i], split, ms[i]) for i in part] for part, split in _parts(order, cut))
            best = fit_models(space, fit, seed)[0]
            results.append(held_out(best, test))
            kinds.append(best.kind)
        rows[column] = results
        middle = {key: median(result[key] for result in results) for key in results[0]}
        medians[column] = middle
        each = " ".join(f"{result['mape']:.2f}" for result in results)
        print(
            f"{column:14} {max(set(kinds), key=kinds.count):13} {middle['mape']:7.2f} {middle['rmse_ms']:8.3f} "
            f"{middle['kendall_tau']:6.3f} {middle['spearman_rho']:6.3f}   {each}",
            flush=True,
        )
    at_64 = [result for column, results in rows.items() if column.endswith("_64") for result in results]
    mape, tau = (median(result[key] for result in at_64) for key in ("mape", "kendall_tau"))
    print(f"batch 64, median of all: MAPE {mape:.2f}% (target 3%), tau {tau:.3f} (target 0.93)")
    return {**medians, "batch 64": {"mape": mape, "kendall_tau": tau}}


def note10(folder: Path) -> dict[str, Any]:
    """The sums of the published tables, ms."""
    space, additive = read_block_tables(folder, build("ofa_mbv3_w12").space)
    model = LatencyModel(space, additive)
    sums = {}
    for (name, side), published in NOTE10.items():
        arch: dict[str, Any] = (space.smallest() if name == "smallest" else space.largest()).to_json()
        ms = model.predict(space.from_json({**arch, "resolution": side}))
        print(f"{name} at {side} px: {ms:.3f} ms, published {published:.3f}")
        assert abs(ms - published) < 5e-4
        sums[f"{name} at {side} px"] = ms
    return sums


def _parts(order: list[int], cut: int) -> list[tuple[list[int], str]]:
    return [(order[:cut], FIT), (order[cut:], TEST)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=Path, help="HELP's JSON file")
    parser.add_argument("--note10", type=Path, help="the folder of OFA's YAML tables")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--memory-format", default="contiguous")
    parser.add_argument("--space", default="alphanet")
    parser.add_argument("--resolution", type=int, nargs="+", help="px; the space's own by default")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--subnets", type=int, default=200, help="to fit on; 100 more are held out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", help="the folder of an interrupted measurement")
    parser.add_argument("--json", type=Path, help="file for the figures, with machine and versions")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    if arguments.gpus:
        figures["gpus"] = gpus(arguments.gpus)
    if arguments.note10:
        figures["note10"] = note10(arguments.note10)
    if not figures:
        figures["here"] = here(arguments)
    if arguments.json:
        write_json(arguments.json, {"environment": environment(), **figures})


if __name__ == "__main__":
    main()
