"""Conformance of every space: codes, canonical form, JSON, size, variation."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NAMED, TINY, all_codes, archs, random_codes, space_of

import supernet
from supernet.errors import UserError
from supernet.space import Gene, Space, restrict
from supernet.specs import MBConvSpec

SPACES = {name: space_of(name) for name in [*NAMED, *TINY]}
SIZES = {"alphanet": 440_301_256_704}
all_spaces = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
tiny_spaces = pytest.mark.parametrize("name", TINY)


def counting(space: Space, codes: tuple[int, ...]) -> list[bool]:
    """Independently of the space's own rule: a gene counts if depth reaches its block, or its edge is there."""
    flags = []
    for gene in space.genes:
        if gene.parent is None:
            flags.append(True)
        else:
            parent = space.genes[gene.parent]
            if gene.among is not None:
                flags.append(parent.options[codes[gene.parent]] in gene.among)
                continue
            flags.append(parent.options[codes[gene.parent]] > gene.above)  # type: ignore[operator]
    return flags


@all_spaces
def test_codes_and_values_are_inverse(space: Space) -> None:
    for arch in [space.smallest(), space.largest(), *archs(space, 50)]:
        codes = space.encode(arch)
        assert len(codes) == len(space.genes)
        assert space.decode(codes) == arch
        assert space.encode(space.decode(codes)) == codes


@all_spaces
def test_json_round_trip(space: Space) -> None:
    for arch in archs(space, 20):
        text = json.dumps(arch.to_json())
        again = space.from_json(json.loads(text))
        assert again == arch
        assert hash(again) == hash(arch)
        assert space.from_json({key: json.loads(text)[key] for key in reversed(arch.to_json())}) == arch


@all_spaces
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_genes_that_do_not_count_do_not_matter(space: Space, data: Any) -> None:
    codes = data.draw(st.tuples(*(st.integers(0, len(g.options) - 1) for g in space.genes)))
    other = data.draw(st.tuples(*(st.integers(0, len(g.options) - 1) for g in space.genes)))
    counts = counting(space, codes)
    mixed = [a if c else b for a, b, c in zip(codes, other, counts, strict=True)]
    first, second = space.decode(codes), space.decode(mixed)
    assert first == second
    assert hash(first) == hash(second)
    assert space.plan(first) is space.plan(second)
    assert space.encode(first) == tuple(a if c else 0 for a, c in zip(codes, counts, strict=True))


@all_spaces
def test_genes_that_count_change_the_arch(space: Space) -> None:
    for codes in random_codes(space, 10):
        arch = space.decode(codes)
        for i, (gene, counts) in enumerate(zip(space.genes, counting(space, codes), strict=True)):
            if counts and len(gene.options) > 1:
                changed = [*codes]
                changed[i] = (codes[i] + 1) % len(gene.options)
                assert space.decode(changed) != arch, gene.name


@all_spaces
def test_different_archs_of_different_genes_have_different_plans(space: Space) -> None:
    sampled = set(archs(space, 100))
    assert len({space.plan(arch) for arch in sampled}) == len(sampled)


@tiny_spaces
def test_size_is_the_number_of_distinct_archs(name: str) -> None:
    space = SPACES[name]
    distinct = {space.decode(codes) for codes in all_codes(space)}
    assert space.size() == len(distinct)
    assert len({space.plan(arch) for arch in distinct}) == len(distinct)


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_published_sizes(name: str, size: int) -> None:
    assert SPACES[name].size() == size
    assert isinstance(SPACES[name].size(), int)


def test_size_of_a_per_block_space_by_hand() -> None:
    """Sum over depths of (options per block) ** depth, times the rest."""
    space = SPACES["tiny_block"]
    widths = math.prod(len(g.options) for g in space.genes if g.key == "width")
    assert space.size() == widths * (1 + 1) * (4 + 4**2 + 4**3)


@all_spaces
def test_ends(space: Space) -> None:
    codes = space.encode(space.largest())
    ends = zip(codes, counting(space, codes), space.genes, strict=True)
    assert all(code == len(gene.options) - 1 for code, counts, gene in ends if counts)
    assert not any(space.encode(space.smallest()))


@all_spaces
def test_queries_are_pure(space: Space) -> None:
    arch = space.sample(np.random.default_rng(3))
    before = copy.deepcopy(arch)
    plan = space.plan(arch)
    space.mutate(arch, np.random.default_rng(0), 1.0)
    space.crossover(arch, space.largest(), np.random.default_rng(0))
    assert arch == before
    assert space.plan(arch) == space._plan(arch) == plan
    assert pickle.loads(pickle.dumps(arch)) == arch
    with pytest.raises(dataclasses.FrozenInstanceError):
        arch.choices = ()  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.resolution = 1  # type: ignore[misc]
    for value in arch.to_json().values():
        if isinstance(value, list):
            value[0] = -1
    assert arch == before


