"""Channel sorting: against the original Once-for-All code, and what it must leave alone."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
import torch
from nets import images, net_of, randomise
from torch import Tensor

import supernet
from supernet.calibrate import track_statistics
from supernet.layers.bottleneck import Bottleneck
from supernet.layers.mbconv import MBConv
from supernet.models import resnet
from supernet.sorting import sort_channels


@pytest.mark.parametrize("name", ["ofa_resnet50", "ofa_mbv3"])
def test_the_original_sorts_the_same(name: str, tmp_path: Path) -> None:
    """Eval logits of three subnets at 128 px after each of the three sorts of a freshly filled supernet."""
    fresh = golden.imported(name, tmp_path).float().eval()  # the original sorted in fp32
    with np.load(golden.DATA / "ofa_reorganized.npz") as file:
        saved = {key.removeprefix(f"{name}/"): file[key] for key in file.files if key.startswith(f"{name}/")}
    for stage in (0, 1, 2):
        net = copy.deepcopy(fresh)
        sort_channels(net, stage)
        net.double()
        for tag in ("min", "max", "rand00"):
            choices = {key.split("/")[1]: saved[key].tolist() for key in saved if key.startswith(f"{tag}/")}
            arch = net.space.from_json({**choices, "resolution": 128})
            with torch.no_grad():
                logits = net(golden.images(2, 128), arch)
            # The original ran in fp32.
            assert golden.relative_error(logits, saved[f"stage{stage}_{tag}"]) < 1e-5, (stage, tag)


def small_resnet() -> supernet.Supernet:
    """Middle widths 8, 16, 24 and 32 at the widest output."""
    stage = {"width": 64, "expand": [0.125, 0.25, 0.375, 0.5], "blocks": 1, "depth": [0, 1], "stride": 2}
    return supernet.Supernet(resnet.space("small", (32,), {"width": 16}, [stage], (0.5, 1.0), num_classes=4))


def prepared(net: supernet.Supernet) -> supernet.Supernet:
    """fp64, eval mode, weights and running statistics with nothing special about them."""
    net.double().eval()
    randomise(net)
    for norm in track_statistics(net.net):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(norm.bias.detach())
        norm.running_var.copy_(norm.weight.detach() ** 2)
    return net


def importances(net: supernet.Supernet) -> list[Tensor]:
    """Of the middle channels of every block: the L1 norm of what reads them."""
    readers = [block.conv3 for block in net.modules() if isinstance(block, Bottleneck)]
    readers += [block.conv2 for block in net.modules() if isinstance(block, Bottleneck)]
    readers += [block.project for block in net.modules() if isinstance(block, MBConv) and block.expand is not None]
    return [reader.conv.weight.detach().abs().sum((0, 2, 3)) for reader in readers]


@pytest.mark.parametrize("name", ["small_resnet", "tiny_stage", "tiny_block", "mbv3_tiny"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_largest_subnet_computes_the_same(name: str, stage: int) -> None:
    net = prepared(small_resnet() if name == "small_resnet" else net_of(name))
    state = {key: value.clone() for key, value in net.state_dict().items()}
    x = images(4, net.space.resolution(net.space.largest())).double()
    with torch.no_grad():
        before = [net.train(mode)(x) for mode in (False, True)]
        sort_channels(net, stage)
        after = [net.train(mode)(x) for mode in (False, True)]
    for left, right in zip(before, after, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-11)
    moved = [key for key, value in net.state_dict().items() if not torch.equal(value, state[key])]
    assert moved
    sums = {key: value.double().sum() for key, value in state.items()}
    assert all(float(value.sum() - sums[key]) == pytest.approx(0, abs=1e-9) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", ["small_resnet", "tiny_stage", "tiny_block", "mbv3_tiny"])
def test_importance_descends(name: str) -> None:
    net = prepared(small_resnet() if name == "small_resnet" else net_of(name))
    sort_channels(net)
    rows = importances(net)
    assert rows
    for row in rows:
        assert (row.diff() <= 1e-12).all()


@pytest.mark.parametrize("stage", [1, 2, 3, 9])
def test_supported_widths_keep_their_channels_and_their_function(stage: int) -> None:
    net = prepared(small_resnet())
    before = importances(net)
    supported = [0.5, 0.375, 0.25, 0.125][: stage + 1]
    archs = [
        net.space.from_json({"resolution": 32, "depth": [0, 1], "expand": [e, f], "width": [1, 1]})
        for e in supported
        for f in supported
    ]
    smaller = net.space.from_json({"resolution": 32, "depth": [0, 1], "expand": [0.125, 0.125], "width": [1, 1]})
    x = images(2, 32).double()
    with torch.no_grad():
        logits = [net(x, arch) for arch in archs]
        unsupported = net(x, smaller)
        sort_channels(net, stage)
        for arch, expected in zip(archs, logits, strict=True):
            torch.testing.assert_close(net(x, arch), expected, rtol=1e-10, atol=1e-11)
        assert torch.allclose(net(x, smaller), unsupported) == (0.125 in supported)
    bounds = [0, *[8, 16, 24, 32][max(0, 3 - stage) :]]
    for old, new in zip(before, importances(net), strict=True):
        for low, high in pairwise(bounds):
            assert (new[low:high].diff() <= 1e-12).all()
            torch.testing.assert_close(new[low:high].sort().values, old[low:high].sort().values)


def test_a_negative_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="sort_channels=-1"):
        sort_channels(small_resnet(), -1)


def test_blocks_without_an_expanding_conv_stay() -> None:
    net = prepared(net_of("tiny_stage"))
    blocks: list[Any] = [b for b in net.modules() if isinstance(b, MBConv) and b.expand is None]
    assert blocks
    before = [block.state_dict() for block in blocks]
    copies = [{key: value.clone() for key, value in state.items()} for state in before]
    sort_channels(net)
    for block, kept in zip(blocks, copies, strict=True):
        assert all(torch.equal(value, kept[key]) for key, value in block.state_dict().items())
