"""Cell spaces: against formulae by hand, networks written out plainly, and published numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import archs, images, randomise
from tiny_cells import OPS, bench, toy
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import supernet
from supernet import Supernet, calibrate, load_subnet
from supernet.cost import params_of
from supernet.data.base import DataInfo
from supernet.export import export
from supernet.layers.cell import Join
from supernet.slicing import take
from supernet.space import Arch, Space
from supernet.specs import ConvSpec, IdentitySpec, PoolSpec, SeparableSpec, SepConvSpec, most_held
from supernet.window import enumerate_archs

SPACES = {
    "toy": toy(),
    "toy separate": toy(entangled=False),
    "toy affine": toy(affine=True),
    "other ops": toy(ops=OPS, nodes=3),
    "bench": bench(),
    "bench separate": bench(entangled=False),
    "bench affine": bench(affine=True),
}
all_spaces = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())


def random_net(space: Space) -> Supernet:
    net = Supernet(space)
    randomise(net)
    return net


# Costs -----------------------------------------------------------------------------------------------------------


def published_params(normal: list[str], reduce: list[str]) -> int:
    """By hand: every convolution of the published network at 1 x 28 x 28, without norms; 10 classes."""

    def op(name: str, c: int) -> int:
        kernel = int(name[-1])
        once = c * kernel**2 + c * c
        return 2 * once if name.startswith("sep") else once

    pre = 1 * 32 + 64 * 32 + 64 * 64
    edges = sum(op(name, 32) + op(name, 64) for name in reduce) + sum(op(name, 32) for name in normal)
    return pre + edges + (1152 + 1) * 128 + (128 + 1) * 10


def test_toy_cell_has_the_published_parameters() -> None:
    space = supernet.build("toy_cell", num_classes=10, in_channels=1).space
    every = list(enumerate_archs(space))
    assert space.size() == len(every) == 4096
    counted = params_of(space).batch(np.array([space.encode(arch) for arch in every]))
    assert counted.tolist() == [published_params(arch["normal"], arch["reduce"]) for arch in every]


def test_nas_bench_201_has_the_published_costs() -> None:
    """The ends of the benchmark's own table: parameters and MACs with affine norms; it adds 10 MACs for the bias."""
    net = supernet.build("nb201", num_classes=10, affine=True)
    space = net.space
    ends = {arch: supernet.cost(space.plan(arch)) for arch in (space.smallest(), space.largest())}
    assert [c.params for c in ends.values()] == [73_306, 1_531_546]
    assert [c.macs + 10 for c in ends.values()] == [7_783_050, 220_119_690]
    assert space.size() == 15_625
    assert sum(p.numel() for p in net.parameters()) == 1_531_546  # the 1x1 kernels cost nothing


def test_separate_weights_have_their_own_parameters() -> None:
    """2 cells of 6 edges in every stage, each with a 1x1 convolution more."""
    shared, separate = (SPACES[name].widest.params for name in ("bench", "bench separate"))
    assert separate - shared == 12 * (4**2 + 8**2 + 16**2)


@all_spaces
def test_counted_work_is_the_work_done(space: Space) -> None:
    for arch in archs(space, 4):
        plan = space.plan(arch)
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            module = space.module(plan)
            module(torch.empty(2, 3, plan.resolution, plan.resolution))
        assert counter.get_total_flops() == 4 * plan.macs
        assert sum(p.numel() for p in module.parameters()) == plan.params


# The networks, written out plainly -------------------------------------------------------------------------------


