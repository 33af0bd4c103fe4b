"""One search from beginning to end: score inside the budget, re-score the finalists, export the winner, report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from search.algorithm import Algorithm, Trial, best_of
from search.conclude import about, begun_command, conclude, describe, row
from search.evaluator import SharedEvaluator, SupernetEvaluator
from search.finish import rescore, ship
from search.history import History, Known, is_complete, known_trials
from search.job import TRIALS, Job
from search.loop import run_trials
from search.random import Random
from search.report import plot_front, write_front, write_progress
from search.rescue import saying_how_to_go_on
from search.scoring import scoring
from search.settings import is_gradient
from search.summary import Findings, markdown
from supernet.construct import construct
from supernet.evaluate import Metrics, evaluate_subnet
from supernet.log import RunLog
from supernet.passes import Passes
from supernet.runs import RESULTS, lock, new_run, write_json
from supernet.space import Arch


@dataclass(frozen=True)
class Outcome:
    """One algorithm's trials, its winner, and the finalists on the validation split; how many scores were known."""

    trials: list[Trial]
    winner: Trial
    validated: dict[Arch, Metrics]
    reused: int

    def summary(self) -> dict[str, Any]:
        best = best_of(filter(is_complete, self.trials), 1)[0]
        return {
            "evaluations": len(self.trials),
            "scores_of_earlier_searches": self.reused,
            "seconds_per_candidate": sum(trial.seconds for trial in self.trials) / len(self.trials),
            "best_top1_search": best.metrics["top1"],
            "finalists": len(self.validated),
        }

    def scores(self) -> dict[str, Any]:
        """The winner's metrics by split."""
        search = {key: self.winner.metrics[key] for key in ("top1", "loss")}
        return {"search": search, "val": self.validated[self.winner.arch]._asdict()}


def run_study(job: Job, described: Mapping[str, Any]) -> float:
    """Search with the algorithm that `described` describes. Returns the winner's top-1 on val, %.

    Several processes share the evaluations; the first alone writes and prints.
    """
    if "objectives" in described:  # of algorithms that approach a front
        described = {**described, "objectives": list(job.settings.objectives)}
    algorithm: Algorithm = construct(described, "algorithm", budget=job.budget, seed=job.settings.seed)
    name, ranks = type(algorithm).__name__.lower(), job.ranks
    folder = Path(ranks.once(lambda: str(job.resumable() or new_run(job.root, name))))
    if ranks.first:
        describe(job, folder)
    with (
        lock(folder) if ranks.first else nullcontext(),
        RunLog(folder, quiet=not ranks.first) as log,
        saying_how_to_go_on(folder, log),
    ):
        for line in job.facts():
            log.say(line)
        log.say(f"folder: {folder}")
        return _search(job, algorithm, name, folder, log)


def _search(job: Job, algorithm: Algorithm, name: str, folder: Path, log: RunLog) -> float:
    settings, setup = job.settings, job.setup()
    passes, scored = scoring(job, folder, log)
    if passes.dtype != torch.float32:
        setup["eval_dtype"] = scored["dtype"]
    found = _outcome(job, algorithm, name, folder / TRIALS, setup, log, passes)
    baseline = None
    if settings.baseline is not None:
        random = Random(job.budget, settings.seed)
        facts = {**setup, "algorithm": "random"}
        baseline = _outcome(job, random, "random baseline", folder / "baseline.jsonl", facts, log, passes)
    top1 = float(found.validated[found.winner.arch].top1)
    if not job.ranks.first:
        return top1
    winner = ship(job, found.winner.arch, found.scores(), folder)
    results = {
        "kind": "search",
        "algorithm": dict(job.config["algorithm"]),
        **about(job),
        **found.summary(),
        "scoring": {**scored, "reuse_mb": settings.reuse_mb},
        "winner": winner,
        "baseline": {**baseline.summary(), "metrics": baseline.scores()} if baseline else None,
    }
    write_report(job, found, baseline, winner, name, folder)
    write_json(folder / RESULTS, results)
    rows = [row("chosen", found.winner.metrics, winner["metrics"])]
    if baseline:
        rows.append(row("random search", baseline.winner.metrics, baseline.scores()))
    conclude(job, folder, log, rows, winner, is_search=True)
    return top1


