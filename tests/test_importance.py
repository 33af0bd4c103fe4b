"""Path importance sampling: probabilities, weights, running scores, and what a checkpoint brings back."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import nn
from toy_paths import (
    HORIZON,
    SCORES,
    TINY,
    archs_of,
    drawn,
    no_loss,
    observed,
    plant,
    probability,
    real_gradients,
    sampler,
    uniform_probability,
)

from supernet.paths.importance import Importance
from supernet.paths.uniform import Uniform
from supernet.space import Arch, Gene, Space

# Probabilities ----------------------------------------------------------------------------------------------------


def test_tau_0_is_uniform_sampling_draw_by_draw() -> None:
    made = sampler(TINY, {gene.name: (1.0, 9.0) for gene in TINY.genes}, tau=0.0)
    uniform = Uniform(TINY, 7, HORIZON)
    for step in range(30):
        assert made.draw(step, 2, no_loss) == uniform.draw(step, 2, no_loss)
    for position in made.indicators.sites:
        options = len(TINY.genes[position].options)
        assert made.probabilities[TINY.genes[position].name] == [1 / options] * options


@pytest.mark.parametrize("scores", [None, SCORES])
def test_draws_follow_the_probabilities(scores: Any) -> None:
    made = sampler(scores=scores, tau=0.5)
    archs = archs_of(made.space)
    seen = Counter(path.arch for path in drawn(made, range(10), count=600))
    expected = [6000 * probability(made, arch) for arch in archs]
    assert chisquare([seen[arch] for arch in archs], expected).pvalue > 1e-3
    uniform = [6000 * uniform_probability(made.space, arch) for arch in archs]
    is_uniform = chisquare([seen[arch] for arch in archs], uniform).pvalue > 1e-3
    assert is_uniform == (scores is None)


def test_genes_have_the_mass_of_their_scores_over_a_floor() -> None:
    made = sampler(scores=SCORES, tau=0.8)
    drawn(made, [0])
    for name, scores in SCORES.items():
        expected = [0.8 * score / sum(scores) + 0.2 / len(scores) for score in scores]
        assert made.probabilities[name] == pytest.approx(expected)
    made = sampler(scores={"op": (0.0, 0.0, 5.0)}, tau=0.8)
    drawn(made, [0])
    assert made.probabilities["op"] == pytest.approx([0.2 / 3, 0.2 / 3, 0.8 + 0.2 / 3])
    assert min(made.probabilities["op"]) >= 0.2 / 3 - 1e-12


def test_twice_the_score_ends_with_twice_the_mass() -> None:
    made = sampler(tau=1.0)
    codes = {(0, op, 0, 0, 0): {"op": 2.0 if op == 1 else 1.0} for op in range(3)}
    observed(made, codes, rounds=40)
    drawn(made, [10])
    assert made.probabilities["op"] == pytest.approx([0.25, 0.5, 0.25])
    seen = Counter(path.arch["op"] for path in drawn(made, range(10, 20), count=400))
    assert seen["pool"] / (seen["none"] + seen["conv"]) == pytest.approx(1.0, abs=0.08)


def test_options_that_cannot_be_scored_count_as_the_mean_never_as_0() -> None:
    made = sampler(tau=1.0)
    observed(made, {(0, 1, 0, 0, 0): {"op": 1.0}, (0, 2, 0, 0, 0): {"op": 4.0}})
    drawn(made, [10])
    assert made.probabilities["op"] == pytest.approx([2.5 / 7.5, 1 / 7.5, 4 / 7.5])
    assert made.probabilities["depth"] == [0.5, 0.5]  # none of its options was seen


def test_scores_that_are_all_0_are_uniform() -> None:
    made = sampler(scores={"op": (0.0, 0.0, 0.0), "depth": (0.0,)}, tau=1.0)
    drawn(made, [0])
    assert made.probabilities["op"] == pytest.approx([1 / 3] * 3)
    assert made.probabilities["depth"] == [0.5, 0.5]


def test_tau_grows_with_the_run_up_to_its_limit_after_a_uniform_beginning() -> None:
    made = sampler(warmup_epochs=2, tau_max=0.45)
    taus = []
    for epoch in range(10):
        drawn(made, [10 * epoch, 10 * epoch + 9])
        taus.append(made.report()["tau"])
    assert taus == pytest.approx([0, 0, 0.2, 0.3, 0.4, 0.45, 0.45, 0.45, 0.45, 0.45])


def test_the_beginning_is_that_of_the_sampler_not_of_the_run() -> None:
    made = sampler(warmup_epochs=1.0)  # of a phase that starts in the middle of epoch 4
    taus = {}
    for step in (45, 49, 50, 59, 60):
        drawn(made, [step])
        taus[step] = made.report()["tau"]
    assert taus == {45: 0, 49: 0, 50: 0, 59: 0, 60: 0.6}


def test_probabilities_change_between_epochs_only() -> None:
    made = sampler(scores=SCORES, tau=0.5)
    drawn(made, [0])
    before = made.probabilities
    plant(made, {"op": (9.0, 1.0, 1.0)})
    drawn(made, [9])
    assert made.probabilities == before
    drawn(made, [10])
    assert made.probabilities["op"][0] == pytest.approx(0.5 * 9 / 11 + 0.5 / 3)


# Running scores ---------------------------------------------------------------------------------------------------


def score_of(made: Importance, option: int) -> float:
    sums, weights = made.state_dict()["scores"][:, 0, option].tolist()
    return sums / weights  # type: ignore[no-any-return]


def test_running_scores_are_corrected_for_their_start() -> None:
    made = sampler(ema=0.9)
    expected, weight = 0.0, 0.0
    for value in (5.0, 1.0, 2.0):
        observed(made, {(0, 1, 0, 0, 0): {"op": value}})
        expected, weight = 0.9 * expected + 0.1 * value, 0.9 * weight + 0.1
        assert score_of(made, 1) == pytest.approx(expected / weight)
    made = sampler(ema=0.9)
    observed(made, {(0, 1, 0, 0, 0): {"op": 5.0}})
    assert score_of(made, 1) == pytest.approx(5.0)


def test_published_scores_are_halved_sums_that_restart_every_epoch() -> None:
    made = sampler(ema="halved", restart=True, tau=1.0)
    observed(made, {(0, 1, 0, 0, 0): {"op": 8.0}})
    assert score_of(made, 1) == 4.0
    observed(made, {(0, 1, 0, 0, 0): {"op": 2.0}, (0, 2, 0, 0, 0): {"op": 2.0}, (0, 0, 0, 0, 0): {"op": 4.0}})
    assert [score_of(made, option) for option in range(3)] == [2.0, 3.0, 1.0]
    drawn(made, [10])
    assert made.probabilities["op"] == pytest.approx([2 / 6, 3 / 6, 1 / 6])
    assert not made.state_dict()["scores"].any()
    drawn(made, [20])
    assert made.probabilities["op"] == pytest.approx([1 / 3] * 3)


def test_scores_can_be_shared_by_the_genes_of_a_key() -> None:
    made = sampler(share="key", ema=0.5, tau=1.0)
    observed(made, {(0, 0, 1, 0, 0): {"kernel[0]": 2.0, "kernel[1]": 4.0}, (0, 0, 1, 1, 0): {"kernel[0]": 6.0}})
    observed(made, {(0, 0, 1, 1, 0): {"kernel[0]": 1.0, "kernel[1]": 9.0}})
    drawn(made, [10])
    # The first subnet has option 0 twice: one observation of their mean.
    small = (0.5 * (0.5 * 3.0) + 0.5 * 9.0) / 0.75
    large = (0.5 * (0.5 * 6.0) + 0.5 * 1.0) / 0.75
    shares = [small / (small + large), large / (small + large)]
    assert made.probabilities["kernel[0]"] == pytest.approx(shares)
    assert made.probabilities["kernel[1]"] == pytest.approx(shares)
    assert made.probabilities["depth"] == [0.5, 0.5]


def test_a_gradient_that_is_not_finite_teaches_nothing() -> None:
    made = sampler(scores=SCORES)
    before = made.state_dict()["scores"]
    for wrong in (float("nan"), float("inf")):
        observed(made, {(0, 1, 1, 1, 1): {"op": wrong, "depth": 7.0}})
        assert torch.equal(made.state_dict()["scores"], before)
    observed(made, {(0, 1, 1, 1, 1): {"op": 1.0, "depth": 7.0}})
    assert not torch.equal(made.state_dict()["scores"], before)


def test_observing_a_subnet_moves_the_scores_of_its_own_options_only() -> None:
    made = sampler(TINY)
    arch = TINY.sample(np.random.default_rng(2))
    codes, gradients = TINY.encode(arch), real_gradients(0)
    made.observe(0, arch, gradients)
    sites, values = made.indicators.measure(codes, gradients)
    assert len(sites) > 5
    sums, weights = made.state_dict()["scores"]
    cells = [(site, codes[made.indicators.sites[site]]) for site in sites]
    assert weights.nonzero().tolist() == [list(cell) for cell in cells]
    assert torch.stack([sums[cell] / weights[cell] for cell in cells]).allclose(values)


def test_it_looks_at_every_so_many_steps() -> None:
    made = sampler(update_every=3)
    assert [step for step in range(8) if made.wants(step)] == [0, 3, 6]


# Weights ----------------------------------------------------------------------------------------------------------


def test_published_mode_has_no_weights() -> None:
    assert {path.weight for path in drawn(sampler(scores=SCORES, tau=0.9), range(10), count=9)} == {1.0}


@pytest.mark.parametrize("scores", [SCORES, {"depth": (1.0, 9.0), "kernel[1]": (9.0, 1.0)}])
def test_weights_turn_the_probabilities_into_uniform_ones(scores: Any) -> None:
    made = sampler(scores=scores, tau=0.9, mode="unbiased", max_weight=None)
    weights = {path.arch: path.weight for path in drawn(made, range(10), count=200)}
    assert set(weights) == set(archs_of(made.space))
    for arch, weight in weights.items():
        assert probability(made, arch) * weight == pytest.approx(uniform_probability(made.space, arch))


def gradients_of(space: Space) -> dict[Arch, np.ndarray]:
    """The gradient of a quadratic: each arch pulls the weights that it uses towards a target of its own."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=6)
    found = {}
    for arch in archs_of(space):
        used = np.arange(6) < 1 + sum(space.encode(arch))
        found[arch] = used * (weights - rng.normal(size=6)) * (4.0 if arch["op"] == "conv" else 1.0)
    return found


