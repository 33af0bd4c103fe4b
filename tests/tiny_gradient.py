"""Small gradient-based searches for tests: digits of 8 px, a space of three genes, two steps an epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tiny_run import assert_same, spaces

from search.begun import STATE
from search.gradient.learner import Learner
from search.gradient.search import GradientSearch
from search.job import open_job
from supernet import checkpoint
from supernet.log import RunLog
from supernet.runs import config_dir

ALGORITHMS = ("tangle", "darts", "drnas", "gdas", "snas", "proxyless", "rarts")
WORDS = (
    *("device=cpu", "data=digits", "data.size=8", "calibration_images=64", "test=false"),
    *("algorithm.epochs=2", "algorithm.warmup_epochs=0", "algorithm.batch_size=256", "algorithm.arch_lr=0.05"),
)
FRESH = "space=tiny"


def search_config(folder: Path, algorithm: str, *overrides: str) -> dict[str, Any]:
    """`configs/search.yaml` with this algorithm, small, and `overrides`, as `search.py` would compose it."""
    words = [f"hydra.searchpath=[file://{spaces(folder)}]", f"runs_dir={folder / 'runs'}", f"algorithm={algorithm}"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("search", [*words, *WORDS, *overrides]), resolve=True)
    return dict(config)


def make_learner(folder: Path, algorithm: str, *overrides: str, learn_weights: bool = True) -> Learner:
    """The learner of such a search, from initial weights, as `search.gradient.study` makes it."""
    job = open_job(search_config(folder, algorithm, FRESH, *overrides))
    settings = GradientSearch.of(job.config["algorithm"], job.budget)
    folder.mkdir(exist_ok=True)
    log = RunLog(folder, quiet=True)
    seed = job.settings.seed
    return Learner(settings, job.run.net, job.images, job.budget, job.batch_size, seed, learn_weights, folder, log, {})


def read_trace(folder: Path) -> list[dict[str, Any]]:
    """The records of a search, without what the clock decides."""
    records = [json.loads(line) for line in (folder / "trace.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def state_of(folder: Path) -> dict[str, Any]:
    """What a search has saved, without what the clock decides."""
    state = checkpoint.load(folder / STATE)
    return {key: value for key, value in state.items() if key not in ("seconds", "trace")}


def assert_same_search(actual: Path, expected: Path) -> None:
    """Weights, architecture parameters, optimizers, trace and chosen subnet agree bit for bit."""
    assert_same(state_of(actual), state_of(expected))
    assert read_trace(actual) == read_trace(expected)
    one, other = (json.loads((folder / "results.json").read_text()) for folder in (actual, expected))
    for key in ("selected", "steps"):
        assert one[key] == other[key], key
    assert one["winner"]["arch"] == other["winner"]["arch"]
    assert one["winner"]["metrics"] == other["winner"]["metrics"]


def random_state() -> bytes:
    """That of torch's global generator."""
    return torch.get_rng_state().numpy().tobytes()
