"""Gradient-based selection from a trained supernet against evolution at equal time, under budgets on MACs.

    python -m benchmarks.gradient_budget --checkpoint <training run> [--budgets 3M 5M 8M] [--seeds 3]
        [--gradient algorithm.epochs=10 ...] [--evolution algorithm.population=20 ...] [--set data.root=<folder> ...]
        [--only all|report] [--threads 1] [--device auto] [--runs <folder>] [--out <folder>]

For every seed and budget, `search.py` runs twice on the same weights and splits: first `algorithm=tangle` with frozen
weights and decoding (`--gradient` changes that), then `algorithm=evolution`, with as many evaluations as fit into the
time that the first one took, its own scoring included. What an evaluation takes is measured before that, on random
subnets inside the budget. Both winners are scored with statistics of their own on the validation and the test split.
Evolution's is the best of its finalists on the validation split, as always; a gradient-based search has one finalist,
unless `--gradient algorithm.candidates=10`. No scores of other searches are used.

Searches are finished once, resumed where they were stopped, and not repeated. Writes `gradient_budget_<space>.json`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from benchmarks import arms
from benchmarks.statistics import paired, shown, shown_interval, spread
from search.begun import newest_unfinished
from search.job import open_job
from search.runner import main as search
from supernet.errors import UserError
from supernet.evaluate import evaluate_subnet
from supernet.runs import CHECKPOINT, RESULTS, config_dir, plain, read_json, write_json

ARMS = ("gradient", "evolution")
SELECTION = ("algorithm=tangle", "algorithm.weights=frozen", "algorithm/select=decode")
TIMING = "timing.json"
TIMED = 8  # random subnets whose evaluation is timed


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        run: the training run's folder.
        root: where the searches lie.
        overrides: Hydra's, by arm.
    """

    run: Path
    root: Path
    budgets: tuple[str, ...]
    seeds: int
    overrides: Mapping[str, tuple[str, ...]]

    def folder(self, arm: str, budget: str, seed: int) -> Path:
        """Of one search."""
        return self.root / f"{budget}-{seed}-{arm}"

    def config(self, arm: str, budget: str, seed: int) -> dict[str, Any]:
        """The whole configuration of one search, but for the number of evaluations."""
        folder = self.folder(arm, budget, seed)
        own = (f"checkpoint='{folder}'", f"runs_dir='{folder}'", f"constraint.macs={budget}", f"seed={seed}")
        return composed((*self.overrides[arm], *own, "cache=false"))


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """`configs/search.yaml` with Hydra overrides, plain."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("search", list(overrides)), resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    return config


def search_once(study: Study, arm: str, budget: str, seed: int) -> dict[str, Any]:
    """The results of one search: run now, or to its end, where there are none yet.

    Raises:
        UserError: if it was done with other settings, or cannot go on.
    """
    folder = study.folder(arm, budget, seed)
    _link(study.run, folder)
    config = study.config(arm, budget, seed)
    with arms.hold(folder):
        found = finished(study, arm, budget, seed)
        if found is None:
            if arm == "evolution":
                config = {**config, "evaluations": affordable(study, config, budget, seed)["evaluations"]}
            begun = newest_unfinished(folder / "search", "*")
            search(config if begun is None else {**config, "resume": str(begun)})
            found = finished(study, arm, budget, seed)
    assert found is not None
    return found


def finished(study: Study, arm: str, budget: str, seed: int) -> dict[str, Any] | None:
    """The results of one search where it is finished. Raises UserError if it was done with other settings."""
    files = sorted(study.folder(arm, budget, seed).glob(f"search/*/{RESULTS}"))
    if not files:
        return None
    ignored = ("evaluations", "checkpoint")
    stored = {key: value for key, value in read_json(files[0].parent / "config.json").items() if key not in ignored}
    if changed := arms.differences(stored, plain(study.config(arm, budget, seed))):
        raise UserError(f"{files[0].parent} has other settings ({', '.join(changed)}): remove it, or say --runs")
    results = read_json(files[0])
    assert isinstance(results, dict)
    return results


def _link(run: Path, folder: Path) -> None:
    """A folder that looks like the training run but has no searches: links to its files."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in run.resolve().iterdir():
        link = folder / path.name
        if path.is_file() and not path.name.startswith(".") and not link.is_symlink():
            os.symlink(path, link)


