"""The front and its files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_space

from search.algorithm import Trial
from search.constraint import Constraint
from search.report import front, plot_front, write_front
from supernet.build import parse_arch
from supernet.window import enumerate_archs

SPACE = tiny_space()


def made_up(count: int, seed: int, steps: float = 0.5) -> list[Trial]:
    """Accuracy that saturates with MACs, plus noise, rounded to `steps` so that there are ties."""
    rng = np.random.default_rng(seed)
    archs = list(enumerate_archs(SPACE))
    trials = []
    for i in rng.permutation(len(archs))[:count]:
        plan = SPACE.plan(archs[i])
        top1 = 97.5 - 4e5 / plan.macs + rng.normal(0, 0.8)
        trials.append(Trial(archs[i], {"top1": round(top1 / steps) * steps, "macs": plan.macs, "params": plan.params}))
    return trials


def beats(a: Trial, b: Trial) -> bool:
    better = (a.metrics["macs"] <= b.metrics["macs"], a.metrics["top1"] >= b.metrics["top1"])
    return all(better) and (a.metrics["macs"], a.metrics["top1"]) != (b.metrics["macs"], b.metrics["top1"])


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_nothing_beats(seed: int) -> None:
    trials = made_up(120, seed)
    points = {(t.metrics["macs"], t.metrics["top1"]) for t in trials if not any(beats(o, t) for o in trials)}
    found = [(t.metrics["macs"], t.metrics["top1"]) for t in front(trials)]
    assert sorted(points) == found
    assert len(found) > 3


def test_one_trial_and_equal_trials() -> None:
    [trial] = made_up(1, 0)
    assert front([trial]) == [trial]
    twin = Trial(SPACE.smallest(), trial.metrics)
    assert front([trial, twin]) == [trial]
    assert front([]) == []


def test_files_hold_the_front_and_name_its_rows(tmp_path: Path) -> None:
    trials = made_up(60, 1)
    chosen = front(trials)[-1]
    rows = write_front(tmp_path, trials, chosen, {chosen.arch: 91.25})
    saved = json.loads((tmp_path / "front.json").read_text())
    assert saved["rows"] == rows
    assert saved["chosen"] == rows[-1]
    assert rows[-1]["top1_val"] == 91.25
    assert rows[0]["top1_val"] is None
    assert [parse_arch(SPACE, f"{tmp_path}/front.json#{i}") for i in range(len(rows))] == [
        t.arch for t in front(trials)
    ]
    with (tmp_path / "front.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["top1_search"]) for row in table] == [row["top1_search"] for row in rows]
    assert [SPACE.from_json(json.loads(row["arch"])) for row in table] == [t.arch for t in front(trials)]


@pytest.mark.parametrize("constraint", [Constraint(macs=0.5), Constraint(macs=[0.2, 0.6]), Constraint()], ids=str)
def test_the_picture_is_drawn(tmp_path: Path, constraint: Constraint) -> None:
    trials = made_up(80, 2)
    plot_front(tmp_path / "front.png", trials, front(trials)[-1], constraint.on(SPACE), made_up(60, 3), "evolution")
    plot_front(tmp_path / "alone.png", trials[:1], trials[0], constraint.on(SPACE), [], "random")
    for name in ("front.png", "alone.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
