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
from supernet.ema import averaged
from supernet.errors import UserError
from supernet.layers.bottleneck import Bottleneck
from supernet.layers.mbconv import MBConv
from supernet.models import resnet
from supernet.sorting import apply_orders, channel_orders, check_stage, sort_channels, sort_training_state


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


@pytest.mark.parametrize(
    ("name", "stage"),
    [("small_resnet", 0), ("small_resnet", 1), ("small_resnet", 3)]
    + [(name, stage) for name in ("tiny_stage", "tiny_block", "mbv3_tiny") for stage in (0, 1)],
)
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


@pytest.mark.parametrize("stage", [1, 2, 3])
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


def test_impossible_stages_are_refused() -> None:
    net = small_resnet()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="sort_channels=-1: how many"):
        sort_channels(net, -1)
    with pytest.raises(ValueError, match=r"sort_channels=4: it counts .* space 'small' have at most 3"):
        sort_channels(net, 4)
    with pytest.raises(ValueError, match=r"sort_channels=2: .* have at most 1"):
        check_stage(net_of("mbv3_tiny").space, 2)
    with pytest.raises(ValueError, match="has no blocks with channels of their own"):
        check_stage(net_of("autoformer_tiny").space, 0)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_blocks_without_an_expanding_conv_stay() -> None:
    net = prepared(net_of("tiny_stage"))
    blocks: list[Any] = [b for b in net.modules() if isinstance(b, MBConv) and b.expand is None]
    assert blocks
    before = [block.state_dict() for block in blocks]
    copies = [{key: value.clone() for key, value in state.items()} for state in before]
    sort_channels(net)
    for block, kept in zip(blocks, copies, strict=True):
        assert all(torch.equal(value, kept[key]) for key, value in block.state_dict().items())


# In the middle of a run ------------------------------------------------------------------------------------------

# A large eps: without it gradients that are zero but for rounding would count.
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 1e-3, eps=1e-3),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, 1e-3, eps=1e-3, momentum=0.9, centered=True),
}


class Run:
    """A supernet, its optimizer and its moving average, a few steps after the start."""

    def __init__(self, name: str, optimizer: str = "sgd") -> None:
        self.net = prepared(small_resnet() if name == "small_resnet" else net_of(name)).train()
        self.optimizer = OPTIMIZERS[optimizer](self.net.parameters())
        self.ema = averaged(self.net, 0.9)
        for seed in range(3):
            self.step(seed)

    def step(self, seed: int) -> None:
        """The largest subnet learns to give ones. All its blocks take part."""
        x = images(4, self.net.space.resolution(self.net.space.largest()), seed).double()
        self.optimizer.zero_grad()
        (self.net(x) - 1).square().mean().backward()
        self.optimizer.step()
        self.ema.update_parameters(self.net)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, running statistics, moving average and all that the optimizer holds."""
        found = dict(self.net.state_dict()) | {
            f"ema.{key}": value for key, value in self.ema.module.state_dict().items()
        }
        for name, parameter in self.net.named_parameters():
            state = self.optimizer.state[parameter]
            found |= {f"{name}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
        return {name: tensor.detach().clone() for name, tensor in found.items()}


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [("small_resnet", "sgd"), ("tiny_stage", "sgd"), ("tiny_stage", "adamw"), ("tiny_block", "rmsprop")],
)
def test_sorting_and_training_commute(name: str, optimizer: str) -> None:
    """Sort, then train: what training and then moving the channels to the same places gives."""
    first, second = Run(name, optimizer), Run(name, optimizer)
    orders = channel_orders(first.net)
    sort_training_state(first.net, first.optimizer, first.ema.module)
    for seed in (3, 4):
        first.step(seed)
        second.step(seed)
    unsorted = second.tensors()
    apply_orders(second.net, orders)
    apply_orders(second.ema.module, orders)
    for parameter_name, parameter in second.net.named_parameters():
        for axis, order in orders.get(parameter_name, []):
            for value in second.optimizer.state[parameter].values():
                if isinstance(value, Tensor) and value.ndim > 0:
                    value.copy_(value.index_select(axis, order))
    expected = second.tensors()
    for key, value in first.tensors().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-7, atol=1e-9)
    moved = [key for key in expected if not torch.allclose(expected[key], unsorted[key])]
    assert any(key.startswith("ema.") for key in moved)
    assert any(key.endswith(("momentum_buffer", "exp_avg")) for key in moved)


def test_momentum_and_average_move_with_their_weights() -> None:
    """Each channel is known by its numbers: weight, momentum and average of a channel stay together."""
    run = Run("tiny_stage")
    before = run.tensors()
    sort_training_state(run.net, run.optimizer, run.ema.module)
    after = run.tensors()
    names = [name for name in before if name.endswith("project.conv.weight") and not name.startswith("ema.")]
    permuted = 0
    for name in names:

        def channels(tensors: dict[str, Tensor], name: str = name) -> list[tuple[float, ...]]:
            parts = [tensors[key].sum((0, 2, 3)) for key in (name, f"{name}.momentum_buffer", f"ema.{name}")]
            return [tuple(round(float(value), 9) for value in column) for column in torch.stack(parts, 1)]

        assert sorted(channels(before)) == sorted(channels(after))
        permuted += channels(before) != channels(after)
    assert permuted


def test_the_average_of_the_largest_subnet_computes_the_same() -> None:
    """It moves as the live weights do, not by an order of its own."""
    run = Run("tiny_stage")
    x = images(4, 12).double()
    with torch.no_grad():
        expected = [run.net(x), run.ema.module(x)]
        sort_training_state(run.net, run.optimizer, run.ema.module)
        actual = [run.net(x), run.ema.module(x)]
        sort_channels(run.ema.module)
        assert not torch.equal(run.ema.module(x), actual[1])
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_memory_layout_stays_and_orders_alone_move_nothing() -> None:
    net = prepared(net_of("tiny_stage")).to(memory_format=torch.channels_last)
    strides = {name: parameter.stride() for name, parameter in net.named_parameters()}
    before = {name: value.clone() for name, value in net.state_dict().items()}
    orders = channel_orders(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    apply_orders(net, orders)
    assert {name: parameter.stride() for name, parameter in net.named_parameters()} == strides
    assert not all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_before_the_first_step_there_is_no_state_to_move() -> None:
    net = prepared(net_of("tiny_stage"))
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    sort_training_state(net, optimizer)
    assert not optimizer.state


def test_states_that_are_not_one_number_a_weight_are_refused_before_anything_moves() -> None:
    run = Run("tiny_stage")
    run.optimizer = torch.optim.Adafactor(run.net.parameters(), 1e-3)
    run.step(0)
    before = {name: value.clone() for name, value in run.net.state_dict().items()}
    with pytest.raises(UserError, match=r"sort_channels=0: Adafactor's .* is not one number for each weight"):
        sort_training_state(run.net, run.optimizer)
    assert all(torch.equal(value, before[name]) for name, value in run.net.state_dict().items())
