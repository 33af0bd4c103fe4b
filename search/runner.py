"""`python search.py`: open the run, search inside the budget, re-score the finalists, export the winner."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.algorithm import Algorithm, Trial, best_of
from search.constraint import number, range_of
from search.evaluator import SupernetEvaluator
from search.finish import EXPORT, rescore, ship, validate
from search.history import History
from search.job import TRIALS, Job, open_job
from search.loop import run_trials
from search.random import Random
from search.report import plot_front, write_front
from supernet.build import parse_arch
from supernet.calibrate import has_statistics
from supernet.construct import construct
from supernet.evaluate import Metrics, evaluate_subnet
from supernet.log import RunLog
from supernet.runs import RESULTS, environment, lock, new_run, read_json, write_json
from supernet.space import Arch


@dataclass(frozen=True)
class Outcome:
    """One algorithm's trials, its winner, and the finalists on the validation split."""

    trials: list[Trial]
    winner: Trial
    validated: dict[Arch, Metrics]

    def summary(self) -> dict[str, Any]:
        best = best_of(self.trials, 1)[0]
        return {
            "evaluations": len(self.trials),
            "seconds_per_candidate": sum(trial.seconds for trial in self.trials) / len(self.trials),
            "best_top1_search": best.metrics["top1"],
            "finalists": len(self.validated),
        }

    def scores(self) -> dict[str, Any]:
        """The winner's metrics by split."""
        search = {key: self.winner.metrics[key] for key in ("top1", "loss")}
        return {"search": search, "val": self.validated[self.winner.arch]._asdict()}


def main(config: Mapping[str, Any]) -> float:
    """Run a search, or evaluate and export the subnet that `arch` names. Returns its top-1 on val, %.

    Raises:
        UserError: for wrong settings, an impossible budget, missing or foreign files.
        KeyboardInterrupt: after Ctrl-C; every scored subnet is on the disk.
    """
    config = {key: value for key, value in config.items() if key != "overrides"}  # a resumed search repeats them
    job = open_job(config)
    if job.settings.arch is not None:
        arch = parse_arch(job.budget.space, job.settings.arch)
        return 0.0 if _dry(job) else _one(job, arch)
    job.budget.check_reachable()
    seed = job.settings.seed
    algorithm: Algorithm = construct(config["algorithm"], "algorithm", budget=job.budget, seed=seed)
    if _dry(job):
        return 0.0
    name = type(algorithm).__name__.lower()
    folder = job.resumable() or new_run(job.root, name)
    _describe(job, folder)
    with lock(folder), RunLog(folder) as log:
        for line in job.facts():
            log.say(line)
        log.say(f"folder: {folder}")
        try:
            return _search(job, algorithm, name, folder, log)
        except KeyboardInterrupt:
            log.say(f"interrupted; every scored subnet is saved. To go on: {_resume_command(folder)}")
            raise


def _search(job: Job, algorithm: Algorithm, name: str, folder: Path, log: RunLog) -> float:
    settings, setup = job.settings, job.setup()
    evaluator = SupernetEvaluator(job.run.net, job.images, job.calibration_images, job.budget.costs)

    def outcome(searcher: Algorithm, label: str, file: str, facts: Mapping[str, Any]) -> Outcome:
        history = History(folder / file, job.budget.space, facts)
        trials = run_trials(searcher, evaluator, history, settings.evaluations, log, label)
        return Outcome(trials, *rescore(job, trials, log, label))

    found = outcome(algorithm, name, TRIALS, setup)
    baseline = None
    if settings.baseline is not None:
        random = Random(job.budget, settings.seed)
        baseline = outcome(random, "random baseline", "baseline.jsonl", {**setup, "algorithm": "random"})
    top1_val = {arch: metrics.top1 for arch, metrics in found.validated.items()}
    write_front(folder, found.trials, found.winner, top1_val)
    random_trials = baseline.trials if baseline else []
    plot_front(folder / "front.png", found.trials, found.winner, job.budget, random_trials, name)
    winner = ship(job, found.winner.arch, found.scores(), folder)
    results = {
        "kind": "search",
        "algorithm": dict(job.config["algorithm"]),
        **_about(job),
        **found.summary(),
        "winner": winner,
        "baseline": {**baseline.summary(), "metrics": baseline.scores()} if baseline else None,
    }
    write_json(folder / RESULTS, results)
    rows = [_row("chosen", found.winner.metrics, winner["metrics"])]
    if baseline:
        rows.append(_row("random search", baseline.winner.metrics, baseline.scores()))
    _conclude(job, folder, log, rows, is_search=True)
    return float(winner["metrics"]["val"]["top1"])


