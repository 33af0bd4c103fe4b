"""Random networks of every family: the subnet inside the supernet, extracted and priced is one and the same."""

from __future__ import annotations

import copy

import torch
from families import Case, cases
from hypothesis import assume, given
from hypothesis import strategies as st
from nets import images, randomise
from torch.utils.flop_counter import FlopCounterMode

from supernet import cost
from supernet.net import Supernet

BATCH = 2  # one image of one pixel would have no variance


@given(cases(), st.integers(0, 1000))
def test_inside_extracted_and_priced(case: Case, seed: int) -> None:
    space, codes = case
    arch = space.decode(codes)
    net = Supernet(space)
    randomise(net, seed)
    before = copy.deepcopy(net.state_dict())
    x = images(BATCH, space.resolution(arch), seed, channels=space.description["in_channels"])
    with torch.no_grad():
        inside = net(x, arch)
        alone = net.extract(arch)
        with FlopCounterMode(display=False) as counter:
            outside = alone(x)
    assert inside.shape == (BATCH, space.description["num_classes"])
    assert inside.isfinite().all()
    assert torch.equal(inside, outside), "bit for bit"
    price = cost(space.plan(arch))
    assert counter.get_total_flops() == 2 * BATCH * price.macs
    assert sum(parameter.numel() for parameter in alone.parameters()) == price.params
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()), "nothing has changed"
    if arch == space.largest():
        with torch.no_grad():
            assert torch.equal(net(x), inside)


@given(cases())
def test_gradients_reach_the_subnet_alone(case: Case) -> None:
    """As many numbers have a gradient as the subnet has parameters, or fewer where relu, or a norm, leaves none."""
    space, codes = case
    assume(not space.config.get("kernel_transform"))  # small kernels are made of large ones
    arch = space.decode(codes)
    net = Supernet(space)
    randomise(net)
    x = images(BATCH, space.resolution(arch), channels=space.description["in_channels"])
    net(x, arch).square().sum().backward()
    touched = sum(int(p.grad.count_nonzero()) for p in net.parameters() if p.grad is not None)
    assert touched <= cost(space.plan(arch)).params
