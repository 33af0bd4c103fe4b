"""The supernet: subnets inside it and extracted are the same network, and nothing in it remembers them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import LARGE, NAMED, SMALL, TINY, archs, images, net_of, randomise
from tiny import tiny_space
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import supernet
from supernet import calibrate
from supernet.calibrate import track_statistics
from supernet.layers.mbconv import drop_path
from supernet.net import Supernet, memory_format

SIDES = {name: 64 for name in NAMED if name != "mbv3_tiny" and name not in SMALL}  # any side does, in less time


def snapshot(module: nn.Module) -> list[Any]:
    """Every tensor and every plain attribute of a network."""
    state: list[Any] = [(key, value.clone()) for key, value in module.state_dict().items()]
    for name, part in module.named_modules():
        plain = {key: value for key, value in vars(part).items() if not key.startswith(("_", "space"))}
        tensors = [*part._parameters.items(), *part._buffers.items()]
        state.append((name, repr(plain), [(key, id(value)) for key, value in tensors]))
    return state


def same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        x[0] == y[0] and (torch.equal(x[1], y[1]) if isinstance(x[1], torch.Tensor) else x == y)
        for x, y in zip(a, b, strict=True)
    )


@pytest.fixture(scope="module")
def alphanet() -> Supernet:
    net = supernet.build("alphanet", num_classes=5)
    randomise(net)
    return net


@pytest.mark.parametrize("name", [*NAMED, *TINY])
def test_extracted_subnets_give_the_same_numbers(name: str) -> None:
    """Bit for bit, in train and in eval mode."""
    net = net_of(name)
    randomise(net)
    with torch.no_grad():
        for arch in [*archs(net.space, 10 if name in LARGE else 50), net.space.smallest(), net.space.largest()]:
            x = images(2, SIDES.get(name, net.space.resolution(arch)))
            subnet = net.train().extract(arch)
            assert subnet.training
            assert torch.equal(net(x, arch), subnet(x))
            assert torch.equal(net.eval()(x, arch), subnet.eval()(x))


def test_no_arch_is_the_largest() -> None:
    net = net_of("tiny_stage")
    x = images(2, 12)
    assert torch.equal(net(x), net(x, net.space.largest()))
    assert not torch.equal(net(x), net(x, net.space.smallest()))


@pytest.mark.parametrize("name", ["mbv3_tiny", *TINY])
def test_forward_leaves_no_trace(name: str) -> None:
    net = net_of(name)
    for mode in (True, False):
        net.train(mode)
        before, rng = snapshot(net), torch.get_rng_state()
        for arch in archs(net.space, 5):
            net(images(2, net.space.resolution(arch)), arch)
            net.extract(arch)
        assert same(snapshot(net), before)
        assert torch.equal(torch.get_rng_state(), rng)


def test_results_do_not_depend_on_what_ran_before() -> None:
    net = net_of("tiny_block")
    first, *others = archs(net.space, 6)
    x = images(2, 8)
    alone = net(x, first)
    for arch in others:
        net(x, arch).sum().backward()
    assert torch.equal(net(x, first), alone)


def test_supernets_keep_no_statistics_and_no_hidden_state() -> None:
    for name in (*TINY, "mbv3_tiny"):
        net = net_of(name)
        assert not list(net.buffers())
        assert not [name for part in net.modules() for name in vars(part) if "active" in name]


def test_extracted_subnets_are_plain_layers_of_the_right_size() -> None:
    net = net_of("mbv3_tiny")
    for arch in archs(net.space, 5):
        plan = net.space.plan(arch)
        subnet = net.extract(arch)
        assert sum(p.numel() for p in subnet.parameters()) == plan.params
        assert [len(stage) for stage in subnet.stages] == list(arch["depth"])  # type: ignore[union-attr, arg-type]
        kernels = [c.kernel_size[0] for c in subnet.modules() if isinstance(c, nn.Conv2d) and c.groups > 1]
        assert kernels == [spec.depthwise.kernel for name, spec in plan.layers if name.startswith("stages")]


def test_channels_last_and_dtype_are_kept() -> None:
    for channels in (1, 3):
        net = Supernet(tiny_space(in_channels=channels)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert memory_format(net) == torch.channels_last
        for arch in archs(net.space, 5):
            subnet = net.extract(arch)
            for module in subnet.modules():
                if isinstance(module, nn.Conv2d):
                    assert module.weight.is_contiguous(memory_format=torch.channels_last)
            x = images(2, net.space.resolution(arch), channels=channels).to(memory_format=torch.channels_last)
            assert torch.equal(net(x, arch), subnet(x))
    contiguous = Supernet(tiny_space()).double()
    assert memory_format(contiguous) == torch.contiguous_format
    assert next(contiguous.extract(contiguous.space.smallest()).parameters()).dtype == torch.float64


def test_memory_format_of_a_pointwise_stem() -> None:
    """The weights of a 1x1 stem are contiguous in both formats."""
    net = Supernet(tiny_space(stem={"width": [8], "kernel": 1}))
    assert memory_format(net) == torch.contiguous_format


# Shortcuts -----------------------------------------------------------------------------------------------------


def arch_with(net: Supernet, **changes: dict[int, int]) -> Any:
    """The smallest arch with some entries of its lists replaced."""
    data = net.space.smallest().to_json()
    for key, entries in changes.items():
        for index, value in entries.items():
            data[key][index] = value
    return net.space.from_json(data)


def test_kind_of_shortcut_follows_the_active_widths(alphanet: Supernet) -> None:
    plan = alphanet.space.plan
    same_width = plan(arch_with(alphanet, width={0: 16, 1: 16}))["stages.0.0"].shortcut
    other_width = plan(arch_with(alphanet, width={0: 24, 1: 16}))["stages.0.0"].shortcut
    assert same_width.identity
    assert (other_width.conv.in_channels, other_width.conv.out_channels) == (24, 16)
    assert other_width.conv.norm_eps is None
    assert plan(arch_with(alphanet, width={6: 216, 7: 216}))["stages.6.0"].shortcut.identity
    assert not plan(arch_with(alphanet, width={6: 216, 7: 224}))["stages.6.0"].shortcut.identity
    strided = plan(alphanet.space.smallest())["stages.1.0"].shortcut
    assert (strided.pool, strided.pool_padding) == (2, 0)


@torch.no_grad()
def test_shortcut_arithmetic(alphanet: Supernet) -> None:
    """With the block's own branch silenced, what is left is the shortcut: mean of 2x2 pixels, then a 1x1 conv."""
    block: Any = alphanet.net.stages[1][0]  # type: ignore[index]
    norm = block.project.norm
    kept = norm.weight.clone(), norm.bias.clone()
    norm.weight.zero_()
    norm.bias.zero_()
    x = images(2, 8, channels=16)
    actual = block(x, alphanet.space.plan(alphanet.space.smallest())["stages.1.0"])
    pooled = x.reshape(2, 16, 4, 2, 4, 2).mean((3, 5))
    expected = torch.einsum("oi,bihw->bohw", block.shortcut.conv.weight[:24, :16, 0, 0], pooled)
    norm.weight.copy_(kept[0])
    norm.bias.copy_(kept[1])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_odd_sizes_are_padded_before_pooling() -> None:
    """At 36 px the third stage gets 9x9: padded zeros count in the mean, as in the original."""
    net = supernet.build("alphanet", num_classes=3, resolution=[36])
    plan = net.space.plan(net.space.largest())
    assert plan["stages.2.0"].shortcut.pool_padding == 1
    assert plan["stages.2.0"].depthwise.size == 5
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits = net(images(1, 36))
    assert logits.shape == (1, 3)
    assert counter.get_total_flops() == 2 * plan.macs
    x = images(2, 9, channels=4)
    padded = F.pad(x, (1, 1, 1, 1)).reshape(2, 4, 11, 11)[..., :10, :10].reshape(2, 4, 5, 2, 5, 2).mean((3, 5))
    torch.testing.assert_close(F.avg_pool2d(x, 2, padding=1), padded)