def _one(job: Job, arch: Arch) -> float:
    """Evaluate and export one subnet."""
    folder = new_run(job.root, "arch")
    _describe(job, folder)
    with RunLog(folder) as log:
        for line in job.facts():
            log.say(line)
        if not job.calibration_images and has_statistics(job.run.net):
            log.say("statistics: the checkpoint's own, which fit only the subnet that they were measured on")
        scores = {"val": validate(job, arch)._asdict()} if job.data else {}
        shipped = ship(job, arch, scores, folder)
        write_json(folder / RESULTS, {"kind": "arch", **_about(job), "winner": shipped})
        rows = [_row(str(job.settings.arch), shipped, shipped["metrics"])]
        _conclude(job, folder, log, rows, is_search=False)
    return float(scores["val"]["top1"]) if scores else 0.0


def _dry(job: Job) -> bool:
    """With `dry_run`: print what is reachable and how long it would take, write nothing."""
    settings, space = job.settings, job.budget.space
    if not settings.dry_run:
        return False
    if job.data is None:
        print("\n".join(job.facts()))
        return True
    seconds = []
    for arch in (space.smallest(), space.largest()):
        for _ in range(2):  # the first prepares and caches the images
            start = time.perf_counter()
            evaluate_subnet(job.run.net, arch, job.images, "search", job.calibration_images)
        seconds.append(time.perf_counter() - start)
    searches = 1 + (settings.baseline is not None)
    count = 1 if settings.arch is not None else searches * (settings.evaluations + settings.finalists)
    facts = [
        *job.facts(),
        f"time per candidate: {seconds[0]:.2f} s (smallest) to {seconds[1]:.2f} s (largest)",
        f"estimated time: {count * sum(seconds) / 2:.0f} s for {count} evaluations",
    ]
    print("\n".join(facts))
    return True


def _describe(job: Job, folder: Path) -> None:
    """Save the configuration and the environment; a resumed search keeps those of its first start."""
    if not (folder / "config.json").exists():
        write_json(folder / "config.json", {**job.config, "checkpoint": str(job.run.source)})
    if not (folder / "environment.json").exists():
        write_json(folder / "environment.json", environment())


def _about(job: Job) -> dict[str, Any]:
    space = job.budget.space
    return {
        "checkpoint": str(job.run.source),
        "space": {"name": space.name, "size": space.size(), "range": range_of(job.budget)},
        "budget": dict(job.budget.windows),
        "seed": job.settings.seed,
        "calibration_images": job.calibration_images,
        "images": dict(job.data.sizes) if job.data else None,
        "data": job.data.info.name if job.data else None,
    }


def _row(name: str, price: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    splits = ("search", "val", "test")
    top1 = [f"{metrics[split]['top1']:.2f}" if split in metrics else "-" for split in splits]
    return [name, number(price["macs"]), number(price["params"]), *top1]


def _conclude(job: Job, folder: Path, log: RunLog, rows: Sequence[Sequence[str]], is_search: bool) -> None:
    log.table("top-1 with inherited weights, %", ["subnet", "MACs", "params", "search", "val", "test"], rows)
    log.say(f"results: {folder / RESULTS}")
    if is_search:
        log.say(f"front:   {folder / 'front.png'} (also .csv and .json)")
        row = f"arch={folder / 'front.json'}#0"
        log.say(f"another: {shlex.join(['python', 'search.py', f'checkpoint={job.run.source}', row])}  (any row)")
    log.say(f"subnet:  {folder / EXPORT}")
    load = f"load_subnet({str(folder / EXPORT)!r})"
    log.say(f"use it:  from supernet import load_subnet; model = {load}")
    if not job.run.config:
        return
    tune = ["python", "train.py", *_training_overrides(job.run.folder), f"init_from={job.run.source}"]
    log.say(f"tune it: {shlex.join([*tune, f'arch={folder / EXPORT}/arch.json'])}")


def _training_overrides(run: Path) -> list[str]:
    """What the training was started with, so that fine-tuning has the same recipe and data."""
    saved = run / "environment.json"
    words = read_json(saved).get("argv", [])[1:] if saved.is_file() else []
    dropped = ("name=", "resume=", "runs_dir=", "init=", "init_from=", "arch=", "seed=", "dry_run=")
    return [word for word in words if not word.startswith(dropped) and not word.endswith("=***") and word != "-m"]


def _resume_command(folder: Path) -> str:
    overrides = [word for word in sys.argv[1:] if not word.startswith("resume=")]
    return shlex.join(["python", "search.py", *overrides, f"resume={folder}"])
