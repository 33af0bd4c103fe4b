"""Channel sorting: against the original Once-for-All code, and what it must leave alone."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import images, net_of, randomise
from test_golden_alphanet import images as golden_images
from test_golden_resnet import original_name as resnet_name
from torch import Tensor

import supernet
from supernet.calibrate import track_statistics
from supernet.layers.bottleneck import Bottleneck
from supernet.layers.mbconv import MBConv
from supernet.models import resnet
from supernet.sorting import sort_channels

DATA = Path(__file__).parent / "data"
LAYERS = {"expand": "inverted_bottleneck", "depthwise": "depth_conv", "project": "point_linear"}
HEAD = {"conv": "final_expand_layer", "mix": "feature_mix_layer"}


def mobilenet_name(key: str) -> str:
    """The name that Once-for-All's MobileNetV3 gives to a tensor of ours."""
    part, *rest, leaf = key.split(".")
    if key.startswith("head.classifier"):
        return f"classifier.linear.{leaf}"
    if part in ("head", "stem"):
        layer = "first_conv" if part == "stem" else HEAD[rest[0]]
        return f"{layer}.{'bn' if rest[-1] == 'norm' else 'conv'}.{leaf}"
    stage, block, layer, *rest = rest
    index = 4 * int(stage) - 3 + int(block) if stage != "0" else 0
    if layer == "se":
        return f"blocks.{index}.conv.depth_conv.se.fc.{rest[0]}.{leaf}"
    if rest[-1] == "transform":
        return f"blocks.{index}.conv.depth_conv.conv.{leaf}_matrix"
    kind = "bn" if rest[0] == "norm" else "conv"
    return f"blocks.{index}.conv.{LAYERS[layer]}.{kind if index == 0 else f'{kind}.{kind}'}.{leaf}"


def filled(key: str, shape: torch.Size) -> Tensor:
    """The golden fill by the original name `key`, fp32: the original sorted in this precision."""
    normal = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(tuple(shape))
    last = key.rsplit(".", 1)[1]
    if last.endswith("_matrix"):
        value = np.eye(shape[0]) + 0.01 * normal
    elif last == "weight" and len(shape) >= 2:
        value = normal * np.sqrt(2 / np.prod(shape[1:]))
    elif last in ("bias", "running_mean"):
        value = {"bias": 0.05, "running_mean": 0.1}[last] * normal
    else:
        value = 1 + 0.1 * (np.abs(normal) if last == "running_var" else normal)
    return torch.from_numpy(value.astype(np.float32))


@pytest.mark.parametrize(("name", "named"), [("ofa_resnet50", resnet_name), ("ofa_mbv3", mobilenet_name)])
def test_the_original_sorts_the_same(name: str, named: Callable[[str], str]) -> None:
    """Eval logits of three subnets at 128 px after each of the three sorts of a freshly filled supernet."""
    net = supernet.build(name).eval()
    track_statistics(net.net)
    fill = {
        key: filled(named(key), tensor.shape)
        for key, tensor in net.net.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    with np.load(DATA / "ofa_reorganized.npz") as file:
        golden = {key.removeprefix(f"{name}/"): file[key] for key in file.files if key.startswith(f"{name}/")}
    for stage in (0, 1, 2):
        net.float().net.load_state_dict(fill, strict=False)
        sort_channels(net, stage)
        net.double()
        for tag in ("min", "max", "rand00"):
            choices = {key.split("/")[1]: golden[key].tolist() for key in golden if key.startswith(f"{tag}/")}
            arch = net.space.from_json({**choices, "resolution": 128})
            with torch.no_grad():
                logits = net(golden_images(2, 128), arch)[:, ::8].numpy()
            expected = golden[f"stage{stage}_{tag}"]
            # The original ran in fp32.
            assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max(), (stage, tag)


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
    for block, copy in zip(blocks, copies, strict=True):
        assert all(torch.equal(value, copy[key]) for key, value in block.state_dict().items())
