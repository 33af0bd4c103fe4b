"""The DARTS space: against the published network written out plainly, its parameters, and its genotypes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_memory_cost
import torch
import torch.nn.functional as F
from darts_reference import plain
from nets import archs, images, randomise
from test_memory_cost import aten, peak_of, subnet_of
from tiny_run import tiny_config
from torch.utils.flop_counter import FlopCounterMode

import supernet
from supernet import Supernet, UserError, calibrate
from supernet.build import make_space
from supernet.cost import memory_of, params_of, size_of
from supernet.layers.operations import FactorizedReduce, NormedPool
from supernet.models import darts
from supernet.slicing import take
from supernet.space import Arch, Space
from supernet.specs import FactorizedReduceSpec, IdentitySpec, NormedPoolSpec, PoolSpec
from supernet.window import sample_in_window

V2 = (  # the published one: found on CIFAR-10, second order
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], "
    "normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), "
    "('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], "
    "reduce_concat=[2, 3, 4, 5])"
)


def tiny(**overrides: Any) -> Space:
    """Four channels and three cells, the last two of which reduce, for images of 3 x 12 x 12."""
    settings = {"num_classes": 5, "channels": 4, "cells": 3, "resolution": [12]}
    return supernet.build("darts", **{**settings, **overrides}).space


SPACES = {
    "tiny": tiny(),
    "separate": tiny(entangled=False),
    "alone": tiny(affine=True, pool_norm=False),
    "deeper, odd sides": tiny(cells=6, channels=3, resolution=[9, 13]),
}
all_spaces = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())


def random_net(space: Space) -> Supernet:
    net = Supernet(space)
    randomise(net)
    return net


def some(space: Space, count: int) -> list[Arch]:
    return [space.smallest(), space.largest(), *archs(space, count)]


# What can be chosen ----------------------------------------------------------------------------------------------


def test_size() -> None:
    """Two of 2, 3, 4 and 5 inputs, and an operation for each of the two, in both cells."""
    assert supernet.build("darts").space.size() == (1 * 3 * 6 * 10 * 7**8) ** 2
    assert tiny(ops=["skip_connect"]).size() == 180**2
    assert tiny().narrow({"normal_inputs": ["0-1"], "reduce": ["skip_connect"]}).size() == 7**8 * 180


def test_operations_of_unused_edges_do_not_count() -> None:
    space = SPACES["tiny"]
    for arch in archs(space, 20):
        data = arch.to_json()
        changed = {**data, "normal": list(data["normal"])}
        inputs = [word.split("-") for word in data["normal_inputs"]]
        for edge, (node, source) in enumerate(darts.EDGES):
            if str(source) not in inputs[node]:
                changed["normal"][edge] = "dil_conv_5x5"
        assert changed["normal"] != data["normal"]
        assert space.from_json(changed) == arch
        used = next(i for i, (node, source) in enumerate(darts.EDGES) if node == 3 and str(source) in inputs[3])
        other = {**data, "normal": list(data["normal"])}
        other["normal"][used] = "avg_pool_3x3" if other["normal"][used] != "avg_pool_3x3" else "sep_conv_3x3"
        assert space.from_json(other) != arch


@all_spaces
def test_two_edges_into_every_node(space: Space) -> None:
    cells = space.description["cells"]
    for arch in some(space, 10):
        plan = space.plan(arch)
        reduce = {cells // 3, 2 * cells // 3}
        for cell in range(cells):
            kind = "reduce" if cell in reduce else "normal"
            present = [name.split(".") for name, _ in plan.layers if name.startswith(f"cells.{cell}.edges.")]
            edges = [darts.EDGES[int(parts[3])] for parts in present]
            wanted = [(n, int(s)) for n, word in enumerate(arch[f"{kind}_inputs"]) for s in word.split("-")]
            assert edges == wanted


def test_narrow_keeps_archs() -> None:
    space = SPACES["tiny"]
    narrow = space.narrow({"normal_inputs": ["0-1", "1-2"], "normal": ["skip_connect", "sep_conv_5x5"]})
    assert narrow.size() == (1 * 2 * 2 * 2 * 2**8) * 180 * 7**8
    for arch in archs(narrow, 10):
        again = space.from_json(arch.to_json())
        assert space.plan(again).layers == narrow.plan(arch).layers


# The published form ----------------------------------------------------------------------------------------------


def test_published_parameters() -> None:
    """The release prints 3.349342 MB for its network of 20 cells and 36 channels, auxiliary head left out."""
    space = tiny(channels=36, cells=20, num_classes=10, resolution=[32], affine=True, pool_norm=False)
    arch = space.from_json(darts.parse(V2))
    assert space.plan(arch).params == 3_349_342
    assert params_of(space).batch(np.array([space.encode(arch)])).tolist() == [3_349_342]


def test_genotypes_round_trip() -> None:
    space = SPACES["tiny"]
    arch = space.from_json(darts.parse(V2))
    assert arch["normal_inputs"] == ("0-1", "0-1", "0-1", "0-2")
    assert arch["reduce_inputs"] == ("0-1", "1-2", "0-2", "1-2")
    assert arch["normal"][5:7] == ("skip_connect", "sep_conv_3x3")
    text = darts.arch_string(arch)
    assert text.startswith("Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ")
    assert text.endswith("('max_pool_3x3', 1), ('skip_connect', 2)], reduce_concat=range(2, 6))")
    for other in archs(space, 30):
        assert space.from_json(darts.parse(darts.arch_string(other))) == other


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (V2, ""),
        (V2, "None"),
        ("Genotype", "print"),
        ("Genotype(", "Genotype(1, "),
        ("normal_concat=[2, 3, 4, 5]", "normal_concat=[2, 3, 4]"),
        ("normal_concat=[2, 3, 4, 5]", "normal_concat=range(10**9)"),
        ("normal_concat=[2, 3, 4, 5]", "normal_concat=range(1, 5)"),
        ("normal_concat", "other_concat"),
        ("('skip_connect', 0), ('dil_conv_3x3', 2)", "('dil_conv_3x3', 2)"),
        ("('skip_connect', 0), ('dil_conv_3x3', 2)", "('skip_connect', 2), ('dil_conv_3x3', 2)"),
        ("('skip_connect', 0), ('dil_conv_3x3', 2)", "('skip_connect', 0), ('dil_conv_3x3', 5)"),
        ("('skip_connect', 0), ('dil_conv_3x3', 2)", "('skip_connect', 0), ('dil_conv_3x3', -1)"),
        ("('dil_conv_3x3', 2)", "'dil_conv_3x3'"),
        ("('dil_conv_3x3', 2)", "(__import__('os').getcwd(), 2)"),
        ("('dil_conv_3x3', 2)", "('dil_conv_3x3', [2])"),
        (")", ""),
    ],
)
def test_malformed_genotypes(old: str, new: str) -> None:
    text = V2.replace(old, new)
    assert text != V2
    with pytest.raises(ValueError, match="not of the form Genotype"):
        darts.parse(text)


# The network and its parts --------------------------------------------------------------------------------


@pytest.mark.parametrize(("affine", "pool_norm", "cells"), [(False, True, 3), (True, False, 6)])
@torch.no_grad()
def test_it_computes_the_published_network(affine: bool, pool_norm: bool, cells: int) -> None:
    net = random_net(tiny(affine=affine, pool_norm=pool_norm, cells=cells)).double()
    state, x = net.net.state_dict(), images(4, 12).double()
    for arch in some(net.space, 20):
        torch.testing.assert_close(net(x, arch), plain(x, arch, state, cells, affine, pool_norm))


def test_operations_that_only_this_space_has() -> None:
    space = SPACES["tiny"]
    skips = space.from_json(
        {**space.largest().to_json(), "normal": ["skip_connect"] * 14, "reduce": ["skip_connect"] * 14}
    )
    found = {name: type(spec) for name, spec in space.plan(skips).layers if ".edges." in name}
    assert found["cells.0.edges.0.skip"] is IdentitySpec
    assert found["cells.1.edges.0.skip"] is FactorizedReduceSpec
    assert found["cells.1.edges.13.skip"] is IdentitySpec
    pools = space.from_json({**space.largest().to_json(), "normal": ["avg_pool_3x3"] * 14})
    assert isinstance(space.plan(pools)["cells.0.edges.0.avg_pool"], NormedPoolSpec)
    assert isinstance(SPACES["alone"].plan(pools)["cells.0.edges.0.avg_pool"], PoolSpec)
    kinds = {type(module) for module in Supernet(space).modules()}
    assert {FactorizedReduce, NormedPool} <= kinds


@torch.no_grad()
def test_drop_path_leaves_identities_alone() -> None:
    """Without it an edge's branch is whole; with it some images lose theirs, and only in training."""
    net, x = random_net(SPACES["tiny"]), images(8, 12)
    data = net.space.largest().to_json()
    skips = net.space.from_json({**data, "normal": ["skip_connect"] * 14, "reduce": ["skip_connect"] * 14})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cell: Any = net.net.cells[0]  # type: ignore[index, union-attr]
        features, plan = images(8, 12, channels=12), net.space.plan(skips)
        assert torch.equal(cell(features, features, plan, 0.5), cell(features, features, plan))
        assert not torch.equal(net.train()(x, drop_path=0.5), net(x))
        assert torch.equal(net.eval()(x, drop_path=0.5), net(x))


