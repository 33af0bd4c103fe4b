"""A gradient-based search from beginning to end: learn, select a subnet inside the budget, score, export, report."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from search.begun import STATE, TRIALS
from search.conclude import about, conclude, describe, row
from search.evaluator import SupernetEvaluator
from search.finish import rescore, ship
from search.fresh import SUPERNET, save_weights
from search.gradient.figures import plot_trace
from search.gradient.learner import Learner
from search.gradient.search import GradientSearch
from search.gradient.trace import TRACE
from search.history import History
from search.job import Job
from search.rescue import saying_how_to_go_on
from search.study import Outcome, write_report
from supernet.errors import UserError
from supernet.log import RunLog
from supernet.memory import keep_freed_memory
from supernet.net import Supernet
from supernet.runs import RESULTS, lock, new_run, write_json
from supernet.space import Arch


def run_gradient(job: Job, name: str) -> float:
    """Search with gradients. `name`: the algorithm's, for folders and figures. Returns the chosen top-1 on val, %.

    Raises:
        UserError: for wrong settings, losses that are not finite, or a supernet that cannot be mixed.
        KeyboardInterrupt: after Ctrl-C; the state is saved.
    """
    settings = _settings(job)
    folder = job.resumable() or new_run(job.root, name)
    job = job.saved_in(folder)
    describe(job, folder)
    with lock(folder), RunLog(folder) as log, saying_how_to_go_on(folder, log):
        for line in job.facts():
            log.say(line)
        log.say(f"folder: {folder}")
        if left := [measure for measure in job.budget.windows if measure == "memory_mb"]:
            log.say(f"note: {left[0]} is no sum over layers: the decoded subnet meets it, the loss does not know of it")
        return _search(job, settings, name, folder, log)


def _settings(job: Job) -> GradientSearch:
    """Checked against what cannot go together with it."""
    if job.ranks.world > 1:
        raise UserError("gradient-based search runs in one process: start it without torchrun")
    if job.settings.baseline is not None:
        raise UserError("baseline=random goes with searches that score subnets: run algorithm=random beside this one")
    if not isinstance(job.run.net, Supernet):
        raise UserError("gradient-based search needs one supernet (sharing=full); this checkpoint holds groups of them")
    if job.settings.stop_early:
        raise UserError(
            "stop_early=true goes with searches that score subnets: drop it, gradient-based search has none"
        )
    settings = GradientSearch.of(job.config["algorithm"], job.budget)
    settings.check_channels(job.run.net)
    settings.learns_weights(job.settings.is_fresh)
    return settings


def estimate(job: Job) -> list[str]:
    """Lines about the time that the search would take, from a few steps of it. They leave the weights changed.

    Raises:
        UserError: as `run_gradient` does.
    """
    settings = _settings(job)
    learn_weights = settings.learns_weights(job.settings.is_fresh)
    with TemporaryDirectory() as folder, RunLog(Path(folder), quiet=True) as log:
        learner = Learner(
            settings,
            job.run.net,
            job.images,
            job.budget,
            job.batch_size,
            job.settings.seed,
            learn_weights,
            Path(folder),
            log,
            {},
            job.settings.is_fresh,
        )
        both = learner.seconds_per_step(learn_arch=True)
        alone = learner.seconds_per_step(learn_arch=False) if learn_weights else 0.0
    per_epoch, total = learner.halves.steps_per_epoch, learner.total_steps
    learning = math.ceil((total - learner.warmup_epochs * per_epoch) / learner.arch_every)
    seconds = learning * both + (total - learning) * alone
    means = f"time per step: {both:.3f} s" + (f", {alone:.3f} s where the weights learn alone" if alone else "")
    lines = [means, f"estimated time: {seconds:.0f} s for {total:,} steps ({settings.epochs} epochs of {per_epoch})"]
    if tuning := settings.select.epochs(job.budget.space):
        more = tuning * per_epoch * both
        lines.append(f"selection: up to {more:.0f} s more for {tuning} epochs of tuning, besides the scores")
    return lines


def _search(job: Job, settings: GradientSearch, name: str, folder: Path, log: RunLog) -> float:
    net, fresh = job.run.net, job.settings.is_fresh
    if next(net.parameters()).device.type == "cpu":
        keep_freed_memory()
    learn_weights = settings.learns_weights(fresh)
    setup = job.setup()
    learner = Learner(
        settings,
        net,
        job.images,
        job.budget,
        job.batch_size,
        job.settings.seed,
        learn_weights,
        folder,
        log,
        setup,
        fresh,
    )
    if (folder / STATE).is_file():
        learner.restore()
    if not learn_weights:
        log.say("the weights stay: no warm-up, and updates of first order (nothing to look ahead to)")
    before = time.perf_counter()
    learner.run()
    arch = learner.select()
    seconds = learner.seconds
    log.say(f"learned in {seconds:.1f} s ({time.perf_counter() - before:.1f} s since the last start)")
    plot_trace(folder, learner.trace)
    net.requires_grad_(True)
    if settings.partial_channels > 1:
        log.say(
            "note: with partial channels only a part of the weights is trained: scores with inherited weights say "
            "little, train the subnet (the command below)"
        )
    if learn_weights:
        run_config = dict(job.run.config) if fresh else {**job.run.config, "algorithm": dict(job.config["algorithm"])}
        save_weights(folder, net, run_config, job.images, learner.step, {"kind": "search", "seconds": seconds})
    found = _scored(job, learner, arch, folder, log, job.setup() if learn_weights else setup)
    winner = ship(job, found.winner.arch, found.scores(), folder)
    where = folder / SUPERNET if learn_weights else job.run.source
    again = f"python search.py checkpoint={where} algorithm={name} algorithm.arch_from={folder} algorithm.epochs=0"
    files = {
        "probabilities.png": "the probabilities of every gene's options by epoch",
        "search.png": "losses of the mixture, entropy and expected cost by epoch",
        TRACE: "all of it, and the decoded subnet of every epoch",
    }
    files = {name: what for name, what in files.items() if (folder / name).exists()}
    write_report(job, found, None, winner, name, folder, files, f"{again} constraint.macs=<bound>")
    results = {
        "kind": "search",
        "algorithm": dict(job.config["algorithm"]),
        **about(job),
        **found.summary(),
        "learned_seconds": seconds,
        "steps": learner.step,
        "selected": arch.to_json(),
        "winner": winner,
        "baseline": None,
    }
    write_json(folder / RESULTS, results)
    if learner.trace.records:
        log.say(f"probabilities: {folder / 'probabilities.png'}, curves: {folder / 'search.png'}, by epoch: {TRACE}")
    if learn_weights:
        log.say(f"supernet: {folder / SUPERNET} (python search.py checkpoint={folder / SUPERNET})")
    conclude(job, folder, log, [row("chosen", found.winner.metrics, winner["metrics"])], winner, is_search=True)
    return float(found.validated[found.winner.arch].top1)


def _scored(job: Job, learner: Learner, arch: Arch, folder: Path, log: RunLog, setup: Mapping[str, Any]) -> Outcome:
    """The selected subnet and, with `candidates` > 1, the newest others that epochs decoded: the best on val wins."""
    archs: Sequence[Arch] = list(dict.fromkeys([arch, *learner.trace.archs()]))[: learner.settings.candidates]
    history = History(folder / TRIALS, job.budget.space, setup)
    evaluator = SupernetEvaluator(job.run.net, job.images, job.calibration_images, job.budget.costs)
    for candidate in archs:
        if candidate not in history.trials:
            (trial,) = evaluator([candidate])
            history.append(trial)
    trials = [history.trials[candidate] for candidate in archs]
    return Outcome(trials, *rescore(job, trials, log, "search"), 0)
