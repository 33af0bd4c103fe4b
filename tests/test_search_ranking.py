"""Ranking diagnostics: cases by hand, invariants, independent counts."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from search.ranking import (
    CORRELATIONS,
    against_truth,
    agreement,
    bootstrap,
    kendall,
    ranks_of,
    spearman,
    summarise,
    ties,
    top_k,
    weighted_kendall,
)

X = np.random.default_rng(0).permutation(64).astype(float)


def test_the_hand_case() -> None:
    assert kendall([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(2 / 3)
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)


def test_tau_b_counts_ties() -> None:
    x, y = [1, 1, 2, 3, 3, 5], [2, 1, 2, 2, 4, 4]
    pairs = list(itertools.combinations(range(6), 2))
    sign = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in pairs]
    balance = sum(a * b for a, b in sign)
    untied = [sum(s[side] != 0 for s in sign) for side in (0, 1)]
    assert kendall(x, y) == pytest.approx(balance / math.sqrt(untied[0] * untied[1]))


@pytest.mark.parametrize("statistic", CORRELATIONS.values(), ids=CORRELATIONS)
def test_correlations_of_the_same_the_reverse_and_monotone_maps(statistic: object) -> None:
    assert callable(statistic)
    noisy = X + np.random.default_rng(1).normal(0, 8, 64)
    assert statistic(X, X) == pytest.approx(1)
    assert statistic(X, -X) == pytest.approx(-1)
    assert statistic(np.exp(noisy / 10), X**3) == pytest.approx(statistic(noisy, X))
    assert math.isnan(statistic(np.ones(64), X))
    assert math.isnan(statistic(X, np.ones(64)))
    assert math.isnan(statistic([1.0], [2.0]))


def test_the_weighted_tau_cares_for_the_top() -> None:
    true = np.arange(20.0)
    top, bottom = true.copy(), true.copy()
    top[[19, 18]], bottom[[0, 1]] = top[[18, 19]], bottom[[1, 0]]
    assert kendall(top, true) == kendall(bottom, true)
    assert weighted_kendall(top, true) < weighted_kendall(bottom, true) < 1


def test_ranks_and_ties() -> None:
    assert ranks_of([3.0, 9.0, 3.0, 1.0, 9.0]).tolist() == [3, 1, 3, 5, 1]
    assert ties([3.0, 9.0, 3.0, 1.0, 9.0]) == 4
    assert ties([1, 2, 3]) == 0


def test_the_choice_of_the_best_by_hand() -> None:
    true = [10.0, 20.0, 30.0, 40.0, 50.0]
    predicted = [1.0, 5.0, 2.0, 4.0, 3.0]  # order: 20, 40, 50, 30, 10
    first, second, third = (top_k(predicted, true, k) for k in (1, 2, 3))
    assert (first.precision, first.best_rank, first.regret, first.hit) == (0.0, 4, 30.0, False)
    assert (second.precision, second.best_rank, second.regret) == (0.5, 2, 10.0)
    assert (second.best_rank_share, second.worst_rank_share) == (2 / 5, 4 / 5)
    assert (third.precision, third.regret, third.hit) == (2 / 3, 0.0, True)


@pytest.mark.parametrize("seed", range(3))
def test_taking_all_finds_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true, predicted = rng.integers(10, size=30).astype(float), rng.integers(5, size=30)
    everything = top_k(predicted, true, 30)
    assert (everything.precision, everything.best_rank_share, everything.regret) == (1.0, 1 / 30, 0.0)
    assert everything.hit
    regrets = [top_k(predicted, true, k).regret for k in range(1, 31)]
    assert regrets == sorted(regrets, reverse=True)


def test_ties_between_predictions_are_broken_by_the_seed_not_by_the_order() -> None:
    true = np.arange(40.0)
    found = [top_k(np.zeros(40), true, 1, seed).best_rank for seed in range(200)]
    assert found == [top_k(np.zeros(40), true, 1, seed).best_rank for seed in range(200)]
    assert len(set(found)) > 30
    assert np.mean(found) == pytest.approx(20.5, abs=4 * 11.5 / math.sqrt(200))


@pytest.mark.parametrize("k", [0, 5, -1])
def test_an_impossible_k_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k={k}: must be from 1 to 4"):
        top_k([1, 2, 3, 4], [1, 2, 3, 4], k)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        kendall([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="finite"):
        kendall([1, math.nan], [1, 2])


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of a correlated normal pair tau is (2 / pi) asin(rho)."""
    rho, true_tau = 0.6, 2 / math.pi * math.asin(0.6)
    inside, widths = 0, []
    for seed in range(60):
        x, e = np.random.default_rng(seed).normal(size=(2, 60))
        low, high = bootstrap(kendall, x, rho * x + math.sqrt(1 - rho**2) * e, 120, seed)
        inside += low <= true_tau <= high
        widths.append(high - low)
    assert 50 <= inside <= 60
    assert 0.1 < np.mean(widths) < 0.4


def test_an_interval_of_nothing_is_not_a_number() -> None:
    assert all(map(math.isnan, bootstrap(kendall, np.ones(5), np.arange(5), 20)))


def test_agreement_of_copies_of_a_reversed_pair_and_of_chance() -> None:
    assert agreement([X, X, X]) == {"mean": 1.0, "max": 1.0, "min": 1.0}
    assert agreement([X, -X])["mean"] == -1.0
    rng = np.random.default_rng(3)
    taus = [agreement([rng.permutation(64), rng.permutation(64)])["mean"] for _ in range(300)]
    sd = math.sqrt(2 * (2 * 64 + 5) / (9 * 64 * 63))
    assert sd == pytest.approx(0.0856, abs=1e-4)
    assert np.std(taus) == pytest.approx(sd, rel=0.15)
    assert abs(np.mean(taus)) < 4 * sd / math.sqrt(300)
    mixed = agreement([X, X, -X])
    assert mixed == {"mean": pytest.approx(-1 / 3), "max": 1.0, "min": -1.0}
    with pytest.raises(ValueError, match="at least two"):
        agreement([X])


def test_against_the_truth() -> None:
    assert against_truth([X, -X], X) == {"mean": pytest.approx(0.0), "std": pytest.approx(1.0)}


def test_the_summary_looks_at_the_top_decile_on_its_own() -> None:
    """Right overall, reversed within the best tenth: what one number over all subnets hides."""
    true = np.arange(100.0)
    predicted = true.copy()
    predicted[90:] = predicted[90:][::-1]
    found = summarise(predicted, true, (1, 10, 1000), samples=50)
    assert found["all"]["kendall"]["value"] > 0.9
    assert found["top_decile"]["subnets"] == 10
    assert found["top_decile"]["kendall"]["value"] == pytest.approx(-1)
    low, high = found["all"]["kendall"]["interval"]
    assert low <= found["all"]["kendall"]["value"] <= high
    assert [row["k"] for row in found["top_k"]] == [1, 10, 100]
    assert found["top_k"][0]["regret"] == 9
    assert found["top_k"][1]["precision"] == 1
    assert found == summarise(predicted, true, (1, 10, 1000), samples=50)
    assert summarise(true[:20], true[:20], samples=5)["top_decile"] is None