# Time --------------------------------------------------------------------------------------------------------------


def affordable(study: Study, config: Mapping[str, Any], budget: str, seed: int) -> dict[str, Any]:
    """How many evaluations fit into the time of the gradient-based search of this budget and seed.

    It is worked out once, and kept: times are never the same again.
    """
    file = study.folder("evolution", budget, seed) / TIMING
    if not file.is_file():
        gradient = finished(study, "gradient", budget, seed)
        if gradient is None:
            raise UserError(f"budget {budget}, seed {seed}: the gradient-based search must be finished first")
        each = evaluation_seconds(config)
        seconds = gradient_seconds(gradient, each["val"])
        count = evaluations(seconds, each["search"], each["val"], config["finalists"])
        write_json(file, {**each, "gradient": seconds, "evaluations": count, "finalists": config["finalists"]})
    timing = read_json(file)
    assert isinstance(timing, dict)
    return timing


def evaluation_seconds(config: Mapping[str, Any], subnets: int = TIMED) -> dict[str, float]:
    """Mean seconds of scoring one random subnet inside the budget on the search and on the validation split.

    Images are prepared and cached beforehand, as they are for all but the first subnets of a search.
    """
    job = open_job(config)
    space = job.budget.space
    archs = job.budget.sample(np.random.default_rng(0), subnets)
    seconds = {}
    for split in ("search", "val"):
        for arch in {space.resolution(arch): arch for arch in archs}.values():
            evaluate_subnet(job.run.net, arch, job.images, split, job.calibration_images)
        begin = time.perf_counter()
        for arch in archs:
            evaluate_subnet(job.run.net, arch, job.images, split, job.calibration_images)
        seconds[split] = (time.perf_counter() - begin) / len(archs)
    return seconds


def gradient_seconds(results: Mapping[str, Any], val: float) -> float:
    """What a gradient-based search took, with the scoring of what it found; restarts included."""
    scored: float = results["evaluations"] * results["seconds_per_candidate"] + results["finalists"] * val
    return float(results["learned_seconds"]) + scored


def evolution_seconds(results: Mapping[str, Any], val: float) -> float:
    """What evolution took for scores on the search split and on the validation split."""
    return float(results["evaluations"] * results["seconds_per_candidate"] + results["finalists"] * val)


def evaluations(seconds: float, search: float, val: float, finalists: int) -> int:
    """The most evaluations whose time, with that of the finalists on the validation split, is inside `seconds`; 1 at
    least. With fewer evaluations than finalists, all of them are finalists."""
    count = int((seconds - finalists * val) / search + 1e-9)
    if count < finalists:
        count = int(seconds / (search + val) + 1e-9)
    return max(1, count)


# Report ------------------------------------------------------------------------------------------------------------


def facts(study: Study, arm: str, budget: str, seed: int) -> dict[str, Any] | None:
    """Figures of one search; None where it is not finished."""
    results = finished(study, arm, budget, seed)
    timing = study.folder("evolution", budget, seed) / TIMING
    if results is None or not timing.is_file():
        return None
    winner, (low, high) = results["winner"], results["budget"]["macs"]
    low, high = (bound if bound is not None else end for bound, end in ((low, -np.inf), (high, np.inf)))
    val = read_json(timing)["val"]
    seconds = gradient_seconds(results, val) if arm == "gradient" else evolution_seconds(results, val)
    return {
        "seed": seed,
        "arch": winner["arch"],
        "macs": winner["macs"],
        "met": bool(low <= winner["macs"] <= high),
        "evaluations": results["evaluations"],
        "seconds": seconds,
        **{split: winner["metrics"][split]["top1"] for split in ("search", "val", "test")},
    }