@all_spaces
def test_draws_depend_on_the_generator_only(space: Space) -> None:
    state = np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    assert archs(space, 5, seed=1) == archs(space, 5, seed=1)
    assert archs(space, 5, seed=1) != archs(space, 5, seed=2)
    assert [space.sample(rng := np.random.default_rng(1)), *(space.sample(rng) for _ in range(4))] == archs(space, 5, 1)
    assert np.random.get_state()[1].tolist() == state  # type: ignore[union-attr]
    assert space.sample(np.random.default_rng(0), 0) == []


def test_sampling_is_uniform_over_options() -> None:
    """Chi-square per gene that always counts, at about five standard deviations."""
    space = SPACES["alphanet"]
    drawn = np.array([space.encode(arch) for arch in archs(space, 3000)])
    for i, gene in enumerate(space.genes):
        counts = np.bincount(drawn[:, i], minlength=len(gene.options))
        expected = 3000 / len(gene.options)
        freedom = len(gene.options) - 1
        assert ((counts - expected) ** 2 / expected).sum() <= freedom + 5 * math.sqrt(2 * freedom) + 5, gene.name


def test_sampling_is_uniform_where_a_gene_counts() -> None:
    space = SPACES["tiny_block"]
    drawn = [space.encode(arch) for arch in archs(space, 3000)]
    for i, gene in enumerate(space.genes):
        relevant = [codes[i] for codes in drawn if counting(space, codes)[i]]
        for count in Counter(relevant).values():
            assert abs(count / len(relevant) - 1 / len(gene.options)) < 0.08, gene.name


@all_spaces
def test_mutation_with_probability_0_is_the_identity(space: Space) -> None:
    rng = np.random.default_rng(0)
    assert all(space.mutate(arch, rng, 0.0) == arch for arch in archs(space, 30))


@all_spaces
def test_mutation_with_probability_1_changes_every_gene_that_counted(space: Space) -> None:
    rng = np.random.default_rng(0)
    for arch in archs(space, 30):
        old, new = space.encode(arch), space.encode(space.mutate(arch, rng, 1.0))
        both = zip(counting(space, old), counting(space, new), space.genes, old, new, strict=True)
        for was, still, gene, a, b in both:
            if was and still and len(gene.options) > 1:
                assert a != b, gene.name


def test_mutation_rate() -> None:
    space, rng = SPACES["alphanet"], np.random.default_rng(0)
    free = [i for i, gene in enumerate(space.genes) if len(gene.options) > 1]
    old = np.array([space.encode(a) for a in archs(space, 400)])
    new = np.array([space.encode(space.mutate(a, rng, 0.2)) for a in archs(space, 400)])
    assert (old != new)[:, free].mean() == pytest.approx(0.2, abs=0.02)


def test_mutation_draws_new_blocks_uniformly() -> None:
    """Genes that begin to count must not always start at their first option."""
    space, rng = SPACES["tiny_block"], np.random.default_rng(0)
    shallow = space.smallest()
    deeper = [b for b in (space.mutate(shallow, rng, 0.5) for _ in range(300)) if b["depth"][1] == 3]
    kernels = Counter(b["kernel"][4] for b in deeper)
    assert kernels[3] > len(deeper) * 0.3
    assert kernels[5] > len(deeper) * 0.3


@all_spaces
def test_crossover_takes_each_gene_from_a_parent_that_has_it(space: Space) -> None:
    rng = np.random.default_rng(0)
    mixed = 0
    for first, second in zip(archs(space, 40, 1), archs(space, 40, 2), strict=True):
        a, b = space.encode(first), space.encode(second)
        child = space.crossover(first, second, rng)
        codes = space.encode(child)
        parents = zip(counting(space, a), counting(space, b), counting(space, codes), strict=True)
        for i, (in_a, in_b, in_child) in enumerate(parents):
            if in_child:
                sources = ([a[i]] if in_a else []) + ([b[i]] if in_b else [])
                assert codes[i] in sources, space.genes[i].name
        mixed += child not in (first, second)
        assert space.crossover(first, first, rng) == first
    assert mixed > 20 or len(space.genes) < 4


@all_spaces
def test_bad_codes_name_the_gene(space: Space) -> None:
    codes = [0] * len(space.genes)
    with pytest.raises(ValueError, match=f"{len(space.genes)} genes, got {len(space.genes) - 1}"):
        space.decode(codes[:-1])
    for bad in (-1, 99):
        with pytest.raises(ValueError, match=re.escape(f"{space.genes[1].name}: index")):
            space.decode([0, bad, *codes[2:]])


