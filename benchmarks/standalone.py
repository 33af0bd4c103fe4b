"""Inherited against stand-alone accuracy: the same subnets from a supernet and trained from scratch.

    python -m benchmarks.standalone <run folder of a supernet> [number of a subnet, 0 to 4 ...]

Takes five subnets spread evenly over the MACs range, evaluates each with inherited weights on the test set, trains each
alone with the supernet's own recipe, data and epochs, and prints a table. Runs that are finished are not repeated, so
the command can be started again after an interruption. Results: `<run folder>/standalone.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from supernet.build import make_data, open_run
from supernet.evaluate import evaluate_subnet
from supernet.job import main as train
from supernet.runs import RESULTS, read_json, write_json
from supernet.space import Arch, Space

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the MACs between the smallest and the largest subnet


def spread(space: Space, seed: int = 0, candidates: int = 4096) -> list[Arch]:
    """Smallest, largest, and random subnets whose MACs are nearest to the fractions between."""
    ends = (space.smallest(), space.largest())
    low, high = (space.plan(arch).macs for arch in ends)
    pool = space.sample(np.random.default_rng(seed), n=candidates)
    macs = np.array([space.plan(arch).macs for arch in pool])
    middle = [pool[int(np.abs(macs - (low + f * (high - low))).argmin())] for f in FRACTIONS[1:-1]]
    return [ends[0], *middle, ends[1]]


def run(folder: Path, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Evaluate and train the chosen subnets (0: smallest, 4: largest); returns the rows of the table."""
    opened = open_run(folder, torch.device("cpu"))
    calibration = opened.config["train"]["calibration_images"]
    rows = []
    archs = spread(opened.net.space)
    for number in numbers:
        arch = archs[number]
        data = make_data(opened.config, torch.device("cpu"))
        inherited = evaluate_subnet(opened.net, arch, data, "test", calibration).top1
        alone, seconds = _alone(opened.config, folder / "standalone" / str(number), arch)
        plan = opened.net.space.plan(arch)
        row = {"macs": plan.macs, "params": plan.params, "inherited": inherited, "alone": alone}
        rows.append({**row, "gap": inherited - alone, "seconds": seconds, "arch": arch.to_json()})
        accuracy = f"inherited {inherited:.2f}  alone {alone:.2f}  gap {inherited - alone:+.2f}"
        print(f"{plan.macs / 1e6:6.2f} MMACs  {accuracy}")
    if len(rows) == len(archs):
        write_json(folder / "standalone.json", rows)
    return rows


def _alone(config: dict[str, Any], root: Path, arch: Arch) -> tuple[float, float]:
    """Test top-1 of `arch` trained from scratch with `config`, and the seconds it took."""
    finished = sorted(root.glob(f"subnet/*/{RESULTS}"))
    if not finished:
        unfinished = sorted(root.glob("subnet/*/checkpoint.pt"))
        resume = {"resume": str(unfinished[-1].parent)} if unfinished else {}
        own = {"runs_dir": str(root), "arch": json.dumps(arch.to_json()), "init": "scratch", "init_from": None}
        train({**config, **own, **resume})
        finished = sorted(root.glob(f"subnet/*/{RESULTS}"))
    results = read_json(finished[0])
    return results["subnets"]["largest"]["top1"]["test"], results["seconds"]


if __name__ == "__main__":
    run(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]] or range(len(FRACTIONS)))
