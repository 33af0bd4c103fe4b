"""Cell spaces: the benchmark's names of its networks, and mistakes in configurations."""

from __future__ import annotations

from typing import Any

import pytest
from nets import archs
from tiny_cells import bench, toy

from supernet import UserError
from supernet.models import nb201


def test_names_of_the_benchmark() -> None:
    space = bench()
    name = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|none~1|nor_conv_3x3~2|"
    arch = space.from_json(nb201.parse(name))
    expected = ["avg_pool_3x3", "nor_conv_1x1", "skip_connect", "nor_conv_1x1", "none", "nor_conv_3x3"]
    assert list(arch["edges"]) == expected
    assert nb201.arch_string(arch) == name
    for other in archs(space, 50):
        assert space.from_json(nb201.parse(nb201.arch_string(other))) == other


@pytest.mark.parametrize(
    "text",
    [
        "",
        "|none~0|",
        "|none~0|+|none~0|none~1|+|none~0|none~1|",
        "|none~0|+|none~0|none~0|+|none~0|none~1|none~2|",
        "|none~0|+|none~1|none~0|+|none~0|none~1|none~2|",
        "none~0+none~0|none~1+none~0|none~1|none~2",
        "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|+|none~0|none~1|none~2|none~3|",
        "|none|+|none~0|none~1|+|none~0|none~1|none~2|",
    ],
)
def test_malformed_names(text: str) -> None:
    with pytest.raises(ValueError, match="not of the form"):
        nb201.parse(text)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"ops": ["sep_conv_3x3", "conv_9"]}, "ops: unknown operation 'conv_9'; known are skip_connect"),
        ({"ops": ["none", "sep_conv_3x3"]}, "unknown operation 'none'"),
        ({"ops": ["sep_conv_4x4"]}, "unknown operation 'sep_conv_4x4'.*odd k"),
        ({"ops": ["sep_conv_3x5"]}, "unknown operation 'sep_conv_3x5'"),
        ({"ops": []}, "give a list of operations"),
        ({"ops": ["sep_conv_3x3", "sep_conv_3x3"]}, "without repeats"),
        ({"resolution": [12, 16]}, r"resolution=\[12, 16\].*one resolution"),
        ({"resolution": [4]}, r"resolution=\[4\]: too small"),
        ({"cells": []}, "at least one cell"),
        ({"cells": [{"kind": "other", "width": 8}]}, r"cells\[0\]\.kind='other': normal or reduce"),
        ({"cells": [{"kind": "normal", "width": 0}]}, r"cells\[0\]\.width"),
        ({"cells": [{"kind": "normal", "channels": 8}]}, r"cells\[0\]: unknown entries \['channels'\]"),
        ({"nodes": 0}, "nodes"),
        ({"norm_eps": 0.0}, "norm_eps=0.0: must be positive"),
    ],
)
def test_mistakes_in_a_space_of_cells(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        toy(**overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"ops": ["none", "conv"]}, "ops: unknown operation 'conv'; known are none, skip_connect"),
        ({"cells": 0}, "whole numbers"),
        ({"norm_eps": -1.0}, "must be positive"),
    ],
)
def test_mistakes_in_nb201(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bench(**overrides)


def test_spaces_of_one_kind_of_cell() -> None:
    """Only the keys that there are cells for."""
    space = toy(
        cells=[{"kind": "normal", "width": 8}] * 4, ops=["max_pool_3x3", "dil_conv_5x5", "sep_conv_3x3", "sep_conv_5x5"]
    )
    assert {gene.key for gene in space.genes} == {"resolution", "normal"}
    assert space.size() == 64
