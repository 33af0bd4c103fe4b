"""The front and its files."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_space

from search.algorithm import Trial
from search.constraint import Constraint, number
from search.pareto import OBJECTIVES, bounds, curves, hypervolume, losses
from search.report import front, plot_front, write_front, write_progress
from search.summary import Findings, checks, markdown
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


def with_latency(trials: list[Trial]) -> list[Trial]:
    rng = np.random.default_rng(9)
    return [Trial(t.arch, {**t.metrics, "latency_ms": float(rng.integers(5, 25))}) for t in trials]


@pytest.mark.parametrize("objectives", [("top1", "latency_ms"), ("macs", "params", "top1"), ("latency_ms", "macs")])
def test_a_front_in_any_objectives_is_what_nothing_beats(objectives: tuple[str, ...]) -> None:
    trials = with_latency(made_up(100, 4, steps=2.0))
    points = [tuple(-t.metrics[o] if o == "top1" else t.metrics[o] for o in objectives) for t in trials]
    beaten = {p for p in points for q in points if p != q and all(b <= a for a, b in zip(p, q, strict=True))}
    found = [points[trials.index(t)] for t in front(trials, objectives)]
    assert set(found) == set(points) - beaten
    assert len(found) == len(set(found)) > 1
    costs = [p[objectives.index(next(o for o in objectives if o != "top1"))] for p in found]
    assert costs == sorted(costs)


def test_trials_that_were_stopped_are_on_no_front() -> None:
    trials = made_up(30, 5)
    best = max(trials, key=lambda t: t.metrics["top1"])
    stopped = Trial(best.arch, {**best.metrics, "macs": 1, "stopped_after": 20})
    assert front([stopped, *trials]) == front(trials)
    assert curves([*trials, stopped], OBJECTIVES, *bounds(trials, OBJECTIVES))["top1"][-1] == best.metrics["top1"]


def test_objectives_that_cannot_be_are_refused() -> None:
    trials = made_up(5, 0)
    for wrong in (("top1",), ("top1", "macs", "params", "loss"), ("macs", "macs")):
        with pytest.raises(ValueError, match="two or three"):
            front(trials, wrong)
    with pytest.raises(ValueError, match="'latency_ms' is not among the metrics"):
        front(trials, ("top1", "latency_ms"))


def test_hypervolumes_by_hand() -> None:
    one = np.array([3.0, 4.0])
    assert hypervolume(np.array([[1.0, 1.0]]), one) == 2 * 3
    assert hypervolume(np.array([[1.0, 3.0], [2.0, 1.0]]), one) == 2 * 1 + 1 * 2
    assert hypervolume(np.array([[1.0, 4.0], [5.0, 0.0]]), one) == 0
    assert hypervolume(np.array([[1.0, 2.0, 3.0]]), np.array([4.0, 4.0, 4.0])) == 3 * 2 * 1
    assert hypervolume(np.empty((0, 2)), one) == 0


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_hypervolume_counts_the_cells_that_are_dominated(dimensions: int) -> None:
    """On a grid of whole numbers the volume is the number of unit cells above some point."""
    rng = np.random.default_rng(dimensions)
    for _ in range(10):
        points = rng.integers(0, 8, size=(12, dimensions)).astype(float)
        cells = np.stack(np.meshgrid(*[np.arange(7)] * dimensions, indexing="ij"), axis=-1).reshape(-1, dimensions)
        above = (points[:, None] <= cells[None]).all(axis=2).any(axis=0).sum()
        assert hypervolume(points, np.full(dimensions, 7.0)) == above


def test_progress_never_falls_and_ends_at_the_front() -> None:
    trials = with_latency(made_up(60, 6))
    objectives = ("top1", "macs", "latency_ms")
    best, worst = bounds(trials, objectives)
    reached = curves(trials, objectives, best, worst)
    for values in reached.values():
        assert len(values) == 60
        assert values == sorted(values)
    scaled = (losses(front(trials, objectives), objectives) - best) / (worst - best)
    assert reached["hypervolume"][-1] == pytest.approx(hypervolume(scaled, np.ones(3)))
    assert 0 < reached["hypervolume"][-1] < 1
    assert reached["top1"][-1] == max(t.metrics["top1"] for t in trials)
    flat = curves(trials[:1], OBJECTIVES, *bounds(trials[:1], OBJECTIVES))
    assert flat["hypervolume"] == [0.0]


def test_progress_is_written_beside_the_baseline(tmp_path: Path) -> None:
    trials, baseline = made_up(40, 7), made_up(25, 8)
    write_progress(tmp_path, trials, baseline, "evolution")
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    assert [float(row["evolution: top1"]) for row in rows][-1] == max(t.metrics["top1"] for t in trials)
    assert float(rows[24]["random search: hypervolume"]) > 0
    assert rows[25]["random search: top1"] == ""
    assert (tmp_path / "progress.png").read_bytes().startswith(b"\x89PNG")


def test_three_objectives_are_written_and_drawn(tmp_path: Path) -> None:
    trials = with_latency(made_up(50, 9))
    objectives = ("top1", "latency_ms", "macs")
    chosen = front(trials, objectives)[0]
    finalists = {chosen.arch: 90.0, trials[0].arch: 80.0}
    rows = write_front(tmp_path, trials, chosen, finalists, objectives)
    saved = json.loads((tmp_path / "front.json").read_text())
    assert saved["objectives"] == ["latency_ms", "macs", "top1_search"]
    assert {row["latency_ms"] for row in rows} == {t.metrics["latency_ms"] for t in front(trials, objectives)}
    assert sorted(row["top1_val"] for row in saved["finalists"]) == [80.0, 90.0]
    budget = Constraint(macs=0.5).on(SPACE)
    plot_front(tmp_path / "front.png", trials, chosen, budget, trials[:9], "nsga2", objectives)
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_states_every_bound_and_whether_it_holds() -> None:
    trials = made_up(60, 1)
    budget = Constraint(macs=0.5, params=(0.2, 0.8)).on(SPACE)
    inside = [t for t in trials if budget.feasible(t.arch)]
    chosen = max(inside, key=lambda t: t.metrics["top1"])
    found = Findings(
        checkpoint="runs/train/one",
        algorithm="evolution",
        budget=budget,
        trials=trials,
        chosen=chosen,
        validated={t.arch: 90.0 + i for i, t in enumerate(inside[:3])},
        metrics={"val": {"top1": 91.5}, "test": {"top1": 90.25}},
        calibration_images=64,
        images={"search": 1000, "val": 2000},
        baseline=trials[:10],
        reused=7,
        files={"front.png": "the front"},
        commands={"Another subnet of the front": "python search.py arch=front.json#0"},
    )
    text = markdown(found)
    macs, params = (window[1] for window in budget.windows.values())
    costs = budget.costs(chosen.arch)
    for words in (
        "Search of `runs/train/one`",
        "scored 60 of the 384 subnets",
        "7 of these scores were taken from earlier searches",
        f"- MACs {number(costs['macs'])} <= {number(macs)}: ok",
        f"<= params {number(costs['params'])} <= {number(params)}: ok",
        "| test | 90.25 |",
        "| 1 | ",
        "| random search | 10 |",
        "![the front](front.png)",
        "python search.py arch=front.json#0",
        json.dumps(chosen.arch.to_json()),
    ):
        assert words in text
    assert "violated" not in text
    wrong = next(t for t in trials if not budget.feasible(t.arch))
    assert "**violated**" in markdown(replace(found, chosen=wrong))
    measured = markdown(replace(found, measured={"macs": macs * 2}))
    assert f"- measured: MACs {number(macs * 2)} <= {number(macs)}: **violated**" in measured


def test_bounds_that_look_equal_are_shown_in_full() -> None:
    window = {"macs": (float("-inf"), 300e6)}
    assert checks({"macs": 300_000_001}, window) == [("MACs 300,000,001 <= 300,000,000", False)]
    assert checks({"macs": 283_000_000}, window) == [("MACs 283M <= 300M", True)]
    assert checks({"latency_ms": 12.34}, {"latency_ms": (5.0, 15.0)}) == [("5 ms <= latency 12.34 ms <= 15 ms", True)]
