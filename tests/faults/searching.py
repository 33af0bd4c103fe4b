"""The search that the faults happen to, how it goes on, and what it must come to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tiny_run import REPOSITORY
from zygote import Zygote

from supernet import checkpoint
from supernet.runs import read_json

# All eight subnets of the space, each scored by itself and at once on the disk.
SETTINGS = (
    *("evaluations=8", "algorithm.population=4", "finalists=3", "constraint.macs=1.0", "cache=false", "reuse_mb=0"),
    *("eval_batch=null", "device=cpu"),
)


def searching(run: Path, *overrides: str) -> list[str]:
    """The command line of a search of the supernet of `run`."""
    return [str(REPOSITORY / "search.py"), f"checkpoint={run}", f"runs_dir={run.parent.parent}", *SETTINGS, *overrides]


def copied(run: Path, folder: Path) -> Path:
    """A copy of a run below `folder`, to search and to damage."""
    return Path(shutil.copytree(run, folder / "runs" / "train" / run.name))


def only_search(run: Path) -> Path:
    """The one search of the supernet of `run`."""
    (found,) = (folder for folder in (run / "search").iterdir() if folder.is_dir())
    return found


def trials(search: Path) -> list[tuple[Any, Any]]:
    """Subnets with their metrics, in order; a last line that was cut is none."""
    lines = (search / "trials.jsonl").read_bytes().split(b"\n")[1:-1]
    return [(data["arch"], data["metrics"]) for data in map(json.loads, lines)]


def ends_like(zygote: Zygote, run: Path, whole: Path, known: int) -> None:
    """Continue the only search of `run`, which knows so many scores, to its end: nothing tells it from `whole`."""
    search = only_search(run)
    assert len(trials(search)) == known
    assert trials(search) == trials(whole)[:known]
    assert not (search / "results.json").exists()
    assert not (search / "subnet").exists()
    ended = zygote.run(searching(run, f"resume={search}"))
    assert (ended.code, ended.err) == (0, ""), ended.text
    same_end(search, whole)


def same_end(search: Path, whole: Path) -> None:
    """Two finished searches agree in trials, front, winner and exported subnet, and nothing is left over."""
    assert trials(search) == trials(whole)
    assert read_json(search / "front.json") == read_json(whole / "front.json")
    winner, expected = (read_json(folder / "results.json")["winner"] for folder in (search, whole))
    assert {**winner, "export": ""} == {**expected, "export": ""}
    same_export(search / "subnet", whole / "subnet")
    assert not [path for pattern in (".*.tmp", ".*.partial", ".*.old") for path in search.rglob(pattern)]


def same_export(subnet: Path, whole: Path) -> None:
    """Two exported subnets are the same but for where they come from."""
    assert {path.name for path in subnet.iterdir()} == {path.name for path in whole.iterdir()}
    config, expected = (read_json(folder / "config.json") for folder in (subnet, whole))
    assert {**config, "provenance": {}} == {**expected, "provenance": {}}
    for name in ("model.safetensors", "arch.json"):
        assert (subnet / name).read_bytes() == (whole / name).read_bytes(), name


def train_on(run: Path) -> None:
    """Change the weights of a checkpoint, as further training would."""
    state = checkpoint.load(run / "checkpoint.pt")
    next(iter(state["model"].values())).add_(1)
    next(iter(state["ema"].values())).add_(1)
    checkpoint.save(run / "checkpoint.pt", state)
