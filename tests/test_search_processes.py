"""`search.py` in several processes: the same trials, the same winner and the same export as in one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from shared_training import as_rank, free_ports, started
from tiny_run import only_run, search_config, tiny_config

from search import runner
from search.algorithm import Trial
from search.evaluator import SupernetEvaluator
from supernet.job import main
from supernet.runs import read_json
from supernet.space import Arch

# Subnets that begin alike are scored together, in one process: the default.
WORDS = ("evaluations=23", "algorithm.population=10", "finalists=3", "cache=false", "constraint.macs=0.8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of a supernet with thousands of subnets."""
    folder = tmp_path_factory.mktemp("trained")
    small = ("train.epochs=1", "train.batch_size=1024", "train.eval_random=0", "data.size=16")
    main(tiny_config(folder, "space=mbv3_tiny", "space.resolution=[16]", "data.resolution=[16]", *small))
    return only_run(folder)


@pytest.fixture(scope="module")
def alone(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return searched(run, tmp_path_factory.mktemp("alone"))


def searched(run: Path, folder: Path) -> dict[str, Any]:
    """What a search of a copy of `run` comes to."""
    shutil.copytree(run, folder / run.name, ignore=shutil.ignore_patterns("search"))
    runner.main(search_config(folder / run.name, *WORDS))
    return kept(folder / run.name)


def kept(run: Path) -> dict[str, Any]:
    """Trials, winner and weights of the only search of `run`."""
    (folder,) = (run / "search").iterdir()
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()[1:]]
    return {
        "trials": [(line["arch"], line["metrics"]) for line in lines],
        "winner": {**read_json(folder / "results.json")["winner"], "export": None},
        "weights": (folder / "subnet" / "model.safetensors").read_bytes(),
    }


def part(rank: int, world: int, port: int, run: str, dies: bool) -> None:
    """One process, as torchrun would start it; the last one ends in the middle of the work if it `dies`."""
    as_rank(rank, world, port)
    os.environ |= {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0" if dies else "1"}
    score, calls = SupernetEvaluator.__call__, iter(range(100))

    def scoring(self: SupernetEvaluator, archs: Sequence[Arch]) -> list[Trial]:
        if next(calls) == 1 and dies and rank == world - 1:
            os._exit(7)
        return score(self, archs)

    SupernetEvaluator.__call__ = scoring  # type: ignore[method-assign]
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        runner.main(search_config(Path(run), *WORDS))


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_a_process_dies_all_are_started_again_and_end_like_one(
    run: Path, alone: dict[str, Any], tmp_path: Path, world: int
) -> None:
    copy = shutil.copytree(run, tmp_path / run.name, ignore=shutil.ignore_patterns("search"))
    codes = started(part, world, *free_ports(1), str(copy), True)
    assert codes[-1] == 7
    assert all(codes), "the others give up"
    (folder,) = (copy / "search").iterdir()
    begun = (folder / "trials.jsonl").read_text().splitlines()
    assert 1 < len(begun) < 1 + 23
    assert started(part, world, *free_ports(1), str(copy), False) == [0] * world
    found = kept(copy)
    assert len(found["trials"]) == 23
    assert found == alone
