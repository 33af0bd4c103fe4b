"""Initial weights: distributions, zero-gamma, seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import NAMED, archs, images, net_of
from tiny import tiny_space
from tiny_vit import tiny_vit
from torch import nn

import supernet
from supernet.init import Init, ZeroGamma, initialise
from supernet.net import Supernet

CONVOLUTIONAL = [name for name in NAMED if not name.startswith("autoformer")]


def made(name: str = "mbv3_tiny", seed: int = 0, conv: Init = "fan_out") -> Supernet:
    net = net_of(name)
    initialise(net, seed, conv, "identity")
    return net


def blocks(net: Supernet) -> dict[str, Any]:
    return {name: part for name, part in net.net.named_modules() if getattr(part, "last_norm", None) is not None}


def tiny_transformer() -> Supernet:
    return Supernet(tiny_vit())


@pytest.mark.parametrize(
    ("conv", "build"),
    [("fan_out", made), ("torch", made), ("trunc_normal", tiny_transformer), ("torch", tiny_transformer)],
)
def test_weights_are_a_function_of_the_seed_alone(conv: Init, build: Callable[[], Supernet]) -> None:
    first, used, other = build(), build(), build()
    for net, seed in ((first, 1), (used, 5), (other, 2)):
        initialise(net, seed, conv, "identity")
    for parameter in used.parameters():
        parameter.data.fill_(3.0)  # whatever it held before
    initialise(used, 1, conv, "identity")
    for a, b in zip(first.parameters(), used.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_the_global_generator_is_left_alone() -> None:
    net = net_of("tiny_stage")
    state = torch.get_rng_state()
    initialise(net, 3, "fan_out", "all")
    initialise(net, 3, "torch", "none")
    assert torch.equal(torch.get_rng_state(), state)


def test_fan_out_variance() -> None:
    """2 / (k^2 out / groups): 2 / k^2 for depthwise convs; sd 0.01 for the classifier."""
    net = net_of("alphanet")
    initialise(net, 0, "fan_out", "none")
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            k = module.kernel_size[0]
            variance = 2 / (k * k * module.out_channels / module.groups)
            assert module.weight.var().item() == pytest.approx(variance, rel=0.15)
            assert module.weight.mean().abs().item() < 5 * math.sqrt(variance / module.weight.numel())
            assert module.bias is None or not module.bias.any()
    classifier: Any = net.net.head.classifier  # type: ignore[union-attr]
    assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not classifier.bias.any()


def test_torch_init_is_pytorchs() -> None:
    """Uniform within 1 / sqrt(fan in)."""
    net = made("tiny_stage", conv="torch")
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(module.weight[0].numel())
            assert module.weight.abs().max() <= bound
            assert module.weight.abs().max() > 0.7 * bound


def test_transformers_start_truncated_normal() -> None:
    """sd 0.02 for all that multiplies, zero biases, norms that change nothing; the patch projection is PyTorch's."""
    net = supernet.build("autoformer_tiny", layer_num=[2])
    for parameter in net.parameters():
        parameter.data.fill_(3.0)
    initialise(net, 0, "trunc_normal", "identity")
    for key, parameter in net.net.named_parameters():
        name = key.rsplit(".", 1)[1]
        if key.startswith("embed.patch"):
            assert parameter.abs().max() <= 1 / math.sqrt(3 * 16 * 16)
        elif "norm" in key:
            assert torch.equal(parameter, torch.full_like(parameter, float(name == "weight"))), key
        elif name in ("bias", "qkv_bias"):
            assert not parameter.any(), key
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=5 / math.sqrt(parameter.numel())), key
            assert abs(parameter.mean().item()) < 5 * 0.02 / math.sqrt(parameter.numel()), key


@pytest.mark.parametrize("rule", ["identity", "all"])
def test_transformers_have_no_norm_to_zero(rule: ZeroGamma) -> None:
    net = tiny_transformer()
    initialise(net, 0, "trunc_normal", rule)
    norms = [module for module in net.modules() if isinstance(module, nn.LayerNorm)]
    assert norms
    assert all((norm.weight == 1).all() for norm in norms)


@pytest.mark.parametrize("name", [*CONVOLUTIONAL, "tiny_stage"])
def test_zero_gamma_follows_the_identity_shortcuts(name: str) -> None:
    net = net_of(name)
    largest = net.space.plan(net.space.largest())
    expectations: dict[ZeroGamma, Any] = {
        "none": lambda spec: False,
        "all": lambda spec: True,
        "identity": lambda spec: spec.shortcut is not None and spec.shortcut.identity,
    }
    for rule, expected in expectations.items():
        initialise(net, 0, "fan_out", rule)
        for block_name, block in blocks(net).items():
            zero = not block.last_norm.weight.any()
            assert zero == expected(largest.get(block_name) or net.space.widest[block_name]), (rule, block_name)
            assert zero or (block.last_norm.weight == 1).all()
        last = [id(block.last_norm) for block in blocks(net).values()]
        others = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d) and id(m) not in last]
        assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in others if norm.affine)


@pytest.mark.parametrize("name", ["mbv3_tiny", "bignas"])
def test_blocks_with_an_identity_shortcut_return_their_input(name: str) -> None:
    net = made(name)
    checked = 0
    largest = net.space.plan(net.space.largest())
    for arch in archs(net.space, 5):
        for block_name, spec in net.space.plan(arch).layers:
            wide = largest.get(block_name)
            if block_name.startswith("stages") and wide.shortcut and wide.shortcut.identity and spec.shortcut:
                x = images(2, 6, channels=spec.project.out_channels)
                with torch.no_grad():
                    assert torch.equal(blocks(net)[block_name](x, spec), x)
                checked += 1
    assert checked


def test_depth_does_not_matter_at_the_start() -> None:
    """Archs that differ only in the number of blocks with shortcuts agree."""
    net = made("mbv3_tiny")
    data = net.space.largest().to_json()
    logits = []
    for depth in ([1, 1, 1, 1], [1, 2, 2, 1], data["depth"]):
        arch = net.space.from_json({**data, "depth": depth})
        with torch.no_grad():
            logits.append(net(images(2, net.space.resolution(arch)), arch))
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def test_without_zero_gamma_depth_matters() -> None:
    net = Supernet(tiny_space())
    initialise(net, 0, "fan_out", "none")
    x, data = images(2, 12), net.space.largest().to_json()
    shallow = net.space.from_json({**data, "depth": [1, 1]})
    assert not torch.equal(net(x), net(x, shallow))


def test_every_block_still_gets_a_gradient() -> None:
    """A zero scale blocks its branch, but not its own gradient: training can leave it."""
    net = made("mbv3_tiny")
    net(images(4, 28)).logsumexp(1).sum().backward()
    for name, block in blocks(net).items():
        assert block.last_norm.weight.grad.abs().sum() > 0, name


def test_no_subnet_starts_with_zeros_only() -> None:
    """Between widths that can differ, some subnet has no shortcut: its block must not be zeroed."""
    stages = [{"width": [8, 12], "depth": [1], "kernel": [3], "expand": [2], "stride": 1}]
    net = Supernet(tiny_space(stem={"width": [8, 12], "stride": 1}, stages=stages))
    initialise(net, 0, "fan_out", "identity")
    for arch in archs(net.space, 8):
        logits = net(images(3, net.space.resolution(arch)), arch)
        assert not torch.equal(logits[0], logits[1])
