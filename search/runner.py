"""`python search.py`: what it is asked to do, by `mode` and by what is given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.job import Job, open_job
from search.selected import evaluate_and_export, select_again
from search.settings import check_config, is_gradient
from search.study import dry_run, run_study
from supernet.build import parse_arch
from supernet.distributed import TIMEOUT_S, joined
from supernet.errors import UserError
from supernet.restart import begun_before
from supernet.runs import RESULTS, read_json
from supernet.settings import LONGEST_S

MODES = ("search", "latency", "rank")


def main(config: Mapping[str, Any]) -> float:
    """Search, or evaluate and export the subnet that `arch` names; choose again `from` an earlier search; measure
    latency; or compare rankings. Returns the chosen subnet's top-1 on the validation split, %; the held-out error of a
    latency model, %; Kendall's tau-b of a ranking.

    Raises:
        UserError: for wrong settings, an impossible budget, missing or foreign files.
        KeyboardInterrupt: after Ctrl-C; every scored subnet is on the disk.
    """
    typed = config.get("overrides")
    config = {key: value for key, value in config.items() if key != "overrides"}
    check_config(config)
    limit = config["timeout_s"]  # checked below, where those that wait for each other have joined
    with joined(limit if isinstance(limit, int | float) and 0 < limit <= LONGEST_S else TIMEOUT_S) as ranks:
        mode = config["mode"]
        if mode not in MODES:
            raise UserError(f"mode={mode}: choose one of {', '.join(MODES)}")
        if mode != "search" and ranks.world > 1:
            raise UserError(f"mode={mode}: runs in one process, start it without torchrun")
        if mode == "latency":
            from search.latency.mode import main as measure

            return measure(config)
        if mode == "rank":
            return _rank(config)
        job = open_job(config, ranks, typed)
        return _chosen(job, config) if job.settings.arch or job.settings.reselect else _searched(job)


def _searched(job: Job) -> float:
    job.budget.check_reachable()
    if (top1 := job.ranks.once(lambda: _done_before(job))) is not None:
        return float(top1)
    algorithm = job.config["algorithm"]  # a resumed search may have its own, see `search.begun.as_begun`
    if is_gradient(algorithm) and not job.settings.dry_run:
        from search.gradient.study import run_gradient

        return run_gradient(job, algorithm.get("name", "gradient"))
    return dry_run(job) if job.settings.dry_run else run_study(job, algorithm)


def _done_before(job: Job) -> float | None:
    """The result, if an earlier start by the same launcher has finished: a process may fail when all is done."""
    folder = begun_before(job.root)
    if folder is None or not (folder / RESULTS).exists():
        return None
    print(f"{folder} was finished before this restart")
    return float(read_json(folder / RESULTS)["winner"]["metrics"]["val"]["top1"])


def _chosen(job: Job, config: Mapping[str, Any]) -> float:
    """One subnet, named or out of an earlier search; of several processes the first does it."""
    arch = job.settings.arch
    if arch is not None and job.settings.reselect is not None:
        raise UserError("arch= and from= both say which subnet: drop one of the two")
    if job.settings.resume is not None:
        raise UserError("from= evaluates nothing, there is nothing to resume: drop one of the two")
    parsed = None if arch is None else parse_arch(job.budget.space, arch)
    if job.settings.dry_run:
        return dry_run(job)
    if not job.ranks.first:
        return 0.0
    return select_again(job) if parsed is None else evaluate_and_export(job, parsed)


def _rank(config: Mapping[str, Any]) -> float:
    from search.rank_mode import rank

    if config["truth"] is None:
        raise UserError("mode=rank needs truth=<file>: JSON or CSV rows of arch and top1, known accuracies")
    if config["dry_run"]:
        raise UserError("mode=rank has no dry_run: it scores the subnets of truth=, nothing else")
    given = config["checkpoint"]
    checkpoints = list(given) if isinstance(given, list | tuple) else [given]
    return rank({**config, "mode": "search"}, checkpoints, Path(config["truth"]))
