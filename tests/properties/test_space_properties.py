"""Random spaces of every family: codes, values, descriptions, plans and costs agree."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import numpy as np
from families import (
    Case,
    cases,
    codes_of,
    counting_by_hand,
    gene_trees,
    numbers_of,
    rows_of,
    small_spaces,
    spaces,
)
from hypothesis import given
from hypothesis import strategies as st

from supernet import cost
from supernet.codec import canonical, decoded, encoded
from supernet.cost import memory_of, size_of
from supernet.runs import plain
from supernet.space import Space, load_space
from supernet.window import enumerate_archs

seeds = st.integers(0, 2**32)


@given(cases())
def test_codes_and_values(case: Case) -> None:
    """decode∘encode, the canonical form, JSON, and the same for many at a time."""
    space, codes = case
    counts = counting_by_hand(space, codes)
    expected = tuple(code if count else 0 for code, count in zip(codes, counts, strict=True))
    arch = space.decode(codes)
    assert space.encode(arch) == expected
    again = space.decode(expected)
    assert again == arch
    assert hash(again) == hash(arch)
    assert space.encode(again) == expected
    assert space.from_json(json.loads(json.dumps(arch.to_json()))) == arch
    rows = np.array([codes, expected])
    assert decoded(space, rows) == [arch, arch]
    assert canonical(space, rows).tolist() == [list(expected)] * 2
    assert encoded(space, [arch, arch]).tolist() == [list(expected)] * 2


@given(cases(), seeds)
def test_genes_that_do_not_count_change_nothing(case: Case, seed: int) -> None:
    space, codes = case
    rng = np.random.default_rng(seed)
    counts = counting_by_hand(space, codes)
    others = tuple(
        code if count else int(rng.integers(len(gene.options)))
        for gene, code, count in zip(space.genes, codes, counts, strict=True)
    )
    assert space.decode(others) == space.decode(codes)
    before, after = (cost.batch(space, np.array([row])) for row in (codes, others))
    assert [values.tolist() for values in before] == [values.tolist() for values in after]


@given(st.one_of(gene_trees(), small_spaces()))
def test_size_is_the_number_of_distinct_subnets(space: Space) -> None:
    distinct = set()
    for codes in itertools.product(*(range(len(gene.options)) for gene in space.genes)):
        counts = counting_by_hand(space, codes)
        distinct.add(tuple(code if count else 0 for code, count in zip(codes, counts, strict=True)))
    assert space.size() == len(distinct)
    listed = list(enumerate_archs(space))
    assert len(listed) == len(distinct)
    assert {space.encode(arch) for arch in listed} == distinct


@given(cases())
def test_a_description_in_json_gives_the_same_space(case: Case) -> None:
    space, codes = case
    again = load_space(json.loads(json.dumps(plain(space.config))))
    arch = space.decode(codes)
    assert again.genes == space.genes
    assert again.widest == space.widest
    assert again.plan(again.decode(codes)) == space.plan(arch)
    alone = load_space(json.loads(json.dumps(plain(space.only(arch).config))))
    assert alone.size() == 1
    assert alone.plan(alone.largest()) == space.plan(arch) == alone.widest


@given(cases(), st.data())
def test_a_narrowed_space_is_part_of_the_whole(case: Case, data: st.DataObject) -> None:
    space, _ = case
    key = data.draw(st.sampled_from([gene.key for gene in space.genes]))
    part = space.narrow({key: data.draw(st.sampled_from(("largest", "two_largest", "three_largest")))})
    arch = part.decode(data.draw(codes_of(part)))
    assert part.size() <= space.size()
    whole = space.from_json(arch.to_json())
    assert space.plan(whole) == part.plan(arch)


@given(cases())
def test_plans_and_prices(case: Case) -> None:
    """Tables of costs against the layers of the plan; every layer fits into the supernet's."""
    space, codes = case
    plan = space.plan(space.decode(codes))
    rows = np.array([codes])
    macs, params = cost.batch(space, rows)
    assert (macs.tolist(), params.tolist()) == ([plan.macs], [plan.params])
    assert memory_of(space).batch(rows).tolist() == [4 * plan.activations / 1e6]
    assert size_of(space).batch(rows).tolist() == [plan.bytes / 1e6]
    assert plan.macs >= 0
    assert plan.params > 0
    assert plan.activations > 0
    assert plan.resolution <= space.widest.resolution
    for name, spec in plan.layers:
        assert spec.params <= space.widest[name].params, name


@given(cases())
def test_raising_one_gene_never_lowers_the_cost(case: Case) -> None:
    """Resolution, width, depth, kernel, expand ratio: numbers. Names of operations have no order."""
    space, codes = case
    rows = np.array(list(_raised(space, codes)) or [codes])
    macs, params = cost.batch(space, np.array([codes]))
    more_macs, more_params = cost.batch(space, rows)
    assert (more_macs >= macs).all()
    assert (more_params >= params).all()


def _raised(space: Space, codes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """`codes` with each gene in turn at each of its larger options."""
    for i, gene in enumerate(space.genes):
        # Widths that become equal save the 1x1 conv of a shortcut.
        saves = gene.key == "width" and space.config.get("shortcut") == "always"
        for code in range(codes[i] + 1, len(gene.options) if numbers_of(gene) and not saves else 0):
            yield (*codes[:i], code, *codes[i + 1 :])


@given(cases(), st.data(), seeds, st.sampled_from((0.0, 0.1, 0.5, 1.0)))
def test_variation_stays_in_the_space(case: Case, data: st.DataObject, seed: int, prob: float) -> None:
    space, codes = case
    first, second = space.decode(codes), space.decode(data.draw(codes_of(space)))
    rng = np.random.default_rng(seed)
    mutant, child = space.mutate(first, rng, prob), space.crossover(first, second, rng)
    for arch in (mutant, child, space.sample(rng)):
        assert space.decode(space.encode(arch)) == arch
        assert space.plan(arch).params > 0
    old, new = space.encode(first), space.encode(mutant)
    kept = [a and b for a, b in zip(counting_by_hand(space, old), counting_by_hand(space, new), strict=True)]
    if prob == 0.0:
        assert mutant == first
    if prob == 1.0:
        assert not any(
            count and len(gene.options) > 1 and a == b
            for gene, count, a, b in zip(space.genes, kept, old, new, strict=True)
        )
    final = space.encode(child)
    parents = zip(final, counting_by_hand(space, final), old, space.encode(second), strict=True)
    assert all(code in (a, b) for code, count, a, b in parents if count)


@given(spaces())
def test_ends_and_rows(space: Space) -> None:
    """The first and the last option of everything; there are no more subnets than rows."""
    smallest, largest = space.smallest(), space.largest()
    assert set(space.encode(smallest)) == {0}
    assert all(
        code == len(gene.options) - 1 or not count
        for code, gene, count in zip(
            space.encode(largest), space.genes, counting_by_hand(space, space.encode(largest)), strict=True
        )
    )
    assert 1 <= space.size() <= rows_of(space)
