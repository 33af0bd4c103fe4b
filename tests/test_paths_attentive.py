"""Attentive sampling: the prior is that of uniform subnets, candidates share a bin, and the extreme one is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tiny import big_space, tiny_space
from torch import Tensor

from supernet.construct import construct
from supernet.cost import macs_of
from supernet.errors import UserError
from supernet.horizon import Horizon
from supernet.paths.prior import make_prior
from supernet.space import Arch, Space
from supernet.window import enumerate_archs

SPACE = tiny_space()
WIDTH = 50_000.0  # MACs; gives a dozen of bins
MACS = {arch: SPACE.plan(arch).macs for arch in enumerate_archs(SPACE)}


class Losses:
    """A loss for every subnet, in no order of size; remembers what was asked."""

    def __init__(self) -> None:
        order = np.random.default_rng(9).permutation(len(MACS)).tolist()
        self.of = dict(zip(MACS, map(float, order), strict=True))
        self.asked: list[Arch] = []

    def __call__(self, arch: Arch) -> Tensor:
        self.asked.append(arch)
        return torch.tensor(self.of[arch])


def no_loss(arch: Arch) -> Tensor:
    raise AssertionError("nothing is to be compared by its loss")


def make(space: Space = SPACE, seed: int = 0, **options: Any) -> Any:
    config = {"_target_": "supernet.paths.attentive.Attentive", "bin_width": WIDTH, "prior_samples": 20_000, **options}
    return construct(config, "path_sampler", space=space, seed=seed, horizon=Horizon(10, 100))


def bins(values: Any, width: float = WIDTH) -> np.ndarray:
    return np.floor(np.asarray(values) / width + 0.5).astype(int)


def true_shares() -> dict[int, float]:
    """The exact shares of uniform draws: genes of skipped blocks count into it, and here no gene can be skipped."""
    assert all(gene.parent is None for gene in SPACE.genes)
    numbers, counts = np.unique(bins(list(MACS.values())), return_counts=True)
    return dict(zip(numbers.tolist(), (counts / len(MACS)).tolist(), strict=True))


def test_bins_have_the_shares_that_they_have_in_the_whole_space() -> None:
    shares = true_shares()
    prior = make_prior(SPACE, np.random.default_rng(0), 50_000, WIDTH)
    assert prior.bins.tolist() == sorted(shares)
    found = np.diff(prior.up_to, prepend=0.0)
    expected = np.array([shares[b] for b in prior.bins.tolist()])
    assert prior.up_to[-1] == 1
    assert chisquare(found * 50_000, expected * 50_000).pvalue > 1e-3


def test_genes_have_the_shares_that_they_have_among_the_subnets_of_a_bin() -> None:
    prior = make_prior(SPACE, np.random.default_rng(1), 100_000, WIDTH)
    for row, number in enumerate(prior.bins.tolist()):
        inside = np.array([SPACE.encode(arch) for arch, macs in MACS.items() if bins(macs) == number])
        for i, gene in enumerate(SPACE.genes):
            for option in range(len(gene.options)):
                exact = (inside[:, i] <= option).mean()
                # Rare bins are known from few samples: 1/384 of them is 260.
                assert abs(prior.below[row, i, option] - exact) < 5 * 0.5 / np.sqrt(100_000 * len(inside) / 384)
        assert (prior.below[row, :, -1] == 1).all()


def test_options_that_no_subnet_of_a_bin_has_are_never_drawn_for_it() -> None:
    prior = make_prior(SPACE, np.random.default_rng(2), 20_000, WIDTH)
    possible = {
        number: [
            {SPACE.encode(a)[i] for a, macs in MACS.items() if bins(macs) == number} for i in range(len(SPACE.genes))
        ]
        for number in prior.bins.tolist()
    }
    narrow = 0
    for seed in range(300):
        number, rows = prior.rows(np.random.default_rng(seed), 2, 20)
        for i, options in enumerate(possible[int(number)]):
            assert set(rows[:, :, i].reshape(-1).tolist()) <= options
            narrow += len(options) < len(SPACE.genes[i].options)
    assert narrow > 100  # there were options to avoid


def test_a_single_candidate_reproduces_the_prior_without_any_score() -> None:
    sampler = make(candidates=1, retries=1000)
    macs = [MACS[path.arch] for step in range(400) for path in sampler.draw(step, 4, no_loss)]
    shares = true_shares()
    expected = np.array([1600 * shares[b] for b in sorted(shares)])
    counts = np.array([(bins(macs) == b).sum() for b in sorted(shares)])
    assert counts.sum() == 1600
    common = expected >= 5
    counts, expected = (np.append(v[common], v[~common].sum()) for v in (counts, expected))
    keep = expected > 0
    assert chisquare(counts[keep], expected[keep]).pvalue > 1e-3


def test_candidates_of_a_slot_share_a_bin_and_differ() -> None:
    sampler = make(candidates=4, retries=1000)
    different = 0
    for step in range(100):
        for slot in sampler.candidates(step, 2):
            assert len(slot) == 4
            assert len(set(bins([MACS[arch] for arch in slot]).tolist())) == 1
            different += len(set(slot)) > 1
    assert different > 150


@pytest.mark.parametrize("mode", ["bestup", "worstup"])
def test_the_candidate_with_the_extreme_loss_is_trained(mode: str) -> None:
    sampler, losses = make(mode=mode), Losses()
    strict = 0
    for step in range(100):
        slots = sampler.candidates(step, 2)
        for path, slot in zip(sampler.draw(step, 2, losses), slots, strict=True):
            values = [losses.of[arch] for arch in slot]
            assert path.weight == 1
            assert losses.of[path.arch] == (min(values) if mode == "bestup" else max(values))
            strict += len(set(values)) > 1
    assert strict > 150


def test_each_candidate_is_scored_once_and_only_where_there_is_a_choice() -> None:
    sampler = make()
    for step in range(50):
        losses = Losses()
        slots = sampler.candidates(step, 3)
        sampler.draw(step, 3, losses)
        assert len(set(losses.asked)) == len(losses.asked)
        assert set(losses.asked) == {arch for slot in slots for arch in slot if len(set(slot)) > 1}


@pytest.mark.parametrize(("mode", "extreme"), [("bestup", max), ("worstup", min)])
def test_scored_by_macs_the_extreme_candidate_is_the_biggest_or_the_smallest(mode: str, extreme: Any) -> None:
    sampler = make(score="macs", mode=mode)
    for step in range(100):
        slots = sampler.candidates(step, 2)
        chosen = [MACS[path.arch] for path in sampler.draw(step, 2, no_loss)]
        assert chosen == [extreme(MACS[arch] for arch in slot) for slot in slots]


def test_equal_costs_degenerate_to_uniform_genes() -> None:
    """A space with a single bin: every gene as the uniform sample has it, and every first draw is accepted."""
    sampler = make(bin_width=1e12, candidates=1, retries=0, prior_samples=50_000)
    assert len(sampler.prior.bins) == 1
    codes = np.array([SPACE.encode(path.arch) for step in range(300) for path in sampler.draw(step, 4, no_loss)])
    for i, gene in enumerate(SPACE.genes):
        if len(gene.options) > 1:
            assert chisquare(np.bincount(codes[:, i], minlength=len(gene.options))).pvalue > 1e-3, gene.name
    one = SPACE.only(SPACE.largest())
    assert [path.arch for path in make(one, bin_width=None).draw(0, 2, no_loss)] == [one.largest()] * 2


def test_the_last_draw_is_taken_where_none_is_in_the_bin() -> None:
    sampler = make(bin_width=100.0, retries=2, candidates=2)
    outside = 0
    for step in range(50):
        (slot,) = sampler.candidates(step, 1)
        number, rows = sampler.prior.rows(np.random.default_rng((0, step, 0)), 2, 3)
        for arch, tries in zip(slot, rows.tolist(), strict=True):
            drawn = [SPACE.decode(row) for row in tries]
            fitting = [a for a in drawn if bins(MACS[a], 100.0) == number]
            assert arch == (fitting[0] if fitting else drawn[-1])
            outside += not fitting
    assert 0 < outside < 100


def test_more_slots_keep_the_first_ones() -> None:
    sampler = make()
    assert sampler.candidates(7, 3)[:2] == sampler.candidates(7, 2)
    assert sampler.draw(7, 0, no_loss) == []


def test_default_bins_of_the_papers_space() -> None:
    """203 to 1,939 MMACs in 64 bins: 27 MMACs, near the published 25."""
    space = big_space()
    sampler = make(space, bin_width=None, prior_samples=100_000)
    assert sampler.prior.width == 27e6
    macs = macs_of(space)
    good = 0
    for step in range(50):
        rows = np.array([[space.encode(arch) for arch in slot] for slot in sampler.candidates(step, 2)])
        numbers = bins(macs.batch(rows.reshape(6, -1)), 27e6).reshape(2, 3)
        good += int((numbers == numbers[:, :1]).all(axis=1).sum())
    assert good >= 95


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"candidates": 0}, "candidates=0"),
        ({"retries": -1}, "retries=-1"),
        ({"mode": "best"}, "mode"),
        ({"score": "flops"}, "score"),
        ({"bin_width": 0.0}, "bin_width=0"),
        ({"bin_width": 0.01}, "bin_width=0.01: more than 4096 bins; give at least"),
        ({"prior_samples": 0}, "prior_samples=0"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make(**options)