# Subnets ---------------------------------------------------------------------------------------------------------


@all_spaces
@torch.no_grad()
def test_extracted_subnets_give_the_same_numbers(space: Space) -> None:
    """Bit for bit, in train and in eval mode, and after calibration; two edges are left of every node."""
    net = random_net(space)
    for arch in some(space, 6):
        x = images(4, space.resolution(arch))
        subnet = net.train().extract(arch)
        assert torch.equal(net(x, arch), subnet(x))
        assert torch.equal(net.eval()(x, arch), subnet.eval()(x))
        assert [len(edge) for cell in subnet.cells for edge in cell.edges].count(1) == 8 * len(subnet.cells)  # type: ignore[arg-type, union-attr]
        assert torch.isfinite(calibrate(subnet, [x])(x)).all()


@all_spaces
def test_counted_work_is_the_work_done(space: Space) -> None:
    for arch in archs(space, 2):
        plan = space.plan(arch)
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            module = space.module(plan)
            module(torch.empty(2, 3, plan.resolution, plan.resolution))
        assert counter.get_total_flops() == 4 * plan.macs
        assert sum(p.numel() for p in module.parameters()) == plan.params


@all_spaces
def test_size_is_that_of_the_exported_tensors(space: Space) -> None:
    for arch in some(space, 3):
        tensors = subnet_of(space, arch).state_dict().values()
        bytes_ = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        assert size_of(space).batch(np.array([space.encode(arch)])).tolist() == [bytes_ / 1e6]


