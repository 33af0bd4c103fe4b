"""Scores of subnets: exact bounds where a pass stops early, and the same trials in any number of processes."""

from __future__ import annotations

import os
import socket
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from images import NoisyImages
from tiny import tiny_space
from torch import multiprocessing

from search.constraint import Constraint
from search.evaluator import SharedEvaluator, SupernetEvaluator, TableEvaluator, stopping
from search.evolution import Evolution
from search.history import History, is_complete
from search.loop import run_trials
from supernet.distributed import ALONE, Ranks, join
from supernet.errors import UserError
from supernet.evaluate import Metrics, Stopped, evaluate, evaluate_unless_below
from supernet.log import RunLog
from supernet.net import Supernet
from supernet.space import Arch
from supernet.window import enumerate_archs

SPACE = tiny_space()
BUDGET = Constraint(macs=0.5).on(SPACE)


def supernet() -> Supernet:
    torch.manual_seed(0)
    return Supernet(SPACE)


def evaluator() -> SupernetEvaluator:
    return SupernetEvaluator(supernet(), NoisyImages(batch=4), 32, BUDGET.costs)


class Scripted(torch.nn.Module):
    """Says class 0, so the targets decide what is right."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.images = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.images += len(x)
        return torch.eye(4)[:1].expand(len(x), 4) + self.weight


@pytest.mark.parametrize(("below", "seen"), [(0.0, 50), (60.0, 50), (60.1, 40), (80.1, 30), (90.1, 20), (100.1, 10)])
def test_a_pass_stops_as_soon_as_the_bound_is_out_of_reach(below: float, seen: int) -> None:
    # Right in each of the five batches of ten: 9, 9, 8, 4, 0; so at most 98, 96, 92, 80 and 60 percent.
    right = [9, 9, 8, 4, 0]
    batches = [(torch.zeros(10, 1), (torch.arange(10) >= count).long()) for count in right]
    highest = [98.0, 96.0, 92.0, 80.0, 60.0]
    model = Scripted()
    found = evaluate_unless_below(model, batches, 50, below)
    expected = next((i for i, high in enumerate(highest[:4]) if high < below), None)
    if expected is None:
        assert found == evaluate(Scripted(), batches) == Metrics(60.0, found.loss, 50)  # type: ignore[union-attr]
        return
    assert found == Stopped(100 * sum(right[: expected + 1]) / 50, highest[expected], 10 * (expected + 1))
    assert model.images == found.images


def test_a_stopped_trial_is_below_the_bound_and_others_are_unchanged() -> None:
    archs = list(islice(enumerate_archs(SPACE), 0, 384, 24))
    whole = evaluator()(archs)
    below = sorted(trial.metrics["top1"] for trial in whole)[len(whole) // 2]
    stopper = evaluator()
    found = stopping(stopper, below)(archs)
    stopped = [trial for trial in found if not is_complete(trial)]
    assert stopped
    for before, after in zip(whole, found, strict=True):
        if is_complete(after):
            assert after == before
        else:
            assert after.metrics["top1"] <= before.metrics["top1"] < below
            assert after.metrics["stopped_after"] < 110
            assert "loss" not in after.metrics
            assert after.metrics["macs"] == before.metrics["macs"]
    assert stopper(archs) == whole  # nothing of a stopped pass is kept


def test_only_evaluators_that_can_stop_are_stopped() -> None:
    with pytest.raises(ValueError, match="TableEvaluator cannot stop early"):
        stopping(TableEvaluator(lambda arch: {"top1": 1.0}, BUDGET.costs), 50.0)


def test_a_process_alone_exchanges_with_itself() -> None:
    assert join() == ALONE
    assert ALONE.map(lambda n: n * 2, [1, 2, 3]) == [2, 4, 6]
    assert ALONE.broadcast({"a": (1, 2.5)}) == {"a": [1, 2.5]}
    ALONE.barrier()
    ALONE.close()
    assert ALONE.device(torch.device("cuda")) == torch.device("cuda")
    assert Ranks(3, 4, 1).device(torch.device("cuda")) == torch.device("cuda", 1)
    assert Ranks(3, 4, 1).device(torch.device("cuda:2")) == torch.device("cuda:2")


def test_a_broken_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="RANK is not set: start it with torchrun"):
        join()


def search(folder: Path, ranks: Ranks, keep: int | None = None) -> History:
    """23 evaluations, which no number of processes divides."""
    history = History(folder / "trials.jsonl", SPACE, {"seed": 0}, ranks)
    own = evaluator()
    shared = SharedEvaluator(own, SPACE, ranks) if ranks.world > 1 else own
    with RunLog(folder, quiet=True) as log:
        run_trials(
            Evolution(BUDGET, 0, population=7), shared, history, 23, log, "test", at_once=4 * ranks.world, keep=keep
        )
    return history


def part(rank: int, world: int, port: int, folder: str) -> None:
    """One process of the test below."""
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = join()
    assert ranks == Ranks(rank, world, rank)
    assert ranks.gather({"rank": rank, "text": "x" * rank}) == [{"rank": r, "text": "x" * r} for r in range(world)]
    assert ranks.broadcast(rank + 5) == 5
    values = [0.1 * i for i in range(7)]
    done: list[float] = []

    def function(value: float) -> float:
        done.append(value)
        return value / 3

    assert ranks.map(function, values) == [value / 3 for value in values]
    assert done == values[rank::world]
    assert ranks.map(function, []) == []
    for name, keep in (("whole", None), ("stopping", 3), ("resumed", None)):
        history = search(Path(folder) / name, ranks, keep)
        assert len(history.trials) == 23
        everyone = ranks.gather([trial.to_json()["metrics"] for trial in history.trials.values()])
        assert all(metrics == everyone[0] for metrics in everyone)
    ranks.close()


def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    def record(folder: Path) -> list[Any]:
        return list(History(folder / "trials.jsonl", SPACE, {"seed": 0}).trials.values())

    for world in ("one", "two"):
        for name in ("whole", "stopping", "resumed"):
            (tmp_path / world / name).mkdir(parents=True)
    search(tmp_path / "one" / "whole", ALONE)
    search(tmp_path / "one" / "stopping", ALONE, keep=3)
    lines = (tmp_path / "one" / "whole" / "trials.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "two" / "resumed" / "trials.jsonl").write_bytes(b"".join(lines[:10]) + lines[10][:30])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(part, (2, port, str(tmp_path / "two")), nprocs=2)
    for name in ("whole", "stopping"):
        assert record(tmp_path / "two" / name) == record(tmp_path / "one" / name)
    assert record(tmp_path / "two" / "resumed") == record(tmp_path / "one" / "whole")
    assert any(not is_complete(trial) for trial in record(tmp_path / "one" / "stopping"))


def test_arch_is_plain(tmp_path: Path) -> None:
    """Trials cross between processes as JSON without losing anything."""
    arch: Arch = SPACE.smallest()
    [trial] = evaluator()([arch])
    assert ALONE.gather(trial.to_json())[0] == trial.to_json()
