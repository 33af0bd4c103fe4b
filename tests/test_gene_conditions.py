"""Genes that count only while their parent has one of some values: codes, sizes, variation, rows."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from search.codes import Codes, Unseen, _all_rows
from search.constraint import Constraint, encoded
from search.latency.features import gene_columns
from supernet.choices import Genes
from supernet.space import Gene, Space
from supernet.window import enumerate_archs


def conditional() -> Space:
    """Six genes: `op` counts for the modes b and c, `rate` for the ops of a list, `k` for one number in the middle."""
    genes = Genes()
    mode = genes.add("mode", ["c", "a", "b"])  # words keep their order
    op = genes.add("op", ["x", "y", "z"], parent=mode, among=["b", "c"])
    genes.add("rate", [1, 2], parent=op, among=("z", "x"))
    depth = genes.add("depth", [1, 2, 3])
    genes.add("k", [3, 5], parent=depth, among=[2])
    genes.add("w", [8, 16], parent=depth, above=1)
    return Space("conditional", genes, (), lambda plan: None, {})  # type: ignore[arg-type, return-value]


SPACE = conditional()
EVERY_CODE = list(product(*(range(len(gene.options)) for gene in SPACE.genes)))


def counted(codes: tuple[int, ...]) -> list[bool]:
    """The conditions above, by hand."""
    mode, op, _, depth, _, _ = (gene.options[code] for gene, code in zip(SPACE.genes, codes, strict=True))
    has_op = mode in ("b", "c")
    return [True, has_op, has_op and op in ("x", "z"), True, depth == 2, depth in (2, 3)]


def test_which_genes_count() -> None:
    for codes in EVERY_CODE:
        assert [SPACE.counts(gene, codes) for gene in SPACE.genes] == counted(codes)


def test_archs_differ_only_where_genes_count() -> None:
    by_counted: dict[tuple[int, ...], set[object]] = {}
    for codes in EVERY_CODE:
        arch = SPACE.decode(codes)
        canonical = tuple(code if counts else 0 for code, counts in zip(codes, counted(codes), strict=True))
        assert SPACE.encode(arch) == canonical
        assert SPACE.from_json(arch.to_json()) == arch
        by_counted.setdefault(canonical, set()).add(arch)
    assert all(len(archs) == 1 for archs in by_counted.values())
    assert len(set().union(*by_counted.values())) == len(by_counted) == SPACE.size()


def test_size_by_hand() -> None:
    """Mode a: 1, b and c: 2 + 1 + 2 each; depth 1: 1, 2: 4, 3: 2."""
    assert SPACE.size() == (1 + 2 * 5) * (1 + 4 + 2)
    assert len(list(enumerate_archs(SPACE))) == SPACE.size()
    assert SPACE.narrow({"mode": ["a", "c"], "depth": [1, 3]}).size() == (1 + 5) * (1 + 2)
    assert SPACE.narrow({"mode": ["a"]}).size() == 7
    assert SPACE.only(SPACE.largest()).size() == 1


def test_rows_agree_with_archs() -> None:
    codes = Codes(Constraint().on(SPACE))
    rows = np.array(EVERY_CODE)
    assert codes.counting(rows).tolist() == [counted(code) for code in EVERY_CODE]
    np.testing.assert_array_equal(codes.canonical(rows), encoded(SPACE, codes.archs(rows)))
    every = list(enumerate_archs(SPACE))
    assert [SPACE.decode(row) for row in _all_rows(SPACE).tolist()] == every
    drawn = Unseen(Constraint().on(SPACE)).random(np.random.default_rng(0), SPACE.size() + 1)
    assert len({SPACE.decode(row) for row in drawn.tolist()}) == len(drawn) == SPACE.size()


def test_columns_for_latency_ignore_genes_that_do_not_count() -> None:
    """One level: a child counts for its parent's values as the gene says."""
    genes = [Gene("mode", None, ("a", "b", "c")), Gene("op", None, ("x", "y", "z"), 0, among=("c",))]
    space = Space("pair", genes, (), lambda plan: None, {})  # type: ignore[arg-type, return-value]
    rows = np.array(list(product(range(3), range(3))))
    matrix = gene_columns(space).matrix(rows)
    same = [[(matrix[a] == matrix[b]).all() for b in range(9)] for a in range(9)]
    archs = [space.decode(row) for row in rows.tolist()]
    for a, b in product(range(9), range(9)):
        if rows[a, 0] == rows[b, 0]:
            assert same[a][b] == (archs[a] == archs[b])


def test_mutation_draws_genes_that_begin_to_count() -> None:
    rng = np.random.default_rng(0)
    start = SPACE.from_json({"mode": "a", "op": "x", "rate": 1, "depth": 1, "k": 3, "w": 8})
    found = [SPACE.mutate(start, rng, 0.5) for _ in range(600)]
    begun = [arch["op"] for arch in found if arch["mode"] != "a"]
    assert all(arch["op"] == "x" for arch in found if arch["mode"] == "a")
    shares = [begun.count(op) / len(begun) for op in "xyz"]
    assert min(shares) > 0.2


def test_crossover_takes_a_gene_from_the_parent_that_has_it() -> None:
    rng = np.random.default_rng(0)
    without = SPACE.from_json({"mode": "a", "op": "x", "rate": 1, "depth": 1, "k": 3, "w": 8})
    with_all = SPACE.from_json({"mode": "b", "op": "z", "rate": 2, "depth": 2, "k": 5, "w": 16})
    children = {SPACE.crossover(without, with_all, rng) for _ in range(60)}
    assert {(arch["mode"], arch["op"], arch["rate"]) for arch in children} == {("a", "x", 1), ("b", "z", 2)}
    assert {(arch["depth"], arch["k"], arch["w"]) for arch in children} == {(1, 3, 8), (2, 5, 16)}


@pytest.mark.parametrize("wrong", [Gene("b", None, (1, 2), among=("x",)), Gene("b", None, (1, 2), 0, 1.0, ("x",))])
def test_a_condition_has_a_parent_and_is_one(wrong: Gene) -> None:
    genes = [Gene("a", None, ("x", "y")), wrong]
    with pytest.raises(ValueError, match=r"b: among=\('x',\) needs a parent, and no `above`"):
        Space("wrong", genes, (), lambda plan: None, {})  # type: ignore[arg-type, return-value]