def normalised(x: Tensor) -> Tensor:
    return (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()


def centre(weight: Tensor, kernel: int) -> Tensor:
    edge = (weight.shape[-1] - kernel) // 2
    return weight[:, :, edge : edge + kernel, edge : edge + kernel]


def plain_op(x: Tensor, name: str, state: Mapping[str, Tensor], prefix: str, stride: int) -> Tensor:
    """As the published code computes it: explicit strides, dilations and paddings."""
    kernel = int(name[-1])
    kind = name[:3]

    def separable(x: Tensor, where: str, stride: int, dilation: int) -> Tensor:
        depthwise = centre(state[f"{where}.depthwise.conv.weight"], kernel)
        padding = kernel - 1 if dilation == 2 else kernel // 2
        x = F.conv2d(F.relu(x), depthwise, None, stride, padding, dilation, groups=x.shape[1])
        return normalised(F.conv2d(x, state[f"{where}.pointwise.conv.weight"]))

    if kind == "dil":
        return separable(x, f"{prefix}.dil", stride, dilation=2)
    return separable(separable(x, f"{prefix}.sep.first", stride, 1), f"{prefix}.sep.second", 1, 1)


def plain_toy(x: Tensor, arch: Arch, state: Mapping[str, Tensor]) -> Tensor:
    for i, kind in enumerate(("reduce", "normal", "reduce")):
        stride = 2 if kind == "reduce" else 1
        ops, where = arch[kind], f"cells.{i}"
        x = normalised(F.conv2d(F.relu(x), state[f"{where}.pre.body.conv.weight"]))
        first = plain_op(x, ops[0], state, f"{where}.edges.0", stride)
        second = plain_op(x, ops[1], state, f"{where}.edges.1", stride)
        second = second + plain_op(first, ops[2], state, f"{where}.edges.2", 1)
        x = torch.cat([first, second], dim=1)
    x = F.max_pool2d(x, 2).flatten(1)
    x = F.relu(F.linear(x, state["head.hidden.weight"], state["head.hidden.bias"]))
    return F.linear(x, state["head.classifier.weight"], state["head.classifier.bias"])


def plain_bench(x: Tensor, arch: Arch, state: Mapping[str, Tensor], cells: int) -> Tensor:
    def norm(x: Tensor, where: str) -> Tensor:
        scale, shift = (state[f"{where}.norm.{key}"][:, None, None] for key in ("weight", "bias"))
        return normalised(x) * scale + shift

    def op(x: Tensor, name: str, where: str) -> Tensor:
        if name == "none":
            return torch.zeros_like(x)
        if name == "skip_connect":
            return x
        if name == "avg_pool_3x3":
            inside = F.conv2d(torch.ones_like(x[:1, :1]), x.new_ones(1, 1, 3, 3), padding=1)
            ones = x.new_ones(x.shape[1], 1, 3, 3)
            return F.conv2d(x, ones, padding=1, groups=x.shape[1]) / inside
        kernel = int(name[-1])
        weight = centre(state[f"{where}.conv.body.conv.weight"], kernel)
        return normalised(F.conv2d(F.relu(x), weight, padding=kernel // 2))

    x = norm(F.conv2d(x, state["stem.conv.weight"], padding=1), "stem")
    for s in range(3):
        if s:
            where = f"reductions.{s - 1}"
            out = F.conv2d(F.relu(x), state[f"{where}.conv1.body.conv.weight"], stride=2, padding=1)
            out = F.conv2d(
                F.relu(norm(out, f"{where}.conv1.body")), state[f"{where}.conv2.body.conv.weight"], padding=1
            )
            around = F.conv2d(F.avg_pool2d(x, 2), state[f"{where}.shortcut.conv.weight"])
            x = norm(out, f"{where}.conv2.body") + around
        for c in range(cells):
            edges = iter(enumerate(arch["edges"]))
            nodes = [x]
            for _ in range(3):
                outs = []
                for node, (e, name) in zip(nodes, edges, strict=False):
                    outs.append(op(node, name, f"stages.{s}.{c}.edges.{e}"))
                nodes.append(sum(outs[1:], outs[0]))
            x = nodes[3]
    x = F.relu(norm(x, "head")).mean((2, 3))
    return F.linear(x, state["head.classifier.weight"], state["head.classifier.bias"])


@torch.no_grad()
def test_toy_cell_computes_the_published_network() -> None:
    """Dilation 2 with stride 2 included, which runs as a plain convolution of every second pixel. Odd sides too."""
    net = random_net(SPACES["toy"]).double()
    state, x = net.net.state_dict(), images(4, 13).double()
    for arch in [net.space.smallest(), net.space.largest(), *archs(net.space, 10)]:
        torch.testing.assert_close(net(x, arch), plain_toy(x, arch, state))


@torch.no_grad()
def test_nb201_computes_the_published_network() -> None:
    net = random_net(bench(resolution=[8])).double()
    state, x = net.net.state_dict(), images(4, 8).double()
    for arch in [net.space.smallest(), net.space.largest(), *archs(net.space, 20)]:
        torch.testing.assert_close(net(x, arch), plain_bench(x, arch, state, cells=2))


@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_features_are_channels_last_on_a_cpu(channels: int) -> None:
    """Whatever the images are, also with one channel, which is contiguous in both formats."""
    net, found = Supernet(toy(in_channels=channels)), []
    for part in net.net.cells:  # type: ignore[union-attr]
        part.register_forward_hook(lambda module, args, out: found.append(out.stride(1)))
    net(images(2, 13, channels=channels))
    assert found == [1, 1, 1]


# Subnets ---------------------------------------------------------------------------------------------------------


@all_spaces
@torch.no_grad()
def test_extracted_subnets_give_the_same_numbers(space: Space) -> None:
    """Bit for bit, in train and in eval mode, whatever the memory format of the images."""
    net = random_net(space)
    x = images(4, space.resolution(space.largest()))
    for images_ in (x, x.contiguous(memory_format=torch.channels_last)):
        for arch in [space.smallest(), space.largest(), *archs(space, 6)]:
            subnet = net.train().extract(arch)
            assert torch.equal(net(images_, arch), subnet(images_))
            assert torch.equal(net.eval()(images_, arch), subnet.eval()(images_))


@all_spaces
def test_gradients_outside_the_slice_are_zero(space: Space) -> None:
    """Inside, they are those of the extracted subnet."""
    net = random_net(space)
    x = images(4, space.resolution(space.largest()))
    for arch in archs(space, 4):
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        net(x, arch).logsumexp(1).sum().backward()
        subnet = net.extract(arch)
        subnet(x).logsumexp(1).sum().backward()
        inside = {name: p.grad for name, p in subnet.named_parameters() if p.grad is not None}
        touched = 0
        for name, parameter in net.net.named_parameters():
            assert parameter.grad is not None
            rest = parameter.grad.clone()
            if name in inside:
                part = take(rest, inside[name].shape, (2, 3) if rest.ndim == 4 else ())
                torch.testing.assert_close(part, inside[name])
                touched += int(part.abs().sum() > 0)
                part.zero_()
            assert not rest.any(), name
        assert touched > 3


def weights(net: Supernet, arch: Arch) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in net.extract(arch).named_parameters()}


def test_small_kernels_are_the_centres_of_large_ones() -> None:
    net = random_net(SPACES["toy"])
    for kind in ("dil", "sep"):
        small, large = (
            weights(net, net.space.from_json({key: [f"{kind}_conv_{k}x{k}"] * 3 for key in ("normal", "reduce")}))
            for k in (3, 5)
        )
        assert small.keys() == large.keys()
        kernels = [name for name in small if "depthwise" in name]
        assert len(kernels) == 9 * (1 + (kind == "sep"))
        for name, weight in small.items():
            assert torch.equal(weight, centre(large[name], 3) if name in kernels else large[name])
    net = random_net(SPACES["bench"])
    one, three = (
        weights(net, net.space.from_json({"edges": [f"nor_conv_{k}x{k}"] * 6}))[
            "stages.0.1.edges.3.conv.body.conv.weight"
        ]
        for k in (1, 3)
    )
    assert torch.equal(one, three[:, :, 1:2, 1:2])


def test_separate_weights_are_separate() -> None:
    net = Supernet(SPACES["bench separate"])
    net(images(2, 9), net.space.from_json({"edges": ["nor_conv_1x1"] * 6})).sum().backward()
    grads = {name: p.grad is not None for name, p in net.net.named_parameters() if "edges" in name}
    assert {name.split(".")[5] for name in grads} == {"nor_conv_1x1", "nor_conv_3x3"}
    assert all(used == ("nor_conv_1x1" in name) for name, used in grads.items())


def test_both_reduction_cells_follow_the_same_choices() -> None:
    space = SPACES["toy"]
    genes = {gene.name: i for i, gene in enumerate(space.genes)}
    for edge in range(3):
        read = {unit.name: unit.reads for unit in space.units if f".edges.{edge}." in unit.name}
        for name, reads in read.items():
            key = "normal" if name.startswith("cells.1") else "reduce"
            assert genes[f"{key}[{edge}]"] in reads


def test_dropout_is_after_every_cell_and_in_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Supernet(toy(in_channels=1, resolution=[28]))
    x = images(16, 28, channels=1)
    shares: list[float] = []  # of zeros
    for part in net.modules():
        if isinstance(part, Join):
            part.register_forward_hook(lambda module, args, out: shares.append(float((out == 0).float().mean())))
    original = F.linear

    def spy(features: Tensor, *rest: Tensor) -> Tensor:
        shares.append(float((features == 0).float().mean()))
        return original(features, *rest)

    monkeypatch.setattr(F, "linear", spy)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net.train()(x, dropout=0.3)
    trained = shares[:]
    shares.clear()
    net.eval()(x, dropout=0.3)
    assert trained[:3] == pytest.approx([0.3] * 3, abs=0.03)
    assert max(shares[:3]) < 0.01
    alive = 1 - shares[4]  # after the head's relu
    assert trained[4] == pytest.approx(1 - 0.7 * alive, abs=0.1)
    assert trained[4] > shares[4] + 0.05


# Calibration and export --------------------------------------------------------------------------------------------


@all_spaces
def test_export_round_trip(space: Space, tmp_path: Path) -> None:
    """Calibrated with norms that have no scale; read back from the file."""
    net, arch = random_net(space), archs(space, 1)[0]
    side = space.resolution(arch)
    subnet = calibrate(net.extract(arch), [images(8, side, seed) for seed in range(2)])
    norms = [part for part in subnet.modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms
    assert all(norm.running_mean is not None and norm.running_mean.abs().sum() > 0 for norm in norms)
    info = DataInfo("some", 5, tuple("abcde"), 3, side, (0.5,) * 3, (0.2,) * 3, (side,))
    x = images(4, side, 9)
    assert export(subnet, arch, net, tmp_path / "subnet", info, x, {}, {}) == {"calibrated": 0.0, "supernet": 0.0}
    assert torch.equal(load_subnet(tmp_path / "subnet")(x), subnet(x))


@pytest.mark.parametrize("name", ["bench", "bench affine"])
def test_a_cell_without_connections(name: str, tmp_path: Path) -> None:
    """All zeros inside, so every image gives the same logits; it runs, learns, calibrates, and has a price."""
    net = random_net(SPACES[name])
    arch = net.space.from_json({"edges": ["none"] * 6})
    x = images(6, 9)
    logits = net(x, arch)
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits, logits[:1].expand(6, -1))
    F.cross_entropy(logits, torch.arange(6) % 5).backward()
    head: Any = net.net.head
    assert head.classifier.bias.grad.abs().sum() > 0
    subnet = calibrate(net.extract(arch), [x])
    torch.testing.assert_close(subnet(x), logits)
    plan = net.space.plan(arch)
    assert not [layer for layer, _ in plan.layers if ".edges." in layer]
    assert 0 < plan.macs < net.space.plan(net.space.largest()).macs
    assert plan.activations > 0


# What a cell holds -------------------------------------------------------------------------------------------------


def test_numbers_held_by_hand() -> None:
    """Nodes of 10 numbers. What a convolution reads is copied by its relu unless nothing else needs it."""
    skip, pool = IdentitySpec(), PoolSpec("avg", 1, 1, 1)
    conv = ConvSpec(1, 1, 1)
    assert most_held([conv], 10, 10, 1) == 20
    assert most_held([skip], 10, 10, 1) == 10
    assert most_held([pool], 10, 10, 1) == 20
    assert most_held([None], 10, 10, 1) == 10
    # Input, its copy, and the result; then input, first node, its copy (dies), ...
    assert most_held([conv, conv, None], 10, 10, 1) == 30
    assert most_held([conv, conv, conv], 10, 10, 1) == 30
    # The input, both nodes, and the joined output last: 20 of nodes, 20 of output.
    assert most_held([pool, pool, skip], 10, 10, 2) == 40
    # A large input, kept for the second node: input, copy, result.
    strided = SeparableSpec(conv, conv)
    assert most_held([SepConvSpec(strided, strided), pool, skip], 40, 10, 2) == 90
    assert most_held([SeparableSpec(conv, conv, step=2), pool, skip], 40, 10, 2) == 60
