"""Random search spaces of every family, so small that a network of them runs in milliseconds.

Whatever these strategies draw is allowed, so a constructor that refuses it fails the test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from supernet.construct import construct
from supernet.errors import UserError
from supernet.layers.conv import ACTIVATIONS
from supernet.space import Gene, Space

Settings = dict[str, Any]
Case = tuple[Space, tuple[int, ...]]  # a space, and option indices that need not be canonical

KERNELS = (1, 3, 5, 7)
RATIOS = (0.5, 1, 1.5, 2, 3.5)
EDGES = ("skip_connect", "avg_pool_3x3", "max_pool_3x3", "nor_conv_1x1", "nor_conv_3x3")
EDGES += ("dil_conv_3x3", "dil_conv_5x5", "sep_conv_3x3", "sep_conv_5x5")
BLOCKS = ("identity", "k3_e1", "k3_e2", "k5_e2", "k7_e3")
activations = st.sampled_from(sorted(ACTIVATIONS))
epsilons = st.sampled_from((1e-5, 1e-3))


def some(values: Any, most: int = 3) -> Any:
    """One to `most` of `values`, ascending and without repeats; as often many as few, which lists alone are not."""
    drawn = values if isinstance(values, st.SearchStrategy) else st.sampled_from(values)
    counts = st.sampled_from(range(most, 0, -1))
    return counts.flatmap(lambda count: st.lists(drawn, min_size=count, max_size=count, unique=True).map(sorted))


def names(values: tuple[str, ...], most: int) -> Any:
    """One to `most` of `values`, in any order."""
    return st.lists(st.sampled_from(values), min_size=1, max_size=most, unique=True)


widths = st.integers(1, 20)
odd = st.sampled_from(KERNELS)


@st.composite
def mbconv(draw: st.DrawFn) -> Settings:
    shortcut = draw(st.sampled_from(("residual", "always")))
    scaled = draw(st.booleans())
    most = 1 if scaled else 3
    se = st.one_of(
        st.booleans(),
        st.fixed_dictionaries({"ratio": st.sampled_from((0.25, 1)), "act": activations, "gate": activations}),
    )
    stages = []
    for _ in range(draw(st.integers(1, 3))):
        stage = {
            "width": draw(some(widths, most)),
            "depth": draw(some(st.integers(1, 3))),
            "kernel": draw(some(odd)),
            "expand": draw(some(RATIOS)),
            "stride": draw(st.integers(1, 2 if shortcut == "always" else 3)),
            "act": draw(activations),
            "se": draw(se),
        }
        single = all(len(stage[key]) == 1 for key in ("width", "depth", "kernel", "expand"))
        stages.append({**stage, "fixed": single and draw(st.booleans())})
    return {
        "resolution": draw(some(st.integers(3, 14), 2)),
        "stem": {"width": draw(some(widths, most)), "kernel": draw(odd), "stride": draw(st.integers(1, 2))},
        "stages": stages,
        "head": {"width": draw(some(widths, most)), "expand": draw(st.none() | st.integers(1, 3))},
        "choose": draw(st.sampled_from(("stage", "block"))),
        "shortcut": shortcut,
        "norm_eps": draw(epsilons),
        "drop_path_stages": draw(st.integers(0, 3)),
        "kernel_transform": draw(st.booleans()),
        "width_mult": draw(some((0.25, 0.6, 1.0, 1.3))) if scaled else None,
    }


@st.composite
def resnet(draw: st.DrawFn) -> Settings:
    choose = draw(st.sampled_from(("part", "network")))
    middle = draw(st.none() | widths)
    stem = {"width": draw(widths), "kernel": draw(odd), "middle": middle}
    if middle is not None:
        stem["depth"] = draw(some(st.integers(0, 2)))
    stages = []
    for _ in range(draw(st.integers(1, 3))):
        inside = {"expand": draw(some(RATIOS))} if choose == "part" else {"middle": draw(widths)}
        stage = {"width": draw(widths), "blocks": draw(st.integers(1, 2)), "depth": draw(some(st.integers(0, 2)))}
        stages.append({**stage, **inside, "stride": draw(st.integers(1, 2))})
    return {
        "resolution": draw(some(st.integers(4, 16), 2)),
        "stem": stem,
        "stages": stages,
        "width_mult": draw(some((0.25, 0.65, 1.0, 1.2))),
        "choose": choose,
        "shortcut": draw(st.sampled_from(("pool", "conv"))),
        "norm_eps": draw(epsilons),
    }


@st.composite
def vit(draw: st.DrawFn) -> Settings:
    patch, qkv = draw(st.integers(1, 4)), draw(st.sampled_from(("elastic", "fixed")))
    dims, ratios = draw(some(st.integers(3, 16))), draw(some((1, 1.5, 2.3, 3)))
    relative = draw(st.none() | st.integers(1, 4))
    super_dim = 24 if qkv == "fixed" else draw(st.none() | st.integers(dims[-1], 24))
    return {
        "resolution": [patch * draw(st.integers(1, 4))],
        "patch": patch,
        "embed_dim": dims,
        "num_heads": draw(some(st.integers(1, 3), 1 if qkv == "fixed" and relative else 3)),
        "mlp_ratio": ratios,
        "layer_num": draw(some(st.integers(1, 3))),
        "head_dim": draw(st.integers(1, 8)),
        "super_dim": super_dim,
        "super_mlp_ratio": draw(st.sampled_from((None, 3.0, 3.7))),
        "pool": draw(st.sampled_from(("mean_patches", "cls"))),
        "relative_position": relative,
        "abs_pos": draw(st.booleans()),
        "pre_norm": draw(st.booleans()),
        "scale": draw(st.booleans()),
        "qkv": qkv,
        "qkv_bias": draw(st.sampled_from(("flat", "shared", "none"))),
        "norm_eps": draw(epsilons),
    }


@st.composite
def cell(draw: st.DrawFn) -> Settings:
    kinds = draw(st.lists(st.sampled_from(("normal", "reduce")), min_size=1, max_size=3))
    return {
        "resolution": [draw(st.integers(2 ** (kinds.count("reduce") + 1), 17))],
        "cells": [{"kind": kind, "width": draw(st.integers(1, 8))} for kind in kinds],
        "ops": draw(names(EDGES, 4)),
        "nodes": draw(st.integers(1, 2)),
        "hidden": draw(widths),
        "entangled": draw(st.booleans()),
        "affine": draw(st.booleans()),
        "norm_eps": draw(epsilons),
    }


@st.composite
def conv_macro(draw: st.DrawFn) -> Settings:
    return {
        "resolution": [draw(st.integers(12, 16))],
        "width": [draw(some(widths)) for _ in range(4)],
        "kernel": draw(some(odd)),
        "last_width": draw(widths),
        "hidden": draw(st.lists(widths, max_size=2)),
    }


@st.composite
def macro(draw: st.DrawFn) -> Settings:
    blocks = {"width": widths, "blocks": st.integers(1, 3), "stride": st.integers(1, 3)}
    return {
        "resolution": draw(some(st.integers(3, 14), 2)),
        "operations": draw(names(BLOCKS, 4)),
        "stem": draw(widths),
        "stages": draw(st.lists(st.fixed_dictionaries(blocks), min_size=1, max_size=3)),
        "head": draw(widths),
        "entangled": draw(st.booleans()),
        "norm_eps": draw(epsilons),
    }


@st.composite
def darts(draw: st.DrawFn) -> Settings:
    return {
        "resolution": draw(some(st.integers(3, 8), 2)),
        "channels": draw(st.integers(2, 4)),
        "cells": 3,
        "ops": draw(names(EDGES, 3)),
        "entangled": draw(st.booleans()),
        "affine": draw(st.booleans()),
        "pool_norm": draw(st.booleans()),
        "norm_eps": draw(epsilons),
    }


@st.composite
def nb201(draw: st.DrawFn) -> Settings:
    return {
        "resolution": draw(some(st.integers(1, 9), 2)),
        "channels": draw(st.integers(1, 5)),
        "cells": draw(st.integers(1, 2)),
        "ops": draw(names(("none", *EDGES), 3)),  # a table has all combinations on six edges
        "entangled": draw(st.booleans()),
        "affine": draw(st.booleans()),
        "norm_eps": draw(epsilons),
    }


FAMILIES = {family.__name__: family() for family in (mbconv, resnet, vit, cell, conv_macro, macro, darts, nb201)}


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """A space of any family."""
    family = draw(st.sampled_from(sorted(FAMILIES)))
    settings = draw(FAMILIES[family])
    shape = {"num_classes": draw(st.integers(1, 5)), "in_channels": draw(st.integers(1, 3))}
    config = {"_target_": f"supernet.models.{family}.space", "name": family, **settings, **shape}
    space: Space = construct(config, "space")
    return space


def rows_of(space: Space) -> int:
    """How many rows of option indices there are, canonical or not."""
    return math.prod(len(gene.options) for gene in space.genes)


@st.composite
def small_spaces(draw: st.DrawFn, most: int = 200) -> Space:
    """A space of any family with few enough subnets to look at all: where there are more, keys lose options."""
    space = draw(spaces())
    for key in draw(st.permutations(list(dict.fromkeys(gene.key for gene in space.genes)))):
        if rows_of(space) > most:
            space = space.narrow({key: "largest"})
    return space


def codes_of(space: Space) -> Any:
    """Option indices of every gene."""
    return st.tuples(*(st.integers(0, len(gene.options) - 1) for gene in space.genes))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A space of any family, and option indices."""
    space = draw(spaces())
    return space, draw(codes_of(space))


