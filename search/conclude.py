"""What every run of search.py records about itself, and what it says at its end."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from search.constraint import range_of
from search.finish import EXPORT
from search.job import Job
from search.limits import LABELS, number, shown
from search.summary import checks
from supernet.errors import UserError
from supernet.log import RunLog
from supernet.restart import ENVIRONMENT, launcher
from supernet.runs import RESULTS, environment, read_json, typed, write_json


def describe(job: Job, folder: Path) -> None:
    """Save the configuration and the environment; a resumed search keeps those of its first start."""
    if not (folder / "config.json").exists():
        write_json(folder / "config.json", {**job.config, "checkpoint": str(job.run.source)})
    if not (folder / ENVIRONMENT).exists():
        write_json(folder / ENVIRONMENT, {**environment(), "launcher": launcher()})


def about(job: Job) -> dict[str, Any]:
    """What results say about the search's conditions."""
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


def row(name: str, price: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    """One line of the final table."""
    splits = ("search", "val", "test")
    top1 = [f"{metrics[split]['top1']:.2f}" if split in metrics else "-" for split in splits]
    return [name, number(price["macs"]), number(price["params"]), *top1]


def conclude(
    job: Job,
    folder: Path,
    log: RunLog,
    rows: Sequence[Sequence[str]],
    winner: Mapping[str, Any],
    is_search: bool,
) -> None:
    """Print the table, whether the budget holds, and what can be done next."""
    log.table("top-1 with inherited weights, %", ["subnet", "MACs", "params", "search", "val", "test"], rows)
    bounds = [value for key, value in job.config["constraint"].items() if key != "_target_"]
    asked = is_search or any(value not in (None, "auto") for value in bounds)
    for text, holds in checks(winner, job.budget.windows) if asked else []:
        log.say(f"budget:  {text}: {'ok' if holds else 'VIOLATED'}")
    if measured := winner.get("measured_latency"):
        verdict = "ok" if measured["within_budget"] else "VIOLATED, beyond the spread of the measurement"
        log.say(
            f"{LABELS['latency_ms']}: {measured['median_ms']:.4g} ms measured end to end (quartiles "
            f"{measured['iqr_ms']:.2g} ms apart), {shown('latency_ms', winner['latency_ms'])} predicted: {verdict}"
        )
    elif job.latency is not None:
        made = (job.latency.info.get("conditions") or {}).get("device_name") or "another device"
        log.say(f"{LABELS['latency_ms']}: not measured here, the model is one of {made}")
    log.say(f"results: {folder / RESULTS}")
    if is_search:
        log.say(f"front:   {folder / 'front.png'} (also .csv and .json)")
        front_row = f"arch={folder / 'front.json'}#0"
        words = ["python", "search.py", f"checkpoint={job.run.source}", *_data_overrides(), front_row]
        log.say(f"another: {shlex.join(words)}  (any row)")
    if (folder / "report.md").exists():
        log.say(f"report:  {folder / 'report.md'}")
    log.say(f"subnet:  {folder / EXPORT}")
    load = f"load_subnet({str(folder / EXPORT)!r})"
    log.say(f"use it:  from supernet import load_subnet; model = {load}")
    if not job.run.config:
        return
    tune = ["python", "train.py", *_training_overrides(job.run.folder), f"init_from={job.run.source}"]
    log.say(f"tune it: {shlex.join([*tune, f'arch={folder / EXPORT}/arch.json'])}")


def _data_overrides() -> list[str]:
    """What was typed about images, calibration and the space: another subnet needs the same."""
    kept = ("data=", "data.", "family=", "space.", "calibration_images=", "runs_dir=", "device=")
    return [word for word in typed()[1:] if word.lstrip("+").startswith(kept)]


def resume_command(folder: Path | None) -> str:
    """The command that was typed; with a `folder`, going on with the search in it."""
    overrides = [word for word in typed()[1:] if not word.startswith("resume=")]
    return shlex.join(["python", "search.py", *overrides, *([f"resume={folder}"] if folder else [])])


def begun_command(folder: Path) -> str:
    """The command that the search in `folder` was begun with."""
    words = _recorded(folder / "environment.json") or typed()[1:]
    return shlex.join(["python", "search.py", *(word for word in words if not word.startswith("resume="))])


def _training_overrides(run: Path) -> list[str]:
    """What the training was started with, so that fine-tuning has the same recipe and data."""
    saved = run / "environment.json"
    own = saved.is_file()
    if not own:  # a supernet that a search trained, in the search's folder
        saved = run.parent / "environment.json"
    words = [word for word in _recorded(saved) if own or word.lstrip("+").startswith(("data=", "data."))]
    dropped = ("name=", "resume=", "runs_dir=", "init=", "init_from=", "arch=", "seed=", "dry_run=")
    return [word for word in words if not word.startswith(dropped) and not word.endswith("=***") and word != "-m"]


def _recorded(environment_json: Path) -> list[str]:
    """What was typed, by such a file; nothing where it is missing or damaged: it only serves to give a hint."""
    try:
        argv = read_json(environment_json)["argv"]
    except (UserError, KeyError, TypeError):
        return []
    return [word for word in argv[1:] if isinstance(word, str)] if isinstance(argv, list) else []
