"""What every search algorithm must do, and that evolution is worth its name."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import yaml
from tiny import big_space, tiny_space

from search.ageing import Ageing
from search.algorithm import Algorithm, Trial, best_of, ranking
from search.coarse_to_fine import CoarseToFine
from search.constraint import Budget, Constraint
from search.evaluator import TableEvaluator
from search.evolution import Evolution
from search.predictor import Predictor
from search.random import Random
from supernet.construct import construct
from supernet.errors import UserError
from supernet.runs import config_dir
from supernet.space import Arch, Space
from supernet.window import enumerate_archs

FILES = sorted((config_dir() / "algorithm").glob("*.yaml"))
CONFIGS = [path for path in FILES if "defaults" not in yaml.safe_load(path.read_text())]  # those that ask and tell
BIG, TINY = big_space(), tiny_space()


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def make(request: pytest.FixtureRequest) -> Callable[[Budget, int], Algorithm]:
    config = yaml.safe_load(request.param.read_text())
    small = {key: 12 for key in ("population", "batch") if key in config}
    return lambda budget, seed: construct({**config, **small}, "algorithm", budget=budget, seed=seed)


def separable(space: Space, seed: int = 0) -> TableEvaluator:
    """Every option has a worth of its own that grows with the option: larger is better, unequally so."""
    rng = np.random.default_rng(seed)
    worth = [np.cumsum(rng.exponential(size=len(gene.options))) for gene in space.genes]

    def score(arch: Arch) -> dict[str, float]:
        return {"top1": float(sum(table[i] for table, i in zip(worth, space.encode(arch), strict=True)))}

    return TableEvaluator(score, Constraint().on(space).costs)


def play(algorithm: Algorithm, evaluator: TableEvaluator, sizes: list[int]) -> list[list[Arch]]:
    asked = []
    for n in sizes:
        asked.append(algorithm.ask(n))
        algorithm.tell(evaluator(asked[-1]))
    return asked


def best(algorithm: Algorithm, evaluator: TableEvaluator, count: int) -> float:
    asked = play(algorithm, evaluator, [algorithm.batch] * (count // algorithm.batch))
    return max(trial.metrics["top1"] for archs in asked for trial in evaluator(archs))


@pytest.mark.parametrize("constraint", [Constraint(macs="300M"), Constraint(macs=[0.3, 0.35], params="14M")])
def test_every_proposal_is_new_and_inside_the_budget(make: Any, constraint: Constraint) -> None:
    budget = constraint.on(BIG)
    archs = [arch for archs in play(make(budget, 0), separable(BIG), [12, 12, 12, 12]) for arch in archs]
    assert len(archs) == len(set(archs)) == 48
    assert not budget.excess(archs).any()


def test_no_constraint_works_too(make: Any) -> None:
    archs = [arch for archs in play(make(Constraint().on(BIG), 0), separable(BIG), [12, 12, 12]) for arch in archs]
    assert len(set(archs)) == 36


def test_the_seed_decides(make: Any) -> None:
    budget, evaluator = Constraint(macs=0.3).on(BIG), separable(BIG)
    first, again, other = (play(make(budget, seed), evaluator, [12] * 4) for seed in (0, 0, 1))
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_the_global_random_state_is_left_alone(make: Any) -> None:
    before = np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    play(make(Constraint(macs=0.3).on(BIG), 0), separable(BIG), [12, 12])
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index,union-attr]


def test_asking_for_more_begins_the_same(make: Any) -> None:
    """So that a search can be resumed with more evaluations."""
    budget, evaluator = Constraint(macs=0.3).on(BIG), separable(BIG)
    short = play(make(budget, 0), evaluator, [12, 12, 5])
    long = play(make(budget, 0), evaluator, [12, 12, 12])
    assert short[:2] == long[:2]
    assert short[2] == long[2][:5]


def test_a_small_space_is_exhausted_exactly(make: Any) -> None:
    budget = Constraint(macs=0.4).on(TINY)
    inside = {arch for arch in enumerate_archs(TINY) if budget.feasible(arch)}
    algorithm, evaluator = make(budget, 0), separable(TINY)
    archs = [arch for archs in play(algorithm, evaluator, [40] * (len(inside) // 40 + 2)) for arch in archs]
    assert len(archs) == len(inside)
    assert set(archs) == inside
    assert algorithm.ask(5) == []


def test_a_window_with_a_single_subnet(make: Any) -> None:
    smallest = TINY.plan(TINY.smallest()).macs
    archs = [
        arch for archs in play(make(Constraint(macs=smallest).on(TINY), 0), separable(TINY), [12, 12]) for arch in archs
    ]
    assert archs == [TINY.smallest()]


def test_evolution_starts_with_the_smallest_where_it_is_inside() -> None:
    assert TINY.smallest() in Evolution(Constraint(macs=0.5).on(TINY), 0).ask(8)
    assert TINY.smallest() not in Evolution(Constraint(macs=[0.5, 1]).on(TINY), 0).ask(8)


def test_evolution_beats_random_search_by_far() -> None:
    """On separable scores under a budget, in units of the spread of random subnets' scores."""
    budget, gains = Constraint(macs="600M").on(BIG), []
    for seed in range(4):
        evaluator = separable(BIG, seed)
        spread = np.std([t.metrics["top1"] for t in evaluator(budget.sample(np.random.default_rng(0), 300))])
        evolved, drawn = (best(kind(budget, seed), evaluator, 400) for kind in (Evolution, Random))
        gains.append((evolved - drawn) / spread)
    assert min(gains) > 0.4
    assert np.mean(gains) > 0.8


