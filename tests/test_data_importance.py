"""Data importance sampling: scores, probabilities, unbiasedness, coverage, and exact resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_space
from torch import Tensor

from supernet.construct import construct
from supernet.data_samplers.base import Visits, WatchesImages
from supernet.data_samplers.importance import ImportanceSampling
from supernet.data_samplers.shuffle import Shuffle
from supernet.errors import UserError
from supernet.horizon import Horizon
from supernet.learned import Learned
from supernet.samplers.base import Slot

TEN_EPOCHS = Horizon(steps_per_epoch=4, total_steps=40)
SLOT = Slot(tiny_space().largest(), "largest")


def make(num_images: int = 50, **changes: Any) -> ImportanceSampling:
    return ImportanceSampling(num_images, seed=3, horizon=TEN_EPOCHS, **changes)


def scored(scores: Tensor, epoch: int = 1, **changes: Any) -> ImportanceSampling:
    """A sampler that saw every image once and has drawn `epoch`."""
    sampler = make(len(scores), **changes)
    sampler.visits(0)
    sampler.observe(torch.arange(len(scores)), scores)
    sampler.visits(epoch)
    return sampler


def made_up_scores(num_images: int, seed: int = 0) -> Tensor:
    return torch.empty(num_images).exponential_(generator=torch.Generator().manual_seed(seed)).clamp(max=math.sqrt(2))


def same(one: Visits, two: Visits) -> bool:
    if one.weights is None or two.weights is None:
        return torch.equal(one.order, two.order) and one.weights is two.weights
    return torch.equal(one.order, two.order) and torch.equal(one.weights, two.weights)


# Scores -----------------------------------------------------------------------------------------------------


def test_scores_are_running_means() -> None:
    sampler = make(4, tau=1.0, momentum=0.25)
    for index, score in (([0, 1], [1.0, 0.4]), ([1, 2], [0.8, 0.1]), ([1], [0.2])):
        sampler.observe(torch.tensor(index), torch.tensor(score))
    second = 0.25 * 0.4 + 0.75 * 0.8
    expected = torch.tensor([1.0, 0.25 * second + 0.75 * 0.2, 0.1])
    state = sampler.state_dict()
    torch.testing.assert_close(state["scores"][:3], expected)
    assert state["scores"][3].isnan()
    assert state["seen"].tolist() == [True, True, True, False]
    sampler.visits(1)
    filled = torch.cat([expected, expected.mean().view(1)]).double()  # an image without a score counts as the mean
    torch.testing.assert_close(sampler.state_dict()["probabilities"], filled / filled.sum())


def test_copies_in_a_batch_count_once_and_do_not_depend_on_their_order() -> None:
    index = torch.tensor([5, 2, 5, 7, 2, 5, 5])
    score = torch.tensor([0.1, 1e-8, 0.7, 0.3, 1.4, 0.9, 0.2])
    sampler = make(9)
    sampler.observe(torch.tensor([2]), torch.tensor([0.5]))
    sampler.observe(index, score)
    expected = {5: score[[0, 2, 5, 6]].mean(), 2: 0.5 * 0.5 + 0.5 * score[[1, 4]].mean(), 7: score[3]}
    for image, value in expected.items():
        torch.testing.assert_close(sampler.state_dict()["scores"][image], value)
    assert sampler.state_dict()["scores"].isnan().sum() == 6


def test_a_score_that_is_no_number_is_as_good_as_none() -> None:
    sampler = make(3, tau=1.0)
    sampler.observe(torch.tensor([0, 1, 2]), torch.tensor([0.5, float("nan"), 1.0]))
    sampler.visits(1)
    expected = torch.tensor([0.5, 0.75, 1.0], dtype=torch.float64) / 2.25
    torch.testing.assert_close(sampler.state_dict()["probabilities"], expected)


# Draws ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["curriculum", "unbiased"])
def test_without_scores_to_decide_it_is_a_shuffle(mode: str) -> None:
    shuffle = Shuffle(50, seed=3, horizon=TEN_EPOCHS)
    for sampler in (make(tau=0.0, mode=mode), make(tau_max=0.0, mode=mode)):
        for epoch in range(4):
            assert same(sampler.visits(epoch), shuffle.visits(epoch))
            sampler.observe(torch.arange(50), made_up_scores(50))
    assert same(make(mode=mode).visits(0), shuffle.visits(0)), "the ramp begins at 0"


def test_the_share_rises_by_epochs_up_to_its_limit() -> None:
    assert [make().tau(epoch) for epoch in (0, 1, 9)] == [0, 0.1, 0.9]
    assert [make(tau_max=0.35).tau(epoch) for epoch in (0, 3, 4, 9)] == [0, 0.3, 0.35, 0.35]
    assert [make(tau=0.6).tau(epoch) for epoch in (0, 9)] == [0.6, 0.6]


@pytest.mark.parametrize("tau", [0.2, 0.9, 1.0])
def test_probabilities_mix_scores_with_a_floor(tau: float) -> None:
    scores = made_up_scores(50)
    scores[:5] = 0
    q = scored(scores, tau=tau).state_dict()["probabilities"]
    torch.testing.assert_close(q, tau * scores.double() / scores.double().sum() + (1 - tau) / 50)
    torch.testing.assert_close(q.sum(), torch.ones((), dtype=torch.float64))
    assert (q >= (1 - tau) / 50).all()
    order = scored(scores, tau=tau).visits(1).order
    assert order.dtype == torch.int64
    assert order.shape == (50,)
    if tau == 1:
        assert order.min() >= 5, "what scores 0 is never drawn without a floor"


@pytest.mark.parametrize("scores", [torch.zeros(20), torch.full((20,), 0.3)])
def test_equal_scores_are_uniform(scores: Tensor) -> None:
    sampler = scored(scores, tau=1.0, mode="unbiased")
    q = sampler.state_dict()["probabilities"]
    torch.testing.assert_close(q, torch.full_like(q, 1 / 20))
    torch.testing.assert_close(sampler.visits(1).weights, torch.ones(20))


def test_images_are_drawn_as_often_as_they_should_be() -> None:
    scores = made_up_scores(40)
    sampler = scored(scores, tau=0.8)
    q = sampler.state_dict()["probabilities"]
    counts, epochs = torch.zeros(40), 2000
    for epoch in range(1, epochs + 1):
        counts += sampler.visits(epoch).order.bincount(minlength=40)
    draws = 40 * epochs
    chi_square = ((counts - draws * q).square() / (draws * q)).sum()
    assert chi_square < 76, "39 degrees of freedom: exceeded with probability 4e-4"
    unlike = torch.full((40,), 1 / 40)
    assert ((counts - draws * unlike).square() / (draws * unlike)).sum() > 1000


# Unbiasedness -----------------------------------------------------------------------------------------------


def test_the_expected_weighted_mean_is_the_plain_mean() -> None:
    scores = made_up_scores(60)
    gradients = torch.randn(60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sampler = scored(scores, tau=0.9, mode="unbiased", max_weight=None)
    weights = sampler.visits(1).weights
    assert weights is not None
    assert weights.dtype == torch.float32
    q = sampler.state_dict()["probabilities"]
    assert (weights.max() / weights.min()) > 5
    expected = (q * weights.double()) @ gradients  # of one draw, exactly
    torch.testing.assert_close(expected, gradients.mean(0), rtol=1e-5, atol=1e-6)
    # The same over many draws, with the error that their variance allows; the plain mean of the draws is off.
    order = torch.cat([sampler.visits(epoch).order for epoch in range(1, 1700)])
    weighted = weights.double()[order, None] * gradients[order]
    tolerance = 4 * weighted.std(0) / math.sqrt(len(order))
    assert len(order) > 1e5
    assert ((weighted.mean(0) - gradients.mean(0)).abs() < tolerance).all()
    assert ((gradients[order].mean(0) - gradients.mean(0)).abs() > tolerance).any()


def test_clipped_weights_keep_the_scale_of_the_losses() -> None:
    scores = torch.cat([torch.full((5,), 1.4), torch.full((45,), 0.01)])
    weights, q = {}, torch.zeros(())
    for clip in (None, 2.0):
        sampler = scored(scores, tau=0.9, mode="unbiased", max_weight=clip)
        q = sampler.state_dict()["probabilities"]
        found = sampler.visits(1).weights
        assert found is not None
        weights[clip] = found.double()
        torch.testing.assert_close((q * weights[clip]).sum(), torch.ones((), dtype=torch.float64), rtol=1e-5, atol=0)
    free, clipped = weights[None], weights[2.0]
    torch.testing.assert_close(free, 1 / (50 * q), rtol=1e-5, atol=0)
    limited = free.clamp(max=2.0)
    assert (limited < free).sum() == 45
    torch.testing.assert_close(clipped / clipped[0], limited / limited[0], rtol=1e-5, atol=0)


def test_draws_by_norm_have_the_least_second_moment() -> None:
    """E |w g|^2 over draws: (mean |g|)^2 where q is proportional to |g|, which no q can beat; uniform: mean |g|^2."""
    norms = made_up_scores(60)

    def second_moment(tau: float) -> float:
        sampler = scored(norms, tau=tau, mode="unbiased", max_weight=None)
        visits, q = sampler.visits(1), sampler.state_dict()["probabilities"]
        weights = torch.ones(60) if visits.weights is None else visits.weights
        return float((q * (weights.double() * norms.double()).square()).sum())

    moments = [second_moment(tau) for tau in (0.0, 0.3, 0.6, 0.9, 1.0)]
    assert moments[0] == pytest.approx(norms.square().mean().item(), rel=1e-5)
    assert moments[-1] == pytest.approx(norms.mean().square().item(), rel=1e-5)
    assert moments == sorted(moments, reverse=True)


# Coverage ---------------------------------------------------------------------------------------------------


def coverage(kind: str, forget: bool, epochs: int = 11) -> float:
    """Share of 10,000 images in the last of `epochs` epochs at tau = 0.99, when images keep their scores."""
    rng = torch.Generator().manual_seed(5)
    scores = torch.ones(10_000) if kind == "constant" else torch.empty(10_000).exponential_(generator=rng)
    sampler = make(10_000, tau=0.99, forget_unseen=forget)
    for epoch in range(epochs):
        for index in sampler.visits(epoch).order.split(500):
            sampler.observe(index, scores[index])
    return sampler.report()["coverage"]


# Uniform draws with replacement visit 1 - 1/e. The others are figures of an independent simulation of the same runs.
@pytest.mark.parametrize(
    ("kind", "forget", "expected"),
    [
        ("constant", False, 1 - math.exp(-1)),
        ("constant", True, 0.31),
        ("exponential", False, 0.50),
        ("exponential", True, 0.21),
    ],
)
def test_forgetting_unseen_images_loses_coverage(kind: str, forget: bool, expected: float) -> None:
    assert coverage(kind, forget) == pytest.approx(expected, abs=0.02)


def test_forgotten_images_are_drawn_by_the_floor_alone() -> None:
    sampler = make(10, tau=0.5, forget_unseen=True)
    sampler.observe(torch.arange(10), torch.ones(10))
    sampler.visits(1)
    sampler.observe(torch.tensor([3, 4]), torch.tensor([0.2, 0.6]))
    sampler.visits(2)
    expected = torch.full((10,), 0.05, dtype=torch.float64)
    expected[3:5] += 0.5 * torch.tensor([0.25, 0.75])
    torch.testing.assert_close(sampler.state_dict()["probabilities"], expected)


def test_report() -> None:
    sampler = make(mode="unbiased", max_weight=None)
    empty = sampler.report()
    assert empty == {"coverage": 1, "seen": 0, "ess": 1, "tau": 0, "score_mean": 0, "score_max": 0}
    sampler.visits(0)
    scores = made_up_scores(48)
    sampler.observe(torch.arange(48), scores)
    visits = sampler.visits(9)
    assert visits.weights is not None
    weights = visits.weights[visits.order]
    assert sampler.report() == pytest.approx(
        {
            "coverage": len(set(visits.order.tolist())) / 50,
            "seen": 48 / 50,
            "ess": float(weights.sum() ** 2 / (weights**2).sum() / 50),
            "tau": 0.9,
            "score_mean": scores.mean().item(),
            "score_max": scores.max().item(),
        },
        rel=1e-5,
    )
    assert sampler.report()["ess"] < 0.95
    assert same(sampler.visits(9), visits), "a report changes nothing"


# Resuming ---------------------------------------------------------------------------------------------------


def score_at(step: int, index: Tensor) -> Tensor:
    """What a network might give that learns: a function of the step and the image."""
    return (1.4 * torch.sin(0.37 * index + step).abs()).float()


def train(sampler: ImportanceSampling, start: int, stop: int, batch: int = 12) -> list[Visits]:
    """Steps from `start` to before `stop` as a trainer takes them, four an epoch; the visits that it asked for."""
    asked: list[Visits] = []
    step = start
    while step < stop:
        epoch, first = divmod(step, 4)
        asked.append(sampler.visits(epoch))
        for index in asked[-1].order.split(batch)[first:4]:
            sampler.observe(index, score_at(step, index))
            step += 1
            if step == stop:
                break
    return asked


@pytest.mark.parametrize("stop", [0, 1, 4, 6, 8, 11])
@pytest.mark.parametrize("changes", [{}, {"tau": 0.8}, {"mode": "unbiased"}, {"tau": 0.9, "forget_unseen": True}])
def test_resuming_gives_the_very_same_visits(stop: int, changes: dict[str, Any], tmp_path: Path) -> None:
    straight = make(**changes)
    reference = train(straight, 0, 20)
    stopped = make(**changes)
    train(stopped, 0, stop)
    torch.save(stopped.state_dict(), tmp_path / "state.pt")
    train(stopped, stop, 20)  # the file is a copy, whatever the sampler does next
    resumed = make(**changes)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    rest = train(resumed, stop, 20)
    assert len(rest) == len(reference) - stop // 4
    assert all(same(one, two) for one, two in zip(reference[stop // 4 :], rest, strict=True))
    assert not torch.equal(reference[3].order, reference[4].order)
    ours, theirs = straight.state_dict(), resumed.state_dict()
    assert torch.equal(ours["scores"].nan_to_num(-1), theirs["scores"].nan_to_num(-1))
    assert straight.report() == resumed.report()


def test_a_kept_state_does_not_change() -> None:
    sampler = scored(made_up_scores(50), epoch=5)
    state = sampler.state_dict()
    visits, scores = sampler.visits(5), state["scores"].clone()
    sampler.observe(torch.arange(50), torch.ones(50))
    assert torch.equal(state["scores"], scores)
    other = make()
    other.load_state_dict(state)
    other.observe(torch.arange(50), torch.ones(50))
    assert torch.equal(state["scores"], scores)
    assert same(other.visits(5), visits)
    assert same(sampler.visits(5), visits), "scores count from the next epoch on"
    assert not torch.equal(sampler.visits(6).order, visits.order)
    with pytest.raises(ValueError, match="scores of 50 images, but there are 51"):
        make(51).load_state_dict(state)


# Configuration ----------------------------------------------------------------------------------------------


def from_config(**changes: Any) -> ImportanceSampling:
    from omegaconf import OmegaConf

    path = Path(__file__).parents[1] / "configs" / "data_sampler" / "importance.yaml"
    config = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(config, dict)
    assert not set(changes) - set(config)
    made = construct({**config, **changes}, "data_sampler", num_images=50, seed=3, horizon=TEN_EPOCHS)  # type: ignore[dict-item]
    assert isinstance(made, ImportanceSampling)
    return made


def test_the_config_offers_the_constructor_s_defaults() -> None:
    made, plain = from_config(), make()
    assert isinstance(made, WatchesImages)
    assert isinstance(made, Learned)
    for name in ("mode", "momentum", "max_weight", "forget_unseen", "_tau", "_tau_max"):
        assert getattr(made, name) == getattr(plain, name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tau": 1.5}, "data_sampler: tau=1.5: must be from 0 to 1"),
        ({"tau_max": -0.1}, "data_sampler: tau_max=-0.1: must be from 0 to 1"),
        ({"tau": float("nan")}, "data_sampler.tau=nan"),
        ({"momentum": 1.0}, "data_sampler: momentum=1.0: must be from 0 to below 1"),
        ({"max_weight": 0.5}, "data_sampler: max_weight=0.5: must be at least 1, or null"),
        ({"mode": "biased"}, r"data_sampler\.mode=biased: expected one of 'curriculum', 'unbiased'"),
    ],
)
def test_bad_values_name_the_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_config(**changes)
