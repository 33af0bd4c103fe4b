"""Subnets as rows: what counts, variation, repair, and telling apart what was handed out."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import big_space, tiny_space

from search.codes import Codes, Unseen, _all_rows
from search.constraint import Constraint, encoded
from supernet.space import Gene, Space
from supernet.window import enumerate_archs

BIG, TINY = big_space(), tiny_space()
EVERY = list(enumerate_archs(TINY))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("space", [BIG, TINY], ids=["big", "tiny"])
def test_canonical_rows_are_those_of_the_space(space: Space) -> None:
    codes = Codes(Constraint().on(space))
    rows = codes.draw(rng(), 300)
    archs = codes.archs(rows)
    np.testing.assert_array_equal(codes.canonical(rows), encoded(space, archs))
    counts = codes.counting(rows)
    for row, mask in zip(rows.tolist(), counts.tolist(), strict=True):
        assert mask == [space.counts(gene, row) for gene in space.genes]


def test_all_rows_are_all_subnets_once() -> None:
    rows = _all_rows(TINY)
    assert [TINY.decode(row) for row in rows.tolist()] == EVERY
    np.testing.assert_array_equal(rows, encoded(TINY, EVERY))


def test_a_gene_of_words_has_no_children() -> None:
    genes = [Gene("op", 0, ("a", "b")), Gene("k", 0, (1, 2, 3), parent=0)]
    space = Space("words", genes, (), lambda plan: None, {})  # type: ignore[arg-type,return-value]
    assert _all_rows(space).tolist() == [[0, 0], [1, 0]]


def test_mutations_change_genes_that_count_at_the_stated_rate() -> None:
    codes = Codes(Constraint().on(BIG))
    parents = codes.canonical(codes.draw(rng(), 4000))
    one = codes.mutate(parents, rng(1), prob=0.0)
    assert ((one != parents) & codes.counting(parents)).sum(axis=1).tolist() == [1] * 4000
    some = (codes.mutate(parents, rng(2)) != parents) & codes.counting(parents)
    free = codes.counting(parents) & (codes.limits > 1)
    expected = 1 + (1 - 1 / free.sum(axis=1)) ** free.sum(axis=1)  # one gene on average, and one where there was none
    # A gene whose parent shrank is reset to 0 as well, so a little more than that changes.
    assert expected.mean() * 0.97 < some.sum(axis=1).mean() < expected.mean() * 1.4
    np.testing.assert_array_equal(codes.mutate(parents, rng(3), 1.0)[:, 0] != parents[:, 0], True)


def test_a_cross_takes_every_gene_from_a_parent_that_has_it() -> None:
    codes = Codes(Constraint().on(BIG))
    a, b = (codes.canonical(codes.draw(rng(seed), 2000)) for seed in (0, 1))
    child = codes.cross(a, b, rng(2))
    counts, in_a, in_b = codes.counting(child), codes.counting(a), codes.counting(b)
    assert (((child == a) & in_a) | ((child == b) & in_b))[counts].all()
    differ = counts & in_a & in_b & (a != b)
    assert 0.47 < (child == a)[differ].mean() < 0.53


def test_repair_leads_into_the_budget_and_leaves_the_rest_alone() -> None:
    budget = Constraint(macs=[0.3, 0.32], params="14M").on(BIG)
    codes = Codes(budget)
    rows = codes.draw(rng(), 200)
    before = rows.copy()
    fixed = codes.repair(rows, rng(1))
    np.testing.assert_array_equal(rows, before)
    assert len(fixed) > 150
    assert not budget.violations(fixed).any()
    np.testing.assert_array_equal(codes.repair(fixed, rng(2)), fixed)


def test_repair_leaves_out_what_cannot_be_brought_inside() -> None:
    budget = Constraint(macs=1e5, params=[2, 3]).on(TINY)
    assert len(Codes(budget).repair(Codes(budget).draw(rng(), 20), rng())) == 0


def test_what_was_handed_out_does_not_come_again() -> None:
    unseen = Unseen(Constraint().on(TINY))
    unseen.take(encoded(TINY, EVERY[:380]))
    assert set(unseen.archs(unseen.random(rng(), 10))) == set(EVERY[380:])
    assert len(unseen.random(rng(), 0)) == 0
    rows = encoded(TINY, [EVERY[0], EVERY[383], EVERY[383], EVERY[381]])
    assert unseen.archs(unseen.fresh(rows)) == [EVERY[383], EVERY[381]]


def test_random_rows_are_uniform_in_a_small_space() -> None:
    unseen = Unseen(Constraint(macs=0.5).on(TINY))
    inside = [arch for arch in EVERY if unseen.budget.feasible(arch)]
    seen = [arch for seed in range(400) for arch in unseen.archs(unseen.random(rng(seed), 5))]
    counts = np.array([seen.count(arch) for arch in inside])
    expected = 2000 / len(inside)
    assert counts.sum() == 2000
    assert ((counts - expected) ** 2 / expected).sum() < len(inside) + 5 * np.sqrt(2 * len(inside))


def test_children_are_new_inside_and_begin_the_same() -> None:
    few, many = (
        Unseen(Constraint(macs=0.3).on(BIG)).children(n, lambda: Codes(Constraint().on(BIG)).draw(rng(5), 64), rng(1))
        for n in (10, 60)
    )
    np.testing.assert_array_equal(few, many[:10])
    assert len(np.unique(many, axis=0)) == 60