@st.composite
def part_cases(draw: st.DrawFn) -> Case:
    """A space that is more than one subnet, and option indices of one that has fewer parameters than the supernet."""
    space = draw(spaces())
    whole = space.widest.params
    codes = draw(codes_of(space))
    for i, gene in enumerate(space.genes):  # where that is the supernet, genes lose an option until it is not
        if space.plan(space.decode(codes)).params < whole:
            break
        codes = (*codes[:i], max(0, min(codes[i], len(gene.options) - 2)), *codes[i + 1 :])
    assume(space.plan(space.decode(codes)).params < whole)
    return space, codes


@st.composite
def gene_trees(draw: st.DrawFn) -> Space:
    """A space of genes alone: any options, and conditions on conditions."""
    genes: list[Gene] = []
    for i in range(draw(st.integers(1, 6))):
        words = draw(st.booleans())
        options: Any = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True))
        if not words:
            options = draw(some(st.integers(-2, 5) | st.sampled_from((0.5, 2.5))))
        parent = draw(st.none() | st.integers(0, i - 1)) if i else None
        condition: Settings = {}
        if parent is not None:
            above = numbers_of(genes[parent]) and draw(st.booleans())
            values = genes[parent].options
            condition = (
                {"above": draw(st.integers(-3, 5))}
                if above
                else {"among": tuple(draw(st.sets(st.sampled_from(values))))}
            )
        genes.append(Gene(f"g{i}", None, tuple(options), parent, **condition))
    return Space("genes", genes, [], lambda plan: None, {})  # type: ignore[arg-type, return-value]


def numbers_of(gene: Gene) -> bool:
    """Whether its options are numbers."""
    return not isinstance(gene.options[0], str)


def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str | None:
    """What a user is told if the call is refused, which must be one line; None if it is not."""
    message = None
    try:
        call(*args, **kwargs)
    except UserError as error:
        message = str(error)
    assert message is None or len(message.strip().splitlines()) == 1, message
    return message


def counting_by_hand(space: Space, codes: tuple[int, ...]) -> list[bool]:
    """Which genes count: those without a condition, and those whose parent counts and has one of the right values."""
    counts: list[bool] = []
    for gene in space.genes:
        if gene.parent is None:
            counts.append(True)
            continue
        value = space.genes[gene.parent].options[codes[gene.parent]]
        right = value in gene.among if gene.among is not None else not isinstance(value, str) and value > gene.above
        counts.append(counts[gene.parent] and right)
    return counts
