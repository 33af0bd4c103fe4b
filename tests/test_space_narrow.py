"""Spaces with fewer options: what is left, and that their subnets are those of the whole space."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from nets import NAMED, TINY, all_codes, archs, space_of
from tiny import tiny_space

from supernet.errors import UserError
from supernet.space import Space, load_space

SPACES = {name: space_of(name) for name in [*NAMED, *TINY]}
all_spaces = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
SPACE = tiny_space()


def without_last(space: Space) -> Space:
    """Every gene of two options or more loses its last one, by lists; where genes share a key, one of them may not."""
    last = {gene.key: gene.options[-1] for gene in space.genes}
    options = {
        key: [o for gene in space.genes if gene.key == key for o in gene.options if o != last[key]]
        for key in last
        if all(len(set(gene.options) - {last[key]}) > 0 for gene in space.genes if gene.key == key)
    }
    return space.narrow(options)


@all_spaces
@pytest.mark.parametrize("how", ["lists", "words"])
def test_narrowed_archs_build_the_same_subnets_in_the_whole_space(space: Space, how: str) -> None:
    words = dict.fromkeys((gene.key for gene in space.genes), "two_largest")
    narrow = without_last(space) if how == "lists" else space.narrow(words)
    for arch in [narrow.smallest(), narrow.largest(), *archs(narrow, 20)]:
        whole = space.from_json(arch.to_json())
        assert space.decode(space.encode(whole)) == whole
        assert space.plan(whole) == narrow.plan(arch)
        assert narrow.from_json(arch.to_json()) == arch
    assert how == "lists" or space.from_json(narrow.largest().to_json()) == space.largest()


@all_spaces
def test_a_narrowed_space_is_rebuilt_from_its_description(space: Space) -> None:
    narrow = without_last(space)
    again = load_space(json.loads(json.dumps(narrow.config)))
    assert again.genes == narrow.genes
    assert again.widest == narrow.widest
    assert again.description["_target_"] == space.config["_target_"]
    assert archs(again, 5) == archs(narrow, 5)


@all_spaces
def test_the_largest_alone(space: Space) -> None:
    words = dict.fromkeys((gene.key for gene in space.genes), "largest")
    one = space.narrow(words)
    assert one.size() == 1
    assert one.plan(one.smallest()) == space.plan(space.largest())
    sides = space.genes[[gene.key for gene in space.genes].index("resolution")].options
    assert space.narrow({**words, "resolution": "all"}).size() == len(sides)


CASES: list[tuple[dict[str, Any], dict[str, list[Any]]]] = [
    ({"kernel": [5], "depth": [2, 3]}, {"depth[1]": [2, 3], "kernel[1]": [5], "depth[0]": [2]}),
    ({"kernel": 3, "resolution": 8}, {"kernel[1]": [3], "resolution": [8]}),
    ({"depth": "two_largest", "expand": "largest"}, {"depth[1]": [2, 3], "expand[1]": [3]}),
    (
        {"depth": "three_largest", "width": "largest"},
        {"width[0]": [8], "width[1]": [12], "width[2]": [16], "width[3]": [24]},
    ),
    ({"depth": "all"}, {}),
    ({}, {}),
]


@pytest.mark.parametrize(("options", "left"), CASES)
def test_what_is_left_is_what_a_filter_of_all_subnets_leaves(
    options: dict[str, Any], left: dict[str, list[Any]]
) -> None:
    expected = set()
    for codes in all_codes(SPACE):
        arch = SPACE.decode(codes)
        genes = [gene for gene in SPACE.genes if SPACE.counts(gene, codes)]
        values = {gene.name: gene.options[SPACE.encode(arch)[SPACE.genes.index(gene)]] for gene in genes}
        if all(value in left.get(name, [value]) for name, value in values.items()):
            expected.add(arch)
    narrow = SPACE.narrow(options)
    found = [SPACE.from_json(narrow.decode(codes).to_json()) for codes in all_codes(narrow)]
    assert set(found) == expected
    assert narrow.size() == len(expected)


def test_of_genes_that_share_a_key_each_keeps_its_own() -> None:
    narrow = SPACE.narrow({"kernel": [5], "expand": [2]})
    options = {gene.name: gene.options for gene in narrow.genes}
    assert options["kernel[0]"] == (3,)  # a single option has nothing to lose
    assert options["kernel[1]"] == (5,)
    assert options["expand[0]"] == (1,)
    assert options["expand[1]"] == (2,)


def test_a_single_option_of_a_shallow_stage_counts_still() -> None:
    """Kernel and expand genes follow the depth that is left: 3 blocks, all of them chosen for."""
    space = space_of("mbv3_tiny")
    deep = space.narrow({"depth": "largest"})
    counted = math.prod(len(gene.options) for gene in space.genes if gene.key != "depth")
    assert deep.size() == counted


def test_narrowing_goes_on() -> None:
    twice = SPACE.narrow({"depth": "largest"}).narrow({"kernel": [3]})
    assert twice.size() == SPACE.narrow({"kernel": [3], "depth": "largest"}).size()
    assert load_space(json.loads(json.dumps(twice.config))).genes == twice.genes
    arch = twice.sample(np.random.default_rng(0))
    assert twice.only(arch).size() == 1
    assert load_space(twice.only(arch).config).plan(arch) == twice.plan(arch)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernal": [3]}, "kernal: space 'tiny' has no such choice; its choices are \\['resolution', 'width', 'depth'"),
        ({"kernel": [3, 9]}, "kernel=9: not an option of kernel in space 'tiny', which has \\[3, 5\\]"),
        ({"kernel": "biggest"}, "kernel=biggest: give a list of options, or one of largest, two_largest"),
        ({"width": [8, 12]}, "width\\[3\\]: none of \\[8, 12\\] is one of its options \\[16, 24\\]"),
        ({"depth": []}, "depth\\[0\\]: none of \\[\\]"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SPACE.narrow(options)


def test_a_description_names_nothing_else() -> None:
    with pytest.raises(UserError, match="not allowed here"):
        load_space({"_target_": "supernet.narrow.Space", "space": SPACE.config, "options": {}})