def test_residual_rule_has_identities_or_nothing() -> None:
    net = net_of("bignas")
    for arch in archs(net.space, 20):
        for name, spec in net.space.plan(arch).layers:
            if name.startswith("stages"):
                fits = spec.depthwise.stride == 1 and spec.expand is not None
                fits = fits and spec.expand.in_channels == spec.project.out_channels
                if spec.expand is not None:
                    assert (spec.shortcut is not None) == fits
                assert spec.shortcut is None or spec.shortcut.identity


# Dropout and drop-path -----------------------------------------------------------------------------------------


def test_drop_path_statistics() -> None:
    """Whole images are dropped, the rest is scaled so that the mean stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        out = drop_path(torch.ones(20_000, 2, 3, 3), 0.3)
    values = out.flatten(1)
    assert torch.equal(values.amin(1), values.amax(1))
    kept = values[:, 0] > 0
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.015)
    assert torch.allclose(values[kept], torch.tensor(1 / 0.7))
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)


def test_drop_path_rates_of_alphanet(alphanet: Supernet) -> None:
    """0.2 i / 37 for block i of 37 in the last two stages, as in the original."""
    blocks = [spec for name, spec in alphanet.space.widest.layers if name.startswith("stages")]
    rates = [0.2 * block.drop_path for block in blocks]
    assert len(rates) == 37
    assert rates[:27] == [0.0] * 27
    assert rates[27:] == pytest.approx([0.2 * i / 37 for i in range(27, 37)])


@torch.no_grad()
def test_blocks_without_an_identity_shortcut_are_never_dropped(alphanet: Supernet) -> None:
    plan = alphanet.space.plan(alphanet.space.largest())
    stage: Any = alphanet.net.stages[5]  # type: ignore[index]
    for index, channels, dropped in ((0, 128, False), (1, 216, True)):
        block, spec, x = stage[index].train(), plan[f"stages.5.{index}"], images(8, 4, channels=channels)
        assert spec.drop_path > 0.7
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            assert torch.equal(block(x, spec, 0.9), block(x, spec)) != dropped


def test_rates_act_in_training_only() -> None:
    net = Supernet(tiny_space(drop_path_stages=2))
    arch, x = net.space.largest(), images(8, 12)
    assert torch.equal(net.eval()(x, arch, dropout=0.5, drop_path=0.9), net(x, arch))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clean = net.train()(x, arch)
        assert torch.equal(net(x, arch), clean)
        assert not torch.equal(net(x, arch, dropout=0.5), clean)
        assert not torch.equal(net(x, arch, drop_path=0.9), clean)


# Calibration ---------------------------------------------------------------------------------------------------


def test_calibration_averages_over_images() -> None:
    """Batches count by their images, variances are biased, and what lies between the batches' means is left out."""
    rng = np.random.default_rng(0)
    batches = [rng.normal(i, 1 + i, (4 + i, 3, 5, 5)).astype(np.float32) for i in range(4)]
    model = calibrate(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), map(torch.from_numpy, batches))
    norm: Any = model[0]  # type: ignore[index]
    weights = [len(b) for b in batches]
    mean = np.average([b.mean((0, 2, 3)) for b in batches], axis=0, weights=weights)
    np.testing.assert_allclose(norm.running_mean, mean, rtol=1e-5)
    var = np.average([b.var((0, 2, 3)) for b in batches], axis=0, weights=weights)
    np.testing.assert_allclose(norm.running_var, var, rtol=1e-5)
    assert not model.training
    assert norm.momentum == 0.1
    calibrate(model, [torch.zeros(2, 3, 5, 5)])  # starts afresh
    assert norm.running_mean.abs().max() == 0