def summary(study: Study) -> dict[str, Any]:
    """Everything that is known by now: by budget and arm the seeds, their means, and the differences."""
    budgets: dict[str, Any] = {}
    for budget in study.budgets:
        found: dict[str, Any] = {}
        for arm in ARMS:
            rows = [row for seed in range(study.seeds) if (row := facts(study, arm, budget, seed)) is not None]
            columns = ("search", "val", "test", "macs", "seconds", "evaluations")
            means = {column: spread([row[column] for row in rows]) for column in columns}
            found[arm] = {"seeds": rows, **means, "met": all(row["met"] for row in rows)}
        tests = {arm: {row["seed"]: row["test"] for row in found[arm]["seeds"]} for arm in ARMS}
        budgets[budget] = {**found, "gradient_over_evolution": paired(tests["gradient"], tests["evolution"])}
    settings = {arm: [*study.overrides[arm]] for arm in ARMS}
    return {"environment": arms.machine(), "run": study.run.name, "overrides": settings, "budgets": budgets}


def table(found: Mapping[str, Any]) -> Table:
    """The summary to read."""
    columns = ("test top-1 %", "over evolution", "val top-1 %", "MMACs", "budget met", "evaluations", "seconds")
    drawn = Table("budget", "search", "seeds", *columns, title=f"inherited weights of {found['run']}")
    for budget, both in found["budgets"].items():
        for arm in ARMS:
            row = both[arm]
            over = shown_interval(both["gradient_over_evolution"]) if arm == "gradient" else ""
            macs = {**row["macs"], **{key: row["macs"][key] / 1e6 for key in ("mean", "sd")}}
            met = "-" if not row["seeds"] else ("yes" if row["met"] else "NO")
            ends = (shown(row["evaluations"], 0), shown(row["seconds"], 1))
            scores = (shown(row["test"], 2), over.replace("[", r"\["), shown(row["val"], 2))
            drawn.add_row(budget, arm, str(len(row["seeds"])), *scores, shown(macs, 3), met, *ends)
        drawn.add_section()
    return drawn


def run(study: Study, console: Console) -> None:
    """Seed by seed, so that what is cut off has all budgets for the first seeds."""
    for seed in range(study.seeds):
        for budget in study.budgets:
            try:
                for arm in ARMS:
                    search_once(study, arm, budget, seed)
            except UserError as error:  # the others go on
                console.print(f"budget {budget}, seed {seed}: {error}", style="yellow", soft_wrap=True)


def make_study(options: argparse.Namespace) -> Study:
    """What the options ask for. Raises UserError if the training run is not there."""
    given: Path = options.checkpoint
    if not (given / CHECKPOINT).is_file():
        raise UserError(f"--checkpoint {given}: no training run is there ({CHECKPOINT} is missing)")
    shared = (*options.set, f"device={options.device}")
    overrides = {"gradient": (*SELECTION, *shared, *options.gradient)}
    overrides["evolution"] = ("algorithm=evolution", *shared, *options.evolution)
    root = (options.runs / "gradient_budget" / given.resolve().name).resolve()
    return Study(given, root, tuple(options.budgets), options.seeds, overrides)


def main() -> int:
    """The exit code: 0 where every budget was met."""
    options = _options()
    arms.use_threads(options.threads)
    console = Console(highlight=False, width=None if Console().is_terminal else 150)
    try:
        study = make_study(options)
        if options.only != "report":
            run(study, console)
        found = summary(study)
    except UserError as error:
        sys.exit(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    space = read_json(study.run / "config.json")["space"]["name"]
    write_json(options.out / f"gradient_budget_{space}.json", found)
    console.print(table(found))
    return 0 if all(both[arm]["met"] for both in found["budgets"].values() for arm in ARMS) else 1


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser("python -m benchmarks.gradient_budget", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of a training run")
    parser.add_argument("--budgets", nargs="+", default=["3M", "5M", "8M"], help="bounds on MACs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gradient", nargs="+", default=[], help="Hydra overrides of the gradient-based search")
    parser.add_argument("--evolution", nargs="+", default=[], help="of evolution")
    parser.add_argument("--set", nargs="+", default=[], help="of both, such as data.root=<folder>")
    parser.add_argument("--only", choices=("all", "report"), default="all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=Path, default=Path("benchmarks/runs"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
