"""Another budget for a finished search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_space

from search.algorithm import Trial
from search.constraint import Constraint
from search.evaluator import TableEvaluator
from search.history import History, read_trials
from search.report import write_front
from search.reselect import reselect, validated_in
from supernet.errors import UserError
from supernet.window import enumerate_archs

SPACE = tiny_space()
WIDE = Constraint().on(SPACE)
RNG = np.random.default_rng(0)
SCORES = {arch: float(RNG.integers(800, 1000)) / 10 for arch in enumerate_archs(SPACE)}
TRIALS = TableEvaluator(lambda arch: {"top1": SCORES[arch], "loss": 1.0}, WIDE.costs)(list(SCORES)[::3])


def test_the_best_inside_the_new_budget_by_search_scores() -> None:
    budget = Constraint(macs=0.4, params=(0.2, 0.7)).on(SPACE)
    found = reselect(TRIALS, budget, {}, 5)
    inside = [trial for trial in TRIALS if budget.feasible(trial.arch)]
    assert 0 < len(inside) < len(TRIALS)
    assert found.feasible == inside
    assert found.winner.metrics["top1"] == max(trial.metrics["top1"] for trial in inside)
    assert found.split == "search"
    assert len(found.finalists) == 5


def test_the_validation_split_decides_where_all_finalists_have_it() -> None:
    found = reselect(TRIALS, WIDE, {}, 4)
    validated = {trial.arch: 70.0 + i for i, trial in enumerate(found.finalists)}
    again = reselect(TRIALS, WIDE, validated, 4)
    assert again.split == "val"
    assert again.winner == found.finalists[3]
    assert again.finalists == found.finalists[::-1]
    # Scores on different images are not compared: with one of them missing the search split decides.
    assert reselect(TRIALS, WIDE, validated, 5).split == "search"
    del validated[found.finalists[3].arch]
    assert reselect(TRIALS, WIDE, validated, 4).winner == found.winner
    equal = dict.fromkeys(validated, 70.0) | {found.finalists[3].arch: 70.0}
    assert reselect(TRIALS, WIDE, equal, 4).winner.metrics["macs"] == min(t.metrics["macs"] for t in found.finalists)


def test_a_trial_stopped_early_is_never_chosen() -> None:
    best = max(TRIALS, key=lambda trial: trial.metrics["top1"])
    stopped = Trial(best.arch, {**best.metrics, "top1": 100.0, "stopped_after": 10.0})
    others = [trial for trial in TRIALS if trial is not best]
    assert reselect([stopped, *others], WIDE, {stopped.arch: 100.0}, 3).winner in others
    with pytest.raises(UserError, match="holds no trials"):
        reselect([stopped], WIDE, {}, 3)


def test_an_infeasible_budget_names_the_nearest_trial() -> None:
    costs = [trial.metrics["macs"] for trial in TRIALS]
    least = int(np.argmin(costs))
    budget = Constraint(macs=min(costs) - 1).on(SPACE)
    shown = rf"none of the {len(TRIALS)} subnets .*number {least}, breaks MACs {min(costs):,} <= {min(costs) - 1:,}"
    with pytest.raises(UserError, match=shown):
        reselect(TRIALS, budget, {}, 3)


def test_everything_needed_is_in_the_folder(tmp_path: Path) -> None:
    history = History(tmp_path / "trials.jsonl", SPACE, {"seed": 0})
    for trial in TRIALS:
        history.append(trial)
    finalists = reselect(TRIALS, WIDE, {}, 6).finalists
    validated = {trial.arch: 60.0 + i for i, trial in enumerate(finalists)}
    assert validated_in(tmp_path, SPACE) == {}
    write_front(tmp_path, TRIALS, finalists[0], validated)
    assert read_trials(tmp_path / "trials.jsonl", SPACE, {"seed": 1}, WIDE.costs) == TRIALS
    with pytest.raises(UserError, match="scores of other weights"):
        read_trials(tmp_path / "trials.jsonl", SPACE, {"weights": "other"}, WIDE.costs)
    assert validated_in(tmp_path, SPACE) == validated
    (tmp_path / "front.json").write_text('{"rows": [{"arch": 3, "top1_val": 1.0}], "chosen": {"top1_val": null}}')
    with pytest.raises(UserError, match="damaged, or of another space"):
        validated_in(tmp_path, SPACE)
    with pytest.raises(UserError, match="name the folder of a search"):
        read_trials(tmp_path / "nothing.jsonl", SPACE, {}, WIDE.costs)
