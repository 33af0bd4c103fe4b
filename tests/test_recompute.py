"""Activation checkpointing changes memory and nothing else: every number is the same, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import images, randomise
from tiny import tiny_space
from tiny_cells import bench, toy
from tiny_vit import tiny_vit
from torch import Tensor, nn

import supernet
from supernet.distill import SoftCrossEntropy
from supernet.memory import kept_for_backward
from supernet.models import macro, resnet
from supernet.net import Supernet
from supernet.observers import SlotGradients
from supernet.optim import zero_gradients
from supernet.recompute import Recomputed, blocks_of, checkpoint_activations, nothing_recomputed, recomputed_blocks
from supernet.samplers.base import Slot
from supernet.space import Space
from supernet.step import accumulate

RESNET_STAGE = {"width": 16, "expand": (0.5, 1.0), "blocks": 1, "depth": (0, 1), "stride": 2}
RESNET_STEM = {"width": 8, "middle": 8, "kernel": 3, "depth": (0, 2)}
MACRO_STAGES = [{"width": 8, "blocks": 2}, {"width": 12, "blocks": 1}]


def space_of(family: str) -> Space:
    spaces = {
        "mbconv": tiny_space,
        "resnet": lambda: resnet.space("resnet", (16,), RESNET_STEM, [RESNET_STAGE] * 2, (0.5, 1.0), num_classes=4),
        "vit": tiny_vit,
        "cells": toy,
        "nb201": bench,
        "conv_macro": lambda: supernet.build("conv_macro", num_classes=4).space,
        "macro": lambda: macro.space("macro", (12,), macro.PUBLISHED, stem=8, stages=MACRO_STAGES, head=16),
        "darts": lambda: supernet.build("darts", num_classes=4, channels=4, cells=3, resolution=[8]).space,
    }
    return spaces[family]()


FAMILIES = ("mbconv", "resnet", "vit", "cells", "nb201", "conv_macro", "macro", "darts")


def make(family: str) -> Supernet:
    net = Supernet(space_of(family)).train()
    randomise(net)
    zero_gradients(net)
    return net


def label_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


class Step:
    """What a step of four slots, dropout and drop-path gives: losses, gradients, those of each slot, random state."""

    def __init__(self, net: Supernet, autocast: bool = False) -> None:
        space = net.space
        first, second = space.sample(np.random.default_rng(1), 2)
        slots = [Slot(space.largest(), "largest"), Slot(first, "random"), Slot(second, "random")]
        slots.append(Slot(space.smallest(), "smallest"))
        channels, classes = space.description["in_channels"], space.description["num_classes"]
        x = images(6, space.resolution(space.largest()), channels=channels)
        watch = SlotGradients(net.net, self._keep, lambda slot: slot.role == "random")
        self.each: list[dict[str, Tensor]] = []
        torch.manual_seed(7)
        rates = {"dropout": 0.3, "drop_path": 0.3}
        loss = (label_loss, SoftCrossEntropy())
        targets = torch.arange(6) % classes
        self.losses = accumulate(net, x, targets, slots, *loss, **rates, autocast=autocast, observers=[watch])
        self.after = torch.get_rng_state()
        self.gradients = [parameter.grad for parameter in net.parameters()]

    def _keep(self, slot: Slot, gradients: Mapping[str, Tensor]) -> None:
        self.each.append({name: gradient.clone() for name, gradient in gradients.items()})


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_the_same_bit_for_bit(family: str) -> None:
    plain, treated = make(family), make(family)
    checkpoint_activations(treated.net)
    one, other = Step(plain), Step(treated)
    assert all(torch.equal(a, b) for a, b in zip(one.losses, other.losses, strict=True))
    for (name, _), a, b in zip(plain.named_parameters(), one.gradients, other.gradients, strict=True):
        assert torch.equal(a, b), name  # type: ignore[arg-type]
    assert len(one.each) == len(other.each) == 2
    for mine, theirs in zip(one.each, other.each, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert any(gradient.abs().max() > 0 for gradient in other.each[0].values())
    assert torch.equal(one.after, other.after)


@pytest.mark.parametrize("family", ["mbconv", "vit"])
def test_the_same_under_autocast(family: str) -> None:
    plain, treated = make(family), make(family)
    checkpoint_activations(treated.net)
    one, other = Step(plain, autocast=True), Step(treated, autocast=True)
    assert all(torch.equal(a, b) for a, b in zip(one.losses, other.losses, strict=True))
    for a, b in zip(one.gradients, other.gradients, strict=True):
        assert torch.equal(a, b)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_less_is_kept(family: str) -> None:
    """Of every block only its inputs, as the estimate says.

    One convolution with a ReLU keeps nothing else anyway: that is all that conv_macro has.
    """
    plain, treated = make(family), make(family)
    checkpoint_activations(treated.net)
    space = plain.space
    x = images(4, space.resolution(space.largest()), channels=space.description["in_channels"])
    blocks = recomputed_blocks(plain.net)
    expected = kept_for_backward(plain, partial(plain, x, space.largest()), blocks)
    found = kept_for_backward(treated, partial(treated, x, space.largest()))
    assert len(expected.inside) == len(blocks)
    assert found.outside == expected.outside + expected.inputs
    assert (sum(expected.inside) == 0) == (family == "conv_macro")


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_the_network_s_parts_in_order(family: str) -> None:
    net = make(family).net
    names = {module: name for name, module in net.named_modules()}
    order: list[str] = []
    for block in blocks_of(net):
        block.register_forward_hook(lambda module, *_: order.append(names[module]))
    space = make(family).space
    arch = space.largest()
    net(images(4, space.resolution(arch), channels=space.description["in_channels"]), space.plan(arch))
    assert [name for name in order if name.endswith("head")] == [order[-1]]
    assert names[blocks_of(net)[-1]] == order[-1]
    owned = [p for block in blocks_of(net) for p in block.parameters()]
    assert len(owned) == len(list(net.parameters()))


def test_names_extraction_and_evaluation_do_not_change() -> None:
    plain, treated = make("mbconv"), make("mbconv")
    checkpoint_activations(treated.net)
    checkpoint_activations(treated.net)  # again: nothing happens
    assert list(plain.state_dict()) == list(treated.state_dict())
    assert [name for name, _ in plain.named_modules()] == [name for name, _ in treated.named_modules()]
    arch, x = plain.space.smallest(), images(4, 8)
    subnet = treated.extract(arch)
    assert not any(isinstance(module.forward, Recomputed) for module in subnet.modules())
    assert torch.equal(subnet(x), plain(x, arch))
    with torch.no_grad():
        assert torch.equal(treated(x, arch), plain(x, arch))
    treated.load_state_dict(plain.state_dict())


def test_a_copy_computes_with_its_own_weights() -> None:
    """A moving average of the weights is a deep copy of the network."""
    net = make("mbconv")
    checkpoint_activations(net.net)
    twin = copy.deepcopy(net)
    x, arch = images(4, 12), net.space.largest()
    before = twin(x, arch)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert torch.equal(twin(x, arch), before)
    assert before.abs().max() > 0


class Counted(nn.Module):
    """Counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.ones(())), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return (x * self.weight).sin()


def test_blocks_run_again_in_the_backward_pass_of_training_only() -> None:
    chain = nn.Sequential(Counted(), Counted(), Counted())

    def calls(evaluating: bool = False, backward: bool = True) -> list[int]:
        for module in chain.children():
            module.calls = 0
        chain.train(not evaluating)
        with torch.set_grad_enabled(backward):
            out = chain(torch.ones(3))
        if backward:
            out.sum().backward()
        return [module.calls for module in chain.children()]  # type: ignore[misc]

    assert calls() == [1, 1, 1]
    checkpoint_activations(chain)
    assert calls() == [2, 2, 1]  # the last one's backward pass comes first
    assert calls(backward=False) == calls(evaluating=True) == [1, 1, 1]
    with nothing_recomputed(chain):
        assert calls() == [1, 1, 1]
    assert calls() == [2, 2, 1]


def test_a_module_that_two_networks_share_runs_again_once() -> None:
    shared = Counted()
    for chain in (nn.Sequential(shared, Counted()), nn.Sequential(shared, Counted())):
        checkpoint_activations(chain)
    chain(torch.ones(3)).sum().backward()
    assert shared.calls == 2