def test_calibration_leaves_the_supernet_alone() -> None:
    net = net_of("tiny_stage")
    arch = net.space.largest()
    before = snapshot(net)
    subnet = calibrate(net.extract(arch), [images(16, 12, seed) for seed in range(3)])
    assert same(snapshot(net), before)
    x = images(4, 12)
    first = subnet(x[:1])
    torch.testing.assert_close(first, subnet(x)[:1])  # statistics are fixed: images do not see each other
    assert not torch.equal(net(x[:2], arch)[:1], net(x, arch)[:1])  # inside the supernet they do


def test_only_norms_are_in_training_mode_meanwhile() -> None:
    """Dropout of a fine-tuned network must not disturb its statistics."""
    x = images(4, 5)
    model: Any = calibrate(nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3)), [x])
    torch.testing.assert_close(model[1].running_mean, x.mean((0, 2, 3)))


def test_statistics_in_the_supernet_are_handed_down() -> None:
    """Imported weights may bring running statistics: subnets then have their slice of them."""
    net = net_of("tiny_block")
    randomise(net)
    track_statistics(net.net)
    with torch.no_grad():
        for key, buffer in net.named_buffers():
            if "running" in key:
                buffer.copy_(1 + torch.rand(buffer.shape, generator=torch.Generator().manual_seed(len(key))))
    for arch in archs(net.space, 5):
        x, subnet = images(2, 8), net.extract(arch)
        with torch.no_grad():
            expected = net.eval()(x, arch)
            assert torch.equal(subnet.eval()(x), expected)
            assert torch.equal(net.train()(x, arch), subnet.train()(x))  # the batch's own, in training
            assert not torch.equal(net(x, arch), expected)
            assert torch.equal(net.eval()(x, arch), expected)  # training has not moved them


def test_calibration_of_a_network_without_norms() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    assert calibrate(model, []) is model
    assert not model.training


def test_calibration_needs_images() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        calibrate(nn.Sequential(nn.BatchNorm2d(3)), [])