@pytest.mark.parametrize("cells", [3, 8])
def test_numbers_held_do_not_depend_on_the_edges(cells: int) -> None:
    """The plan's own, which no edge decides, is the peak of every subnet; at even sides exactly."""
    space = tiny(cells=cells)
    for arch in archs(space, 2):
        assert space.plan(arch).activations == peak_of(subnet_of(space, arch), 12, 3)
    assert len(set(memory_of(space).batch(np.array([space.encode(arch) for arch in archs(space, 50)])).tolist())) == 1


def test_numbers_held_at_odd_sides_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = test_memory_cost.LAYERS | {aten.constant_pad_nd.default}
    monkeypatch.setattr(test_memory_cost, "LAYERS", layers)
    space = tiny(cells=4, resolution=[13])
    for arch in archs(space, 3):
        most = peak_of(subnet_of(space, arch), space.resolution(arch), 3)
        assert most <= space.plan(arch).activations <= 1.15 * most


@all_spaces
def test_gradients_outside_the_slice_are_zero(space: Space) -> None:
    """Inside, they are those of the extracted subnet."""
    net = random_net(space)
    for arch in archs(space, 3):
        x = images(4, space.resolution(arch))
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
        assert touched > 8


def test_small_kernels_are_the_centres_of_large_ones() -> None:
    entangled, separate = (
        {name: p.numel() for name, p in Supernet(SPACES[name]).net.named_parameters() if "edges" in name}
        for name in ("tiny", "separate")
    )
    assert sum(separate.values()) > sum(entangled.values())
    net = random_net(SPACES["tiny"])
    data = net.space.largest().to_json()
    for kind, count in (("sep", 2), ("dil", 1)):
        small, large = (
            dict(net.extract(net.space.from_json({**data, "normal": [f"{kind}_conv_{k}x{k}"] * 14})).named_parameters())
            for k in (3, 5)
        )
        kernels = [name for name in small if name.startswith("cells.0.edges") and "depthwise" in name]
        assert len(kernels) == 8 * count
        assert all(torch.equal(small[name], large[name][:, :, 1:4, 1:4]) for name in kernels)


# As a configuration ----------------------------------------------------------------------------------------------


def test_the_config_composes_and_its_tiny_version_learns(tmp_path: Path) -> None:
    overrides = ["space=darts", "space.channels=4", "space.cells=3", "data.resolution=[12]", "space.resolution=[12]"]
    config = tiny_config(tmp_path, *overrides)
    space = make_space(config["space"], num_classes=5, in_channels=3)
    assert space.name == "darts"
    net, x, labels = Supernet(space), images(32, 12), torch.arange(32) % 5
    randomise(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = sum((F.cross_entropy(net(x, arch), labels) for arch in some(space, 2)), torch.zeros(()))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.2


def test_windows_are_met() -> None:
    """Sampling by cost relies on each unit reading few genes."""
    space = supernet.build("darts").space
    most, least = (space.plan(arch).macs for arch in (space.largest(), space.smallest()))
    middle = (0.5 * (most + least), 0.5 * (most + least) * 1.02)
    found = sample_in_window(space, np.random.default_rng(0), 20, {"macs": middle})
    assert len(set(found)) == 20
    assert all(middle[0] <= space.plan(arch).macs <= middle[1] for arch in found)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"cells": 2}, "cells: whole numbers of at least 3"),
        ({"channels": 1}, "channels: whole numbers of at least 2"),
        ({"resolution": [2]}, "resolution: whole numbers of at least 3"),
        ({"ops": ["none", "skip_connect"]}, "unknown operation 'none'"),
        ({"ops": []}, "give a list of operations"),
        ({"norm_eps": 0.0}, "norm_eps=0.0: must be positive"),
        ({"cell": 8}, "cell"),
    ],
)
def test_mistakes(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(**overrides)
