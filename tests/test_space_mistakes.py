"""What a user can get wrong in the YAML file of a space: one clear line that names the entry."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tiny import tiny_space

from supernet.construct import construct
from supernet.errors import UserError

STAGE: list[tuple[str, Any, str]] = [
    ("se", {"gate": "soft"}, r"se\.gate='soft'"),
    ("se", {"act": "soft"}, r"se\.act='soft'"),
    ("se", {"ratio": 0}, r"se\.ratio=0"),
    ("se", {"ratio": "a"}, r"se\.ratio='a'"),
    ("se", {"rate": 0.25}, "rate"),
    ("se", "yes", r"stages\[1\]\.se='yes'"),
    ("stride", 0, r"stages\[1\]\.stride"),
    ("stride", 1.5, r"stages\[1\]\.stride"),
    ("stride", "2", r"stages\[1\]\.stride"),
    ("depth", [1.5], r"stages\[1\]\.depth"),
    ("depth", [2, 1], r"stages\[1\]\.depth"),
    ("depth", [0, 1], r"stages\[1\]\.depth"),
    ("depth", None, r"stages\[1\]\.depth is missing"),
    ("kernel", [3, 4], r"stages\[1\]\.kernel: kernels must be odd"),
    ("kernel", [], r"stages\[1\]\.kernel"),
    ("width", [8.5], r"stages\[1\]\.width"),
    ("width", ["a"], r"stages\[1\]\.width"),
    ("width", None, r"stages\[1\]\.width is missing"),
    ("expand", [-1], r"stages\[1\]\.expand"),
    ("act", "mish2", r"stages\[1\]\.act='mish2'"),
    ("wdith", [8], r"stages\[1\]: unknown entries \['wdith'\]"),
]
WHOLE: list[tuple[str, Any, str]] = [
    ("stem", {"width": [8], "kernel": 4}, r"stem\.kernel: kernels must be odd"),
    ("stem", {"width": [8], "kernel": [3, 5]}, r"stem\.kernel"),
    ("stem", {"width": [8.5]}, r"stem\.width"),
    ("stem", {"width": [8], "stride": 0}, r"stem\.stride"),
    ("stem", [8], r"space\.stem"),
    ("head", {}, r"head\.width is missing"),
    ("head", {"width": [8], "expand": 1.5}, r"head\.expand"),
    ("head", {"width": [8], "expand": "6"}, r"head\.expand"),
    ("resolution", [0], "resolution"),
    ("resolution", [8.5], "resolution"),
    ("resolution", [12, 8], "resolution"),
    ("resolution", [], "resolution"),
    ("stages", [], "at least one stage"),
    ("stages", [1], r"stages\[0\]"),
    ("choose", "blocks", r"space\.choose=blocks"),
    ("shortcut", "alway", r"space\.shortcut=alway"),
    ("num_classes", 0, "num_classes"),
    ("in_channels", 0, "in_channels"),
    ("norm_eps", 0.0, "norm_eps"),
    ("drop_path_stages", -1, "drop_path_stages=-1"),
    ("colour", 1, "colour"),
]


def refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        construct(config, "space")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("entry", "value", "message"), STAGE)
def test_entries_of_a_stage(entry: str, value: Any, message: str) -> None:
    config = copy.deepcopy(tiny_space().config)
    config["stages"] = [config["stages"][0], {**config["stages"][1], entry: value}]
    refused(config, message)


@pytest.mark.parametrize(("entry", "value", "message"), WHOLE)
def test_entries_of_the_space(entry: str, value: Any, message: str) -> None:
    refused({**tiny_space().config, entry: value}, message)


def test_pooling_shortcuts_halve_at_most() -> None:
    config = copy.deepcopy(tiny_space(shortcut="always").config)
    config["stages"] = [config["stages"][0], {**config["stages"][1], "stride": 3}]
    refused(config, r"stages\[1\]\.stride=3: with shortcut=always")
    assert construct({**config, "shortcut": "residual"}, "space").size() == tiny_space().size()