def _outcome(
    job: Job, searcher: Algorithm, label: str, file: Path, facts: Mapping[str, Any], log: RunLog, passes: Passes
) -> Outcome:
    settings, space, ranks = job.settings, job.budget.space, job.ranks
    history = History(file, space, facts, ranks)
    known: Known = {}
    if settings.cache:
        known = known_trials(job.root, file.parent, space, facts, job.budget.costs, ranks)
    evaluator = SupernetEvaluator(
        job.run.net, job.images, job.calibration_images, job.budget.costs, passes=passes, reuse_mb=settings.reuse_mb
    )
    together = evaluator.groups if evaluator.reuse_mb else None
    keep = settings.finalists if settings.stop_early else None
    alone = ranks.world == 1
    trials = run_trials(
        searcher,
        evaluator if alone else SharedEvaluator(evaluator, space, ranks, together),
        history,
        settings.evaluations,
        log,
        label,
        known=known,
        at_once=max(1 if alone else 4 * ranks.world, searcher.batch if together else 1),
        keep=keep,
    )
    reused = sum(trial.arch in history.sources for trial in trials)
    return Outcome(trials, *rescore(job, trials, log, label), reused)


def write_report(
    job: Job,
    found: Outcome,
    baseline: Outcome | None,
    winner: Mapping[str, Any],
    name: str,
    folder: Path,
    files: Mapping[str, str] | None = None,
    again: str | None = None,
) -> None:
    """front.*, progress.* where there is any, and report.md.

    Args:
        files: further figures and tables in the folder, with what they show.
        again: the command that chooses again under another budget; None: `from=`.
    """
    objectives, others = job.settings.objectives, baseline.trials if baseline else []
    top1_val = {arch: metrics.top1 for arch, metrics in found.validated.items()}
    write_front(folder, found.trials, found.winner, top1_val, objectives)
    plot_front(folder / "front.png", found.trials, found.winner, job.budget, others, name, objectives)
    progress = {}
    if len(found.trials) > 1:
        write_progress(folder, found.trials, others, name, objectives)
        progress = {"progress.png": "best top-1 and hypervolume after each evaluation (also .csv)"}
    measured = winner.get("measured_latency")
    findings = Findings(
        checkpoint=str(job.run.source),
        algorithm=name,
        budget=job.budget,
        trials=found.trials,
        chosen=found.winner,
        validated=top1_val,
        metrics={split: scores for split, scores in winner["metrics"].items() if split != "search"},
        calibration_images=job.calibration_images,
        images=job.images.sizes,
        baseline=others,
        reused=found.reused,
        objectives=objectives,
        measured={"latency_ms": measured["median_ms"]} if measured else {},
        files={
            "front.png": "every scored subnet, the front and the budget (also .csv and .json)",
            **progress,
            **(files or {}),
            "subnet": "the exported subnet",
        },
        commands={
            "the same search": begun_command(folder),
            "another budget, without evaluating": again or f"python search.py from={folder} constraint.macs=<bound>",
        },
    )
    (folder / "report.md").write_text(markdown(findings), encoding="utf-8")


def dry_run(job: Job) -> float:
    """Print what is reachable and how long it would take; writes nothing."""
    settings, space = job.settings, job.budget.space
    if job.data is None or settings.reselect is not None or not job.ranks.first:
        print("\n".join(job.facts() if job.ranks.first else []))
        return 0.0
    if is_gradient(job.config["algorithm"]) and settings.arch is None:
        from search.gradient.study import estimate

        print("\n".join([*job.facts(), *estimate(job)]))
        return 0.0
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
    return 0.0
