"""One subnet that needs no search: named by the user, or chosen again among the trials of an earlier search."""

from __future__ import annotations

from pathlib import Path

from search.algorithm import Trial
from search.conclude import about, conclude, describe, row
from search.finish import ship, validate
from search.history import read_trials
from search.job import TRIALS, Job
from search.report import plot_front, write_front
from search.reselect import reselect, validated_in
from supernet.calibrate import has_statistics
from supernet.log import RunLog
from supernet.runs import RESULTS, new_run, write_json
from supernet.space import Arch


def evaluate_and_export(job: Job, arch: Arch) -> float:
    """Evaluate and export one subnet. Returns its top-1 on the validation split, %; 0 without data."""
    folder = new_run(job.root, "arch")
    describe(job, folder)
    with RunLog(folder) as log:
        for line in job.facts():
            log.say(line)
        if not job.calibration_images and has_statistics(job.run.net):
            log.say("statistics: the checkpoint's own, which fit only the subnet that they were measured on")
        scores = {"val": validate(job, arch)._asdict()} if job.data else {}
        shipped = ship(job, arch, scores, folder)
        write_json(folder / RESULTS, {"kind": "arch", **about(job), "winner": shipped})
        rows = [row(str(job.settings.arch), shipped, shipped["metrics"])]
        conclude(job, folder, log, rows, shipped, is_search=False)
    return float(scores["val"]["top1"]) if scores else 0.0


def select_again(job: Job) -> float:
    """The best subnet of an earlier search inside this budget, exported; nothing is evaluated but the test set.

    Returns its top-1, %, on the split that decided.
    """
    assert job.settings.reselect is not None
    source, space = Path(job.settings.reselect), job.budget.space
    trials = read_trials(source / TRIALS, space, job.setup(), job.budget.costs)
    validated = validated_in(source, space)
    found = reselect(trials, job.budget, validated, job.settings.finalists)
    folder = new_run(job.root, "reselect")
    describe(job, folder)
    with RunLog(folder) as log:
        for line in job.facts():
            log.say(line)
        log.say(
            f"chosen from {len(found.feasible):,} of {len(trials):,} trials of {source}, by the {found.split} split"
        )
        scores = _scores(found.winner, validated)
        write_front(folder, found.feasible, found.winner, validated, job.settings.objectives)
        name = source.name.rpartition("-")[2]
        plot_front(folder / "front.png", found.feasible, found.winner, job.budget, [], name, job.settings.objectives)
        shipped = ship(job, found.winner.arch, scores, folder)
        facts = {"kind": "reselect", "from": str(source), "decided_by": found.split, **about(job)}
        write_json(folder / RESULTS, {**facts, "winner": shipped})
        conclude(job, folder, log, [row("chosen", shipped, shipped["metrics"])], shipped, is_search=True)
    return float(scores[found.split]["top1"])


def _scores(trial: Trial, validated: dict[Arch, float]) -> dict[str, dict[str, float]]:
    """What the earlier search knew about a subnet, by split."""
    scores = {"search": {key: trial.metrics[key] for key in ("top1", "loss")}}
    if trial.arch in validated:
        scores["val"] = {"top1": validated[trial.arch]}
    return scores
