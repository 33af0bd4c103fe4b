"""What is particular to each algorithm: ageing, fronts, the fitted model, the grid of skeletons, fresh starts."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import big_space, tiny_space

from search.ageing import Ageing
from search.algorithm import Trial
from search.coarse_to_fine import CoarseToFine, skeleton_rows
from search.codes import Codes
from search.constraint import Constraint, encoded
from search.evolution import Evolution
from search.nsga2 import Nsga2, costs, survive
from search.predictor import Predictor, fit, merge, one_hot
from supernet.space import Arch
from supernet.window import enumerate_archs

BIG, TINY = big_space(), tiny_space()
EVERY = list(enumerate_archs(TINY))


def trial(arch: Arch, top1: float) -> Trial:
    return Trial(arch, {"top1": top1})


def test_ageing_forgets_the_oldest_even_if_it_is_the_best() -> None:
    algorithm = Ageing(Constraint().on(TINY), 0, population=10, sample=10, batch=10)
    first = algorithm.ask(10)
    algorithm.tell([trial(arch, 99.0 if i == 0 else i) for i, arch in enumerate(first)])
    second = algorithm.ask(10)
    distance = [len(differences(first[0], arch)) for arch in second]
    assert np.median(distance) <= 2  # children of the best, a few of the others
    algorithm.tell([trial(arch, 1.0) for arch in second])
    assert first[0] not in [living.arch for living in algorithm._living]


def differences(a: Arch, b: Arch) -> list[int]:
    return [i for i, (x, y) in enumerate(zip(TINY.encode(a), TINY.encode(b), strict=True)) if x != y]


def test_evolution_starts_again_where_it_has_come_to_rest() -> None:
    algorithm = Evolution(Constraint().on(BIG), 0, population=10, parents=2, mutation_ratio=1.0, patience=30)
    first = algorithm.ask(10)
    algorithm.tell([trial(arch, 90.0) for arch in first])
    near = []
    for step in range(5):
        asked = algorithm.ask(10)
        distances = np.abs(encoded(BIG, asked)[:, None] - encoded(BIG, first)[None])
        near.append(float(np.median((distances > 0).sum(axis=2).min(axis=1))))
        algorithm.tell([trial(arch, 50.0) for arch in asked])
        assert len(asked) == 10, step
    assert 2 * max(near[:3]) < near[3], near  # 10 + 3 · 10 evaluations, 30 of them and more idle: random again


def test_survival_is_by_rank_and_then_by_crowding() -> None:
    points = np.array([[0, 10], [1, 9], [1.1, 8.9], [5, 5], [10, 0], [6, 6], [11, 11]], dtype=float)
    kept, order = survive(points, 4)
    assert set(kept) >= {0, 4, 3}  # the ends and the lonely one
    assert len(set(kept) & {1, 2}) == 1  # of the crowded pair one
    assert all(rank == 0 for rank, _ in order)
    assert set(survive(points, 6)[0]) == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("objectives", [("top1", "macs"), ("top1", "macs", "params")])
def test_nsga2_finds_most_of_the_front(objectives: tuple[str, ...]) -> None:
    budget = Constraint().on(TINY)
    rng = np.random.default_rng(0)
    worth = [np.cumsum(rng.exponential(size=len(gene.options))) for gene in TINY.genes]

    def score(arch: Arch) -> Trial:
        top1 = float(sum(table[i] for table, i in zip(worth, TINY.encode(arch), strict=True)))
        return Trial(arch, {"top1": top1, **budget.costs(arch)})

    everything = [score(arch) for arch in EVERY]
    values = costs(everything, objectives)
    beaten = ((values[:, None] >= values).all(axis=2) & (values[:, None] > values).any(axis=2)).any(axis=1)
    front = {t.arch for t, bad in zip(everything, beaten, strict=True) if not bad}
    assert len(front) < 200
    shares = []
    for seed in range(3):
        algorithm, found = Nsga2(budget, seed, objectives=objectives, population=20), set()
        for _ in range(8):
            asked = algorithm.ask(20)
            algorithm.tell([score(arch) for arch in asked])
            found |= set(asked)
        shares.append(len(found & front) / len(front))
    assert np.mean(shares) > 1.5 * 160 / len(EVERY)  # random search finds 42%


def test_the_model_is_ridge_regression_and_its_error_is_leave_one_out() -> None:
    codes = Codes(Constraint().on(TINY))
    rows = encoded(TINY, [EVERY[i] for i in np.random.default_rng(0).permutation(len(EVERY))[:60]])
    effects = np.random.default_rng(1).normal(size=one_hot(codes, rows).shape[1])
    noise = np.random.default_rng(2).normal(size=60)
    scores = one_hot(codes, rows) @ effects + noise
    model = fit(codes, rows, scores)
    assert model.width is None  # the truth is additive: the linear kernel wins
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.model_selection import LeaveOneOut, cross_val_predict

    standard, inputs = (scores - scores.mean()) / scores.std(), one_hot(codes, rows)
    errors = []
    for penalty in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        reference = KernelRidge(alpha=penalty, kernel="linear", gamma=None)
        predicted = cross_val_predict(reference, inputs / np.sqrt(len(TINY.genes)), standard, cv=LeaveOneOut())
        errors.append(np.sqrt(np.mean((predicted - standard) ** 2)))
    assert model.error == pytest.approx(min(errors), rel=1e-6)
    best = KernelRidge(alpha=(1e-4, 1e-3, 1e-2, 1e-1, 1.0)[int(np.argmin(errors))])
    best.fit(inputs / np.sqrt(len(TINY.genes)), standard)
    others = encoded(TINY, EVERY)
    expected = best.predict(one_hot(codes, others) / np.sqrt(len(TINY.genes))) * scores.std() + scores.mean()
    np.testing.assert_allclose(model(others), expected, atol=1e-8)


def test_the_model_is_an_rbf_where_genes_interact() -> None:
    codes = Codes(Constraint().on(TINY))
    rows = encoded(TINY, [EVERY[i] for i in np.random.default_rng(0).permutation(len(EVERY))[:250]])
    scores = np.where((rows[:, 0] > 0) ^ (rows[:, 1] > 0), 1.0, -1.0) * (1 + rows[:, 2])
    assert fit(codes, rows, scores).width is not None


def test_genes_that_do_not_count_are_zero_for_the_model() -> None:
    codes = Codes(Constraint().on(BIG))
    rows = codes.draw(np.random.default_rng(0), 50)
    inputs = one_hot(codes, rows)
    np.testing.assert_array_equal(inputs, one_hot(codes, codes.canonical(rows)))
    np.testing.assert_array_equal(inputs.sum(axis=1), codes.counting(rows).sum(axis=1))


def test_merging_keeps_both_orders_the_share_and_the_beginning() -> None:
    main, beside = np.arange(10)[:, None], np.array([[20], [3], [21]])
    merged = merge(main, beside, 0.25, 8)[:, 0].tolist()
    assert merged == [0, 1, 2, 20, 3, 4, 5, 21]
    assert merge(main, beside, 0.25, 5)[:, 0].tolist() == merged[:5]
    assert len(merge(main, beside, 0.25, 50)) == 12
    assert merge(main[:0], beside, 0.25, 3)[:, 0].tolist() == [20, 3, 21]


def test_the_predictor_needs_fewer_evaluations_than_evolution() -> None:
    budget, results = Constraint(macs="600M").on(BIG), {}
    for seed in range(3):
        worth = [np.random.default_rng([seed, i]).normal(size=len(gene.options)) for i, gene in enumerate(BIG.genes)]
        for kind in (Predictor, Evolution):
            algorithm, top = kind(budget, seed), -np.inf
            for _ in range(8):
                told = [
                    trial(arch, float(sum(w[i] for w, i in zip(worth, BIG.encode(arch), strict=True))))
                    for arch in algorithm.ask(20)
                ]
                top = max(top, *(t.metrics["top1"] for t in told))
                algorithm.tell(told)
            results[seed, kind.__name__] = top
    assert all(results[seed, "Predictor"] > results[seed, "Evolution"] for seed in range(3))


def test_the_grid_has_one_level_per_knob_and_exactly_their_product() -> None:
    rows = skeleton_rows(TINY, levels=3, most=1000)
    keys = [gene.key for gene in TINY.genes]
    counts = {key: min(3, max(len(g.options) for g in TINY.genes if g.key == key)) for key in keys}
    assert len(rows) == np.prod(list(counts.values()))
    for key in counts:
        free = [(i, len(g.options) - 1) for i, g in enumerate(TINY.genes) if g.key == key and len(g.options) > 1]
        levels = [[row[i] / last for i, last in free] for row in rows.tolist()]
        assert all(max(level, default=0) - min(level, default=0) <= 0.5 for level in levels)
    assert rows.max(axis=0).tolist() == [len(gene.options) - 1 for gene in TINY.genes]
    assert len(skeleton_rows(BIG, 5, 100)) <= 100
    one = skeleton_rows(BIG, 1, 100)
    assert [BIG.decode(row) for row in one.tolist()] == [BIG.largest()]


def test_coarse_to_fine_scores_every_skeleton_inside_first_and_then_climbs() -> None:
    budget = Constraint(macs=0.6).on(TINY)
    grid = {arch for arch in Codes(budget).archs(skeleton_rows(TINY, 3, 100)) if budget.feasible(arch)}
    algorithm = CoarseToFine(budget, 0, levels=3, skeletons=100)
    asked = algorithm.ask(len(grid))
    assert set(asked) == grid
    algorithm.tell([trial(arch, 60.0 if arch == asked[3] else 50.0) for arch in asked])
    assert np.median([len(differences(asked[3], arch)) for arch in algorithm.ask(5)]) <= 2


def test_words_for_objectives() -> None:
    with pytest.raises(ValueError, match="there is no 'latency_ms'"):
        Nsga2(Constraint().on(TINY), 0, objectives=["top1", "latency_ms"])
    values = costs([Trial(EVERY[0], {"top1": 70.0, "macs": 5})], ["top1", "macs"])
    assert values.tolist() == [[-70.0, 5.0]]
