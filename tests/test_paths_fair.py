"""Strict fairness: after a step, or a block of draws, every option of every gene has been used equally often."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare
from tiny import tiny_space
from torch import Tensor

from supernet.construct import construct
from supernet.errors import UserError
from supernet.horizon import Horizon
from supernet.space import Arch, Space

FLAT = tiny_space(  # every gene always counts, so that codes are the raw draws; numbers of options: 1, 2, 3
    resolution=(8, 12, 16),
    stages=[
        {"width": [8, 12], "depth": [1], "kernel": [3], "expand": [1], "stride": 1, "act": "relu"},
        {"width": [12, 16], "depth": [1, 2, 3], "kernel": [3, 5], "expand": [2, 3, 4], "stride": 2, "act": "relu"},
    ],
)
BLOCK = 6
OPTIONS = np.array([len(gene.options) for gene in FLAT.genes])


def no_loss(arch: Arch) -> Tensor:
    raise AssertionError("this sampler must not cost a forward pass")


def codes(steps: range, count: int, space: Space = FLAT, seed: int = 0, **options: Any) -> np.ndarray:
    """Option indices [steps, count, G]."""
    config = {"_target_": "supernet.paths.fair.Fair", **options}
    sampler = construct(config, "path_sampler", space=space, seed=seed, horizon=Horizon(10, 100))
    drawn = [[space.encode(path.arch) for path in sampler.draw(step, count, no_loss)] for step in steps]
    return np.array(drawn)


def counts_of(rows: np.ndarray, space: Space = FLAT) -> list[list[int]]:
    return [np.bincount(rows[:, i], minlength=len(g.options)).tolist() for i, g in enumerate(space.genes)]


def test_the_space_has_unequal_numbers_of_options_and_no_gene_that_can_be_skipped() -> None:
    assert set(OPTIONS) == {1, 2, 3}
    assert math.lcm(*OPTIONS) == BLOCK
    assert all(gene.parent is None for gene in FLAT.genes)


@pytest.mark.parametrize("count", [6, 12])
def test_every_step_uses_every_option_equally_often(count: int) -> None:
    for rows in codes(range(30), count):
        for gene, counts in zip(FLAT.genes, counts_of(rows), strict=True):
            assert counts == [count // len(gene.options)] * len(gene.options), gene.name


def test_a_gene_goes_through_all_its_options_before_it_repeats_one() -> None:
    for rows in codes(range(30), BLOCK):
        for i, gene in enumerate(FLAT.genes):
            for permutation in rows[:, i].reshape(-1, len(gene.options)):
                assert sorted(permutation) == list(range(len(gene.options)))


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_over_several_steps_every_block_of_draws_is_fair(count: int) -> None:
    rows = codes(range(12), count, strict=False).reshape(12 * count, -1)
    for block in rows[: len(rows) // BLOCK * BLOCK].reshape(-1, BLOCK, rows.shape[1]):
        for gene, counts in zip(FLAT.genes, counts_of(block), strict=True):
            assert counts == [BLOCK // len(gene.options)] * len(gene.options), gene.name


def test_blocks_do_not_depend_on_how_draws_are_split_into_steps() -> None:
    whole = codes(range(4), 6).reshape(24, -1)
    assert (codes(range(6), 4, strict=False).reshape(24, -1) == whole).all()


def test_permutations_are_fresh_uniform_and_independent_between_genes() -> None:
    """The order of each gene is new in every step; orders of two genes say nothing about each other."""
    rows = codes(range(1200), BLOCK)
    three = [i for i, gene in enumerate(FLAT.genes) if len(gene.options) == 3]
    assert len(three) >= 3
    number = rows[:, 0, :] * 3 + rows[:, 1, :]  # which of the six permutations: the first two entries tell
    for i in three:
        _, counts = np.unique(number[:, i], return_counts=True)
        assert len(counts) == 6
        assert chisquare(counts).pvalue > 1e-3
        again = (number[1:, i] == number[:-1, i]).sum()  # from step to step: equal once in six
        assert abs(again - 1199 / 6) < 5 * math.sqrt(1199 * 5 / 36)
        for j in three:
            if i < j:
                _, counts = np.unique(number[:, [i, j]], axis=0, return_counts=True)
                assert len(counts) == 36
                assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("count", "fix"), [(2, 6), (4, 6), (7, 12)])
def test_a_number_of_subnets_that_cannot_be_fair_is_refused(count: int, fix: int) -> None:
    with pytest.raises(UserError, match=rf"num_random={count}.*multiple of 6.*sampler\.num_random={fix}.*strict=false"):
        codes(range(1), count)


def test_skipped_blocks_are_fair_before_they_are_skipped() -> None:
    """With a choice for every block: the depths are exactly fair, and so is a block that no depth skips."""
    space = tiny_space(choose="block")
    assert any(gene.parent is not None for gene in space.genes)
    for rows in codes(range(20), BLOCK, space):
        for gene, counts in zip(space.genes, counts_of(rows, space), strict=True):
            if gene.parent is None or gene.above < space.genes[gene.parent].options[0]:
                assert counts == [BLOCK // len(gene.options)] * len(gene.options), gene.name


def test_expected_use_is_that_of_uniform_sampling_and_whole_subnets_vary() -> None:
    rows = codes(range(2000), BLOCK).reshape(-1, len(OPTIONS))
    many = OPTIONS > 1
    numbers = np.ravel_multi_index(tuple(rows[:, many].T), tuple(OPTIONS[many]))
    _, counts = np.unique(numbers, return_counts=True)
    total = int(OPTIONS[many].prod())
    assert len(counts) == total  # every subnet comes up
    # Fairness lowers the variance of counts a little below a multinomial's, and must not raise it.
    assert ((counts - len(rows) / total) ** 2).sum() * total / len(rows) < total + 5 * math.sqrt(2 * total)