@pytest.mark.parametrize("kind", [Evolution, Ageing, CoarseToFine, Predictor], ids=lambda kind: kind.__name__)
def test_every_algorithm_but_random_finds_the_optimum_of_a_small_space(kind: Any) -> None:
    budget, evaluator = Constraint(macs=0.5).on(TINY), separable(TINY)
    scores = [t.metrics["top1"] for t in evaluator([a for a in enumerate_archs(TINY) if budget.feasible(a)])]
    hits = sum(best(kind(budget, seed), evaluator, 100) == max(scores) for seed in range(5))
    assert hits >= 4


def test_the_best_come_first_without_repeats() -> None:
    archs = list(islice(enumerate_archs(TINY), 4))
    scores = [(50.0, 2.0), (60.0, 3.0), (50.0, 1.0), (50.0, 2.0)]
    trials = [Trial(arch, {"top1": top1, "loss": loss}) for arch, (top1, loss) in zip(archs, scores, strict=True)]
    assert [archs.index(t.arch) for t in best_of([*trials, trials[1]], 10)] == [1, 2, 0, 3]
    assert best_of(trials, 1) == [trials[1]]


SETTINGS = {
    "random.Random": [{"batch": 0}],
    "evolution.Evolution": [
        {"population": 0},
        {"parents": 0},
        {"patience": 0},
        {"mutation_ratio": 1.5},
        {"mutation_prob": 0.0},
    ],
    "ageing.Ageing": [{"population": 0}, {"sample": 0}, {"batch": 0}],
    "nsga2.Nsga2": [
        {"population": 0},
        {"crossover_prob": -0.1},
        {"objectives": ["top1"]},
        {"objectives": ["top1", "x"]},
    ],
    "predictor.Predictor": [{"batch": 0}, {"explore": 2.0}, {"examples": 0}, {"generations": 0}, {"parents": 0}],
    "coarse_to_fine.CoarseToFine": [{"levels": 0}, {"skeletons": 0}, {"mutation_prob": 1.5}, {"batch": 0}],
}


@pytest.mark.parametrize(
    ("name", "setting"), [(name, setting) for name, settings in SETTINGS.items() for setting in settings], ids=str
)
def test_settings_out_of_range_are_named(name: str, setting: dict[str, Any]) -> None:
    config = {"_target_": f"search.{name}", **setting}
    with pytest.raises(UserError, match=f"algorithm: {next(iter(setting))}="):
        construct(config, "algorithm", budget=Constraint().on(TINY), seed=0)


def test_replaying_what_was_told_repeats_every_proposal(make: Any) -> None:
    """What resuming relies on: trials from the disk in place of the evaluator."""
    budget, evaluator = Constraint(macs=0.4).on(BIG), separable(BIG)
    asked = play(make(budget, 3), evaluator, [12] * 5)
    record = {trial.arch: trial for archs in asked for trial in evaluator(archs)}
    again = make(budget, 3)
    for archs in asked[:3]:
        assert again.ask(12) == archs
        again.tell([Trial(arch, dict(record[arch].metrics), seconds=9.0) for arch in archs])
    assert again.ask(12) == asked[3]


def test_evolution_learns_the_same_from_trials_told_together_and_one_by_one() -> None:
    """With many ties; and it starts again once the last improvement is `patience` trials ago, not before."""
    budget, scores = Constraint(macs=0.4).on(BIG), separable(BIG)
    together, apart, resting = (
        Evolution(budget, 0, population=12, parents=5, patience=patience) for patience in (1000, 1000, 24)
    )
    best, idle, restarted = (0.0, 0.0), 0, False
    for _ in range(12):
        archs = together.ask(12)
        assert apart.ask(12) == archs
        assert restarted or resting.ask(12) == archs
        trials = [Trial(t.arch, {"top1": min(round(t.metrics["top1"]), 40)}) for t in scores(archs)]
        together.tell(trials)
        for trial in trials:
            apart.tell([trial])
            better = ranking(trial) < best
            best, idle = (ranking(trial), 0) if better else (best, idle + 1)
        assert together.indifferent_below == apart.indifferent_below > 0
        if not restarted:
            resting.tell(trials)
            restarted = idle >= 24
            assert (resting.indifferent_below == float("-inf")) == restarted
    assert restarted


def test_equal_scores_and_a_wide_budget_stop_nothing(make: Any) -> None:
    flat = TableEvaluator(lambda arch: {"top1": 50.0}, Constraint().on(TINY).costs)
    archs = [arch for archs in play(make(Constraint().on(TINY), 0), flat, [100] * 5) for arch in archs]
    assert set(archs) == set(enumerate_archs(TINY))


def test_proposals_in_a_large_space(make: Any) -> None:
    """As many as are asked for, distinct, all inside the budget."""
    algorithm, evaluator = make(Constraint(macs=0.3).on(BIG), 0), separable(BIG)
    play(algorithm, evaluator, [50, 50])
    asked = algorithm.ask(50)
    assert len(set(asked)) == len(asked) == 50
    assert all(algorithm.budget.feasible(arch) for arch in asked)