def test_the_weighted_gradient_is_that_of_uniform_sampling() -> None:
    made = sampler(scores=SCORES, tau=0.9, mode="unbiased", max_weight=None)
    gradients = gradients_of(made.space)
    full = sum(uniform_probability(made.space, arch) * gradient for arch, gradient in gradients.items())
    paths = drawn(made, [3], count=40_000)
    counts = Counter((path.arch, path.weight) for path in paths)
    number = len(paths)
    mean = sum(n * weight * gradients[arch] for (arch, weight), n in counts.items()) / number
    square = sum(n * (weight * gradients[arch]) ** 2 for (arch, weight), n in counts.items()) / number
    error = np.sqrt((square - mean**2) / number)
    assert np.all(np.abs(mean - full) < 5 * error)
    plain = sum(n * gradients[arch] for (arch, _), n in counts.items()) / number
    assert np.any(np.abs(plain - full) > 20 * error)  # without weights it is another gradient


def test_probabilities_of_gradient_norms_have_the_least_second_moment() -> None:
    genes = [Gene("resolution", None, (8,)), Gene("op", None, ("a", "b", "c", "d"))]
    space = Space("one", genes, [], lambda plan: nn.Module(), {})
    norms = {"a": 0.2, "b": 1.0, "c": 3.0, "d": 7.0}

    def second_moment(tau: float) -> float:
        made = sampler(space, {"op": tuple(norms.values())}, tau=tau, mode="unbiased", max_weight=None)
        weights = {path.arch: path.weight for path in drawn(made, range(10), count=400)}
        assert len(weights) == 4
        return sum(probability(made, a) * (w * norms[a["op"]]) ** 2 for a, w in weights.items())

    moments = [second_moment(tau) for tau in (0.0, 0.5, 0.9, 1.0)]
    assert moments == sorted(moments, reverse=True)
    assert moments[0] == pytest.approx(sum(norm**2 for norm in norms.values()) / 4)
    assert moments[-1] == pytest.approx((sum(norms.values()) / 4) ** 2)


def test_weights_can_be_limited_and_normalised() -> None:
    scores = {"op": (1.0, 1.0, 40.0), "depth": (1.0, 40.0), "kernel[0]": (1.0, 40.0)}
    free = sampler(scores=scores, tau=0.95, mode="unbiased", max_weight=None)
    limited = sampler(scores=scores, tau=0.95, mode="unbiased", max_weight=2.0)
    normal = sampler(scores=scores, tau=0.95, mode="unbiased", max_weight=2.0, normalise=True)
    steps = range(10)
    raw = [path.weight for path in drawn(free, steps, count=50)]
    assert max(raw) > 2
    assert [path.weight for path in drawn(limited, steps, count=50)] == [min(weight, 2.0) for weight in raw]
    for step in steps:
        clipped = [min(weight, 2.0) for weight in raw[50 * step : 50 * step + 50]]
        weights = [path.weight for path in normal.draw(step, 50, no_loss)]
        assert weights == pytest.approx([weight * 50 / sum(clipped) for weight in clipped])
