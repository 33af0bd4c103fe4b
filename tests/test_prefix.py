"""Subnets scored together: every score is that of the subnet alone, bit for bit, at fewer passes through layers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from images import NoisyImages
from tiny import tiny_space
from tiny_cells import bench
from tiny_vit import tiny_vit
from torch import nn

from search.constraint import Constraint
from search.evaluator import SupernetEvaluator
from supernet.evaluate import Stopped, evaluate_subnet, evaluate_subnet_unless_below
from supernet.models import resnet
from supernet.net import Supernet
from supernet.passes import Passes
from supernet.prefix import Tree, evaluate_group, groups, has_prefixes
from supernet.sharing.assignment import Assignment
from supernet.sharing.grouped import GroupedSupernet
from supernet.space import Arch, Space


def tiny_resnet() -> Space:
    stages: list[dict[str, Any]] = [
        {"width": 16, "blocks": 1, "depth": [0, 1], "expand": [0.25, 0.5], "stride": 1},
        {"width": 32, "blocks": 1, "depth": [0, 1], "expand": [0.25, 0.5], "stride": 2},
    ]
    stem = {"width": 16, "middle": 8, "kernel": 3, "depth": [0, 1]}
    return resnet.space("tiny", (12,), stem, stages, (0.5, 1.0), num_classes=4)


SPACES = {"mbconv": tiny_space(resolution=(12,)), "resnet": tiny_resnet(), "vit": tiny_vit()}
PASSES = Passes({12: 10})


def supernet(space: Space) -> Supernet:
    torch.manual_seed(0)
    return Supernet(space)


def relatives(space: Space, count: int = 9) -> list[Arch]:
    """A random subnet and mutants of it, as a late generation of an evolution has them, and one twice."""
    rng = np.random.default_rng(0)
    archs = [space.sample(rng)]
    while len(archs) < count:
        archs.append(space.mutate(archs[0], rng, 0.2))
    return [*archs, archs[0]]


def distinct_layers(space: Space, archs: list[Arch]) -> int:
    """How many passes through layers subnets need, if equal beginnings are run once."""
    layers = [space.plan(arch).layers for arch in archs]
    return len({plan[:depth] for plan in layers for depth in range(1, len(plan) + 1)})


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("calibration_images", [0, 48])
def test_scores_are_those_of_the_subnets_alone_bit_for_bit(name: str, calibration_images: int) -> None:
    net, data = supernet(SPACES[name]), NoisyImages(batch=20, search=70)
    archs = relatives(net.space, 5)
    alone = [evaluate_subnet(net, arch, data, "search", calibration_images, PASSES) for arch in archs]
    assert evaluate_group(net, archs, data, "search", calibration_images, PASSES) == alone
    assert len({metrics.loss for metrics in alone}) > 2  # or equality would say little
    best = max(metrics.top1 for metrics in alone)
    for below in (best, best + 20):
        stopped = [
            evaluate_subnet_unless_below(net, arch, data, "search", calibration_images, below, PASSES) for arch in archs
        ]
        assert evaluate_group(net, archs, data, "search", calibration_images, PASSES, below) == stopped
    assert any(isinstance(found, Stopped) for found in stopped)


@pytest.mark.parametrize("name", SPACES)
def test_common_layers_run_once(name: str) -> None:
    space = SPACES[name]
    net, archs = supernet(space), relatives(space)
    tree = Tree([net.extract(arch) for arch in archs], [space.plan(arch) for arch in archs])
    calls: list[nn.Module] = []
    for layer in tree.layers:
        layer.register_forward_hook(lambda layer, inputs, output: calls.append(layer))
    x = torch.randn(4, 3, 12, 12)
    found = tree(x)
    assert sorted(found) == list(range(len(archs)))
    assert len(calls) == len(set(calls)) == len(tree.layers) == distinct_layers(space, archs)
    assert len(calls) < sum(len(space.plan(arch).layers) for arch in archs)
    calls.clear()
    some = tree(x, [1, 4])
    assert sorted(some) == [1, 4]
    assert torch.equal(some[4], found[4])
    assert len(calls) == distinct_layers(space, [archs[1], archs[4]])


def test_learned_kernels_are_no_common_layer() -> None:
    """The weights of a 3x3 kernel are a function of the 5x5 one's, and only of that."""
    net, data = supernet(tiny_space(resolution=(12,), kernel_transform=True)), NoisyImages()
    for module in net.modules():
        if isinstance(module, nn.ParameterDict):
            for matrix in module.values():
                nn.init.normal_(matrix)
    archs = relatives(net.space)
    alone = [evaluate_subnet(net, arch, data, "search", 32) for arch in archs]
    assert evaluate_group(net, archs, data, "search", 32) == alone


class Alternate:
    """The assignment of subnets to two members by the width of the stem's neighbour."""

    members = 2

    def __init__(self, space: Space) -> None:
        self.space = space

    def member(self, arch: Arch) -> int:
        return sum(self.space.encode(arch)) % 2


def test_members_of_a_grouped_supernet_share_nothing() -> None:
    space = tiny_space()
    torch.manual_seed(0)
    rule: Assignment = Alternate(space)
    net = GroupedSupernet(space, rule, same_init=False)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    rng = np.random.default_rng(1)
    archs = [space.sample(rng) for _ in range(24)]
    found = groups(net, archs, 64, lambda side: 20)
    assert sorted(i for group in found for i in group) == list(range(24))
    assert len(found) == 4  # two members, two resolutions
    for group in found:
        assert len({(rule.member(archs[i]), space.resolution(archs[i])) for i in group}) == 1
    evaluator = SupernetEvaluator(net, NoisyImages(), 32, Constraint().on(space).costs, reuse_mb=64)
    alone = SupernetEvaluator(net, NoisyImages(), 32, Constraint().on(space).costs)
    assert evaluator(archs) == alone(archs)


def test_groups_hold_neighbours_within_the_memory_given() -> None:
    space = SPACES["mbconv"]
    net = supernet(space)
    rng = np.random.default_rng(2)
    archs = [space.sample(rng) for _ in range(30)]
    (everything,) = groups(net, archs, 1e3, lambda side: 64)
    plans = [space.plan(archs[i]).layers for i in everything]
    for depth in range(1, 6):  # subnets with a common beginning stand side by side
        beginnings = [plan[:depth] for plan in plans]
        assert sum(a != b for a, b in pairwise(beginnings)) + 1 == len(set(beginnings))
    assert groups(net, archs, 0.0, lambda side: 64) == [[i] for i in everything]
    weights = sum(space.plan(arch).bytes for arch in archs) / 2**20
    few = groups(net, archs, weights / 3, lambda side: 1)
    assert 3 <= len(few) < 30
    assert [i for group in few for i in group] == everything
    assert all(sum(space.plan(archs[i]).bytes for i in group) <= weights / 3 * 2**20 for group in few)
    assert len(groups(net, archs, weights / 3, lambda side: 512)) > len(few)  # activations count too


def test_spaces_of_cells_are_scored_alone() -> None:
    net = supernet(bench())
    assert not has_prefixes(net)
    evaluator = SupernetEvaluator(net, NoisyImages(), 32, Constraint().on(net.space).costs, reuse_mb=64)
    assert evaluator.groups(relatives(net.space)) == [[i] for i in range(10)]
    assert all(has_prefixes(supernet(space)) for space in SPACES.values())
