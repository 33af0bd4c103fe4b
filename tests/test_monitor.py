"""The watched subnets, and that watching changes nothing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_space
from tiny_run import tiny_config

from supernet.build import make_data
from supernet.calibrate import calibrate
from supernet.data import Data
from supernet.evaluate import evaluate
from supernet.monitor import scores, watched
from supernet.net import Supernet
from supernet.space import Space

FIXED = '{"resolution": 12, "width": [8, 8, 16, 16], "depth": [1, 1], "kernel": [3, 3], "expand": [1, 2]}'


def small_space() -> Space:
    """Two subnets: they differ in resolution only."""
    fixed: dict[str, Any] = {"kernel": [3], "expand": [2], "depth": [1], "stride": 2}
    return tiny_space(stages=[{"width": [8], **fixed}], head={"width": [16]}, resolution=(8, 12))


def test_smallest_and_largest_frame_the_random_ones() -> None:
    space = tiny_space()
    archs = watched(space, 4)
    assert list(archs) == ["smallest", "random0", "random1", "random2", "random3", "largest"]
    assert archs["smallest"] == space.smallest()
    assert archs["largest"] == space.largest()
    assert len(set(archs.values())) == 6


@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_no_subnet_is_watched_twice(count: int) -> None:
    for space in (tiny_space(), small_space()):
        archs = watched(space, count)
        assert len(set(archs.values())) == len(archs) <= space.size()
        assert {space.smallest(), space.largest()} <= set(archs.values())


def test_one_subnet_alone_is_the_largest() -> None:
    space = tiny_space()
    arch = space.sample(np.random.default_rng(0))
    assert watched(space.only(arch), 3) == {"largest": space.only(arch).largest()}


def test_the_watched_subnets_are_fixed() -> None:
    """Written out, so that curves of old and new runs stay comparable."""
    torch.manual_seed(1)
    np.random.seed(1)
    archs = watched(tiny_space(), 2)
    assert archs == watched(tiny_space(), 2)
    assert watched(tiny_space(), 5).items() >= archs.items()
    assert json.dumps(archs["random0"].to_json()) == FIXED


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder: Path = tmp_path_factory.mktemp("monitor")
    return make_data(tiny_config(folder, "data.size=12", "data.resolution=[8,12]"), torch.device("cpu"))


@pytest.fixture(scope="module")
def net() -> Supernet:
    torch.manual_seed(0)
    return Supernet(tiny_space(in_channels=1, num_classes=10)).train()


def test_scores_are_those_of_the_extracted_calibrated_subnet(net: Supernet, digits: Data) -> None:
    arch = net.space.sample(np.random.default_rng(1))
    side = net.space.resolution(arch)
    subnet = calibrate(net.extract(arch), digits.calibration(side, 100))
    found = scores(net, {"one": arch}, digits, ("val", "test"), 100)
    for split in ("val", "test"):
        expected = evaluate(subnet, digits.evaluation(split, side))
        assert found[f"one/{split}/top1"] == expected.top1
        assert found[f"one/{split}/loss"] == expected.loss
    assert len(found) == 4


def test_scoring_changes_neither_weights_nor_mode_nor_random_state(net: Supernet, digits: Data) -> None:
    before, random_state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    archs = watched(net.space, 2)
    first = scores(net, archs, digits, ("val",), 100)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.grad is None for p in net.parameters())
    assert scores(net, dict(reversed(archs.items())), digits, ("val",), 100) == first


def test_the_limit_bounds_the_images(net: Supernet, digits: Data) -> None:
    top1 = scores(net, {"l": net.space.largest()}, digits, ("val",), 100, limit=7)["l/val/top1"]
    assert top1 * 7 / 100 == pytest.approx(round(top1 * 7 / 100))
