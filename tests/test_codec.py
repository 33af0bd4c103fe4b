"""Many subnets at once to rows and back: the same as one by one; and what single changes cost."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from tiny import big_space, tiny_space
from tiny_vit import tiny_vit

from search.constraint import Budget, Constraint
from search.repair import repaired
from supernet.codec import canonical, counting, decoded, encoded
from supernet.cost import Additive, macs_of, memory_of, params_of
from supernet.lookup import Factor
from supernet.neighbours import changed, changes
from supernet.space import Arch, Gene, Space

BIG, TINY = big_space(), tiny_space()
SPACES = [BIG, TINY, tiny_vit()]


def words() -> Space:
    """Options of all kinds, keys that take turns, and a gene that counts where a child of another one does."""
    genes = [
        Gene("op", 0, ("skip", "conv")),
        Gene("kernel", 0, (3, 5, 7), parent=0, among=("conv",)),
        Gene("op", 1, ("a", "b", "c")),
        Gene("ratio", None, (0.5, 1, 1.5)),
        Gene("kernel", 1, (3, 5), parent=1, above=3),
    ]
    return Space("words", genes, (), lambda plan: None, {})  # type: ignore[arg-type,return-value]


def rows_of(space: Space, n: int = 300, seed: int = 0) -> np.ndarray:
    limits = [len(gene.options) for gene in space.genes]
    return np.random.default_rng(seed).integers(limits, size=(n, len(limits)))


@pytest.mark.parametrize("space", [*SPACES, words()], ids=lambda space: space.name)
def test_many_are_decoded_and_encoded_as_one_by_one(space: Space) -> None:
    rows = rows_of(space)
    archs = [space.decode(row) for row in rows.tolist()]
    found = decoded(space, rows)
    assert found == archs
    assert [repr(arch) for arch in found] == [repr(arch) for arch in archs]  # 1 is not 1.0, a tuple not a list
    assert {type(arch) for arch in found} == {Arch}
    codes = np.array([space.encode(arch) for arch in archs])
    np.testing.assert_array_equal(encoded(space, found), codes)
    np.testing.assert_array_equal(canonical(space, rows), codes)
    expected = [[space.counts(gene, row) for gene in space.genes] for row in rows.tolist()]
    np.testing.assert_array_equal(counting(space, rows), expected)


def test_a_gene_counts_only_where_its_parents_parent_does() -> None:
    rows = np.array([[0, 2, 0, 0, 1], [1, 2, 0, 0, 1], [1, 0, 0, 0, 1]])
    assert counting(words(), rows)[:, [1, 4]].tolist() == [[False, False], [True, True], [True, False]]


@pytest.mark.parametrize("space", [BIG, words()], ids=lambda space: space.name)
def test_none_are_no_rows(space: Space) -> None:
    assert encoded(space, []).shape == (0, len(space.genes))
    assert decoded(space, encoded(space, [])) == []


def test_archs_that_do_not_belong_are_refused() -> None:
    with pytest.raises(ValueError, match="does not belong to space 'tiny'"):
        encoded(TINY, [TINY.largest(), BIG.largest()])
    choices = dict(TINY.largest().choices)
    for key, value in (("kernel", (3,)), ("resolution", 7), ("resolution", (8,)), ("depth", 2)):
        wrong = Arch(tuple({**choices, key: value}.items()))
        with pytest.raises(ValueError, match="does not belong to space 'tiny'"):
            encoded(TINY, [TINY.largest(), wrong])


def test_the_order_of_an_archs_keys_does_not_matter() -> None:
    turned = Arch(TINY.largest().choices[::-1])
    np.testing.assert_array_equal(
        encoded(TINY, [turned, TINY.smallest()]), [TINY.encode(turned), [0] * len(TINY.genes)]
    )


def test_rows_out_of_range_are_refused() -> None:
    for shape in ((1, len(TINY.genes) - 1), (len(TINY.genes),)):
        with pytest.raises(ValueError, match="expected rows of shape"):
            decoded(TINY, np.zeros(shape, dtype=np.int64))
    for wrong in (-1, 9):
        rows = encoded(TINY, [TINY.largest()])
        rows[0, 3] = wrong
        with pytest.raises(ValueError, match="out of range"):
            decoded(TINY, rows)


def test_changes_are_every_option_of_every_gene_with_a_choice() -> None:
    genes, options = changes(TINY)
    lengths = [len(gene.options) for gene in TINY.genes]
    expected = [(i, o) for i, n in enumerate(lengths) for o in range(n) if n > 1]
    assert list(zip(genes.tolist(), options.tolist(), strict=True)) == expected
    rows = rows_of(TINY, 5)
    moved = changed(TINY, rows)
    for (n, row), (k, (gene, option)) in product(enumerate(rows), enumerate(expected)):
        wanted = row.copy()
        wanted[gene] = option
        np.testing.assert_array_equal(moved[n, k], wanted)


def additives(space: Space) -> dict[str, Additive]:
    """Sums that read everything, few genes, and nothing; of whole numbers and of others; with offset and unit."""
    rng = np.random.default_rng(0)
    last = len(space.genes) - 1
    one = Factor((last,), rng.integers(0, 99, len(space.genes[last].options)))
    return {
        "macs": macs_of(space),
        "params": params_of(space),
        "one gene": Additive(space, [one], offset=5, unit=2),
        "nothing": Additive(space, [], offset=3),
        "real": Additive.of_units(space, lambda name, spec: rng.random(), np.float64, offset=0.5),
    }


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
@pytest.mark.parametrize("name", ["macs", "params", "one gene", "nothing", "real"])
def test_costs_after_a_change_are_those_of_the_changed_row(space: Space, name: str) -> None:
    measure = additives(space)[name]
    rows = rows_of(space, 40, seed=1)
    moved = changed(space, rows)
    expected = measure.batch(moved.reshape(-1, len(space.genes))).reshape(moved.shape[:2])
    np.testing.assert_array_equal(measure.around(rows), expected)


@pytest.mark.parametrize("limits", [{"macs": 0.3}, {"macs": [0.3, 0.32], "params": "14M"}, {"memory_mb": "40%"}, {}])
def test_the_fast_way_of_repair_changes_nothing(limits: dict[str, object]) -> None:
    """Bit for bit: the same violations, so the same draws and the same subnets."""
    budget: Budget = Constraint(**limits).on(BIG)  # type: ignore[arg-type]
    rows = canonical(BIG, rows_of(BIG, 150))
    moved = changed(BIG, rows)
    each = budget.violations(moved.reshape(-1, len(BIG.genes))).reshape(moved.shape[:2])
    np.testing.assert_array_equal(budget.violations_around(rows), each)
    fast, slow = (
        repaired(BIG, budget.violations, rows, np.random.default_rng(7), around)
        for around in (budget.violations_around, None)
    )
    np.testing.assert_array_equal(fast[0], slow[0])
    np.testing.assert_array_equal(fast[1], slow[1])
    assert not budget.violations(fast[0][fast[1]]).any()
    assert not limits or (fast[0] != rows).any()


def test_costs_of_many_are_those_of_each() -> None:
    budget = Constraint(macs=0.4).on(BIG)
    archs = decoded(BIG, rows_of(BIG, 20))
    found = budget.costs_all(archs)
    assert found == [budget.costs(arch) for arch in archs]
    plans = [BIG.plan(arch) for arch in archs]
    assert [(costs["macs"], costs["params"]) for costs in found] == [(plan.macs, plan.params) for plan in plans]
    assert [costs["memory_mb"] for costs in found] == memory_of(BIG).batch(encoded(BIG, archs)).tolist()
    assert budget.costs_all([]) == []