@all_spaces
def test_bad_json_names_the_entry(space: Space) -> None:
    good = space.smallest().to_json()
    free = {gene.key for gene in space.genes if len(gene.options) > 1}
    with pytest.raises(ValueError, match="has the keys"):
        space.from_json({**good, "color": 1})
    for key in free:
        with pytest.raises(ValueError, match="has the keys"):
            space.from_json({name: value for name, value in good.items() if name != key})
    for bad in (777, "3", None, [777], {}, 3.5001, True):
        with pytest.raises(ValueError, match="resolution="):
            space.from_json({**good, "resolution": bad})
    for key in {gene.key for gene in space.genes if gene.index is not None}:
        for wrong in (3, [*good[key], *good[key]] * 20, []):
            with pytest.raises(ValueError, match=f"{key} must be a list of"):
                space.from_json({**good, key: wrong})
        for bad in (777, "3", None, [3], {}, 3.5001):
            with pytest.raises(ValueError, match=rf"{key}\[1\]="):
                space.from_json({**good, key: [good[key][0], bad, *good[key][2:]]})


def test_other_spellings_of_an_arch() -> None:
    """The published codes' keys, keys with nothing to choose left out, and lists that end with the last block."""
    space = SPACES["ofa_mbv3"]
    for arch in archs(space, 20):
        data = arch.to_json()
        peer = {"ks": data["kernel"], "e": data["expand"], "d": data["depth"], "r": [data["resolution"]]}
        assert space.from_json(peer) == arch
        with pytest.raises(ValueError, match="has the keys"):
            space.from_json({**peer, "kernel": data["kernel"]})
        last = 16 + data["depth"][-1]
        assert space.from_json({**data, "kernel": data["kernel"][:last], "expand": data["expand"][:last]}) == arch
        with pytest.raises(ValueError, match="kernel must be a list of 20"):
            space.from_json({**data, "kernel": data["kernel"][: last - 1]})
    transformer = SPACES["autoformer_tiny"]
    for arch in archs(transformer, 20):
        data = arch.to_json()
        assert {len(data[key]) for key in ("mlp_ratio", "num_heads", "embed_dim")} == {data["layer_num"]}
        assert transformer.from_json({key: value for key, value in data.items() if key != "resolution"}) == arch
        assert transformer.from_json({**data, "embed_dim": data["embed_dim"][0]}) == arch


def test_archs_of_other_spaces_are_refused() -> None:
    small, large = SPACES["tiny_stage"], SPACES["alphanet"]
    for call in (small.encode, small.plan):
        with pytest.raises(ValueError, match="does not belong"):
            call(large.largest())
        with pytest.raises(ValueError, match="does not belong"):
            call(SPACES["tiny_block"].largest())
    same_shape = space_of("tiny_stage").from_json(small.largest().to_json())
    assert small.encode(same_shape)
    other = supernet.build("bignas", num_classes=10).space
    with pytest.raises(ValueError, match="does not belong"):
        large.encode(other.largest())
    with pytest.raises(ValueError, match="does not belong"):
        large.plan(other.largest())


@all_spaces
def test_only_one_arch(space: Space) -> None:
    for arch in [space.smallest(), *archs(space, 3)]:
        single = space.only(arch)
        assert single.size() == 1
        assert single.largest() == single.smallest() == arch
        assert single.plan(arch) == single.widest == space.plan(arch)
        assert single.config["_target_"] == "supernet.space.restrict"
        again = restrict(space, single.config["arch"])
        assert again.largest() == arch


@all_spaces
def test_the_widest_plan_holds_every_subnet(space: Space) -> None:
    for arch in archs(space, 20):
        for name, spec in space.plan(arch).layers:
            wide = space.widest[name]
            assert wide.params >= spec.params
            if isinstance(spec, MBConvSpec):
                assert wide.project.out_channels >= spec.project.out_channels
                assert wide.depthwise.kernel >= spec.depthwise.kernel


@all_spaces
def test_config_rebuilds_the_space(space: Space) -> None:
    from supernet.construct import construct

    for original in (space, space.only(archs(space, 1)[0])):
        again = construct(json.loads(json.dumps(original.config)), "space")
        assert again.genes == original.genes
        assert again.widest == original.widest
        assert again.size() == original.size()


@pytest.mark.parametrize("options", [(), (2, 1), (1, 1)])
def test_bad_options_are_refused(options: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"options must be (distinct|ascending)"):
        Space("x", [Gene("depth", None, options)], [], lambda plan: None, {})  # type: ignore[arg-type, return-value]


def test_parents_come_first() -> None:
    genes = [Gene("kernel", None, (3, 5), parent=1), Gene("depth", None, (1, 2))]
    with pytest.raises(ValueError, match="must come before"):
        Space("x", genes, [], lambda plan: None, {})  # type: ignore[arg-type, return-value]


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UserError, match="alphanet"):
        supernet.build("alphnet")
