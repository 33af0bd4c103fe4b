"""MACs and parameters: against PyTorch's own counter, the modules themselves, and published numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import NAMED, TINY, all_codes, archs, random_codes, space_of
from torch.utils.flop_counter import FlopCounterMode

import supernet
from supernet import cost
from supernet.space import Space
from supernet.specs import ConvSpec, make_divisible, union

SPACES = {name: space_of(name) for name in [*NAMED, *TINY]}
GOLDEN = json.loads((Path(__file__).parent / "data" / "alphanet_archs.json").read_text())
all_spaces = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())


@pytest.fixture(scope="module")
def alphanet() -> Space:
    """At the original's 1,000 classes."""
    with torch.device("meta"):
        return supernet.build("alphanet", num_classes=1000).space


@all_spaces
def test_macs_and_params_of_extracted_modules(space: Space) -> None:
    """On the meta device: shapes only."""
    for arch in [space.smallest(), space.largest(), *archs(space, 8)]:
        plan = space.plan(arch)
        with torch.device("meta"):
            module = space.module(plan)
            image = torch.empty(1, space.config["in_channels"], plan.resolution, plan.resolution)
        with FlopCounterMode(display=False) as counter:
            module(image)
        measured = cost(plan)
        assert isinstance(measured.macs, int)
        assert isinstance(measured.params, int)
        assert 2 * measured.macs == counter.get_total_flops()
        assert measured.params == sum(p.numel() for p in module.parameters())


@all_spaces
def test_batch_equals_plans(space: Space) -> None:
    """Also for rows that are not canonical."""
    rows = random_codes(space, 60)
    macs, params = cost.batch(space, np.array(rows))
    expected = [cost(space.plan(space.decode(row))) for row in rows]
    assert macs.dtype == params.dtype == np.int64
    assert macs.tolist() == [c.macs for c in expected]
    assert params.tolist() == [c.params for c in expected]


def test_batch_on_a_whole_space() -> None:
    for name in TINY:
        space = SPACES[name]
        rows = all_codes(space)
        expected = [cost(space.plan(space.decode(row))) for row in rows]
        macs, params = cost.batch(space, np.array(rows))
        assert list(zip(macs.tolist(), params.tolist(), strict=True)) == [tuple(c) for c in expected]


@all_spaces
def test_every_gene_is_monotone(space: Space) -> None:
    rows = np.array([space.encode(arch) for arch in archs(space, 40)])
    base = cost.batch(space, rows)
    topology = {gene.parent for gene in space.genes if gene.among}  # which layers there are, not how large they are
    for i, gene in enumerate(space.genes):
        if i in topology:
            continue
        higher = rows.copy()
        higher[:, i] = np.minimum(higher[:, i] + 1, len(gene.options) - 1)
        if space.config.get("shortcut") == "always" and gene.key == "width":
            continue  # equal widths save a shortcut's conv
        for before, after in zip(base, cost.batch(space, higher), strict=True):
            assert (after >= before).all(), gene.name


@all_spaces
def test_ends_bound_everything(space: Space) -> None:
    smallest, largest = cost(space.plan(space.smallest())), cost(space.plan(space.largest()))
    for totals, low, high in zip(
        cost.batch(space, np.array(random_codes(space, 2000))), smallest, largest, strict=True
    ):
        assert low <= totals.min() <= totals.max() <= high


@all_spaces
def test_batch_refuses_bad_genes(space: Space) -> None:
    genes = len(space.genes)
    for bad in (np.zeros(genes, int), np.zeros((2, genes + 1), int)):
        with pytest.raises(ValueError, match="expected genes of shape"):
            cost.batch(space, bad)
    for value in (-1, 99):
        row = np.zeros((1, genes), int)
        row[0, -1] = value
        with pytest.raises(ValueError, match="out of range"):
            cost.batch(space, row)
    macs, params = cost.batch(space, np.zeros((0, genes), int))
    assert macs.shape == params.shape == (0,)


@pytest.mark.parametrize("name", GOLDEN)
def test_published_alphanet_models(alphanet: Space, name: str) -> None:
    """The integers of the original code at 1,000 classes; parameters that a forward pass uses."""
    space = alphanet
    plan = space.plan(space.from_json(GOLDEN[name]["arch"]))
    assert (plan.macs, plan.params) == (GOLDEN[name]["macs"], GOLDEN[name]["params"])


def test_alphanet_supernet_is_the_original_without_its_unused_shortcuts(alphanet: Space) -> None:
    """23,934,704 parameters, of which 530,048 sit in 30 convs that no subnet can use."""
    space = alphanet
    module: Any
    with torch.device("meta"):
        module = space.module(space.widest)
    assert sum(p.numel() for p in module.parameters()) == space.widest.params == 23_934_704 - 530_048


def test_conv_by_hand() -> None:
    """3x3, 4 -> 8 channels, 5x5 output: 8 * 4 * 9 * 25 MACs; weights, and scale and shift of the norm."""
    dense = ConvSpec(4, 8, size=5, kernel=3)
    assert (dense.macs, dense.params) == (7200, 288 + 16)
    depthwise = ConvSpec(8, 8, size=5, kernel=3, depthwise=True, bias=True, norm_eps=None)
    assert (depthwise.macs, depthwise.params) == (1800, 72 + 8)


def test_make_divisible() -> None:
    """The values of MobileNetV2's rule, the last being the reason for its second half."""
    table = {1: 8, 8: 8, 11: 16, 12: 16, 16: 16, 19: 24, 20: 24, 27: 32, 144: 144, 150: 152, 10: 16}
    assert {value: make_divisible(value) for value in table} == table


def test_make_divisible_stays_within_ten_percent() -> None:
    for value in range(1, 2000):
        rounded = make_divisible(value)
        assert rounded % 8 == 0
        assert 0.9 * value <= rounded
        assert rounded - value < 8


def test_union_is_field_by_field() -> None:
    a, b = ConvSpec(4, 16, size=5, kernel=3), ConvSpec(8, 8, size=9, kernel=1)
    assert union([a, None, b]) == ConvSpec(8, 16, size=9, kernel=3)
    with pytest.raises(ValueError, match="cannot differ"):
        union([a, ConvSpec(4, 16, size=5, kernel=3, act="relu")])
