"""Which weights decay: those of convolutions and linear layers, and nothing else."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_space
from tiny_vit import tiny_vit
from torch import nn

from supernet.net import Supernet
from supernet.optim import parameter_groups


@pytest.fixture(scope="module")
def net() -> Supernet:
    return Supernet(tiny_space())


def test_every_parameter_is_in_exactly_one_group(net: Supernet) -> None:
    grouped = [id(p) for group in parameter_groups(net, 0.1) for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in net.parameters()}


def test_only_weights_of_convolutions_and_linear_layers_decay(net: Supernet) -> None:
    decay = {id(p): g["weight_decay"] for g in parameter_groups(net, 0.1) for p in g["params"]}
    kinds = set()
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            decays = isinstance(module, nn.Conv2d | nn.Linear) and name == "weight"
            assert decay[id(parameter)] == (0.1 if decays else 0.0), (type(module), name)
            kinds.add((isinstance(module, nn.BatchNorm2d), name))
    assert kinds == {(False, "weight"), (False, "bias"), (True, "weight"), (True, "bias")}


def test_tokens_positions_and_biases_of_a_transformer_do_not_decay() -> None:
    """Among what has more than one axis: the class token, positions, and the biases of q, k and v."""
    net = Supernet(tiny_vit(qkv_bias="shared"))
    decay = {id(p): g["weight_decay"] for g in parameter_groups(net, 0.1) for p in g["params"]}
    assert len(decay) == len(list(net.parameters()))
    plain = {
        name.removeprefix("blocks.0.")
        for name, p in net.net.named_parameters()
        if p.ndim > 1 and decay[id(p)] == 0.0 and not name.startswith("blocks.1")
    }
    assert plain == {"embed.cls_token", "embed.position", "attention.qkv_bias"}
    assert all(decay[id(p)] == 0.0 for p in net.parameters() if p.ndim <= 1)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_without_gradients_the_optimizer_shrinks_weights_only(
    optimizer: type[torch.optim.Optimizer],
) -> None:
    """The default of `AdamW` decays everything, so the groups must say 0 themselves."""
    net = Supernet(tiny_space())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    optimizer(parameter_groups(net, 0.5), lr=0.1).step()  # type: ignore[call-arg]
    for parameter in net.parameters():
        assert bool((parameter == 1.0).all()) == (parameter.ndim <= 1)
        assert bool((parameter < 1.0).all()) == (parameter.ndim > 1)
