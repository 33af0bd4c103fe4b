"""Random networks of every family: the subnet inside the supernet, extracted and priced is one and the same."""

from __future__ import annotations

import copy

import torch
from families import Case, cases, part_cases
from hypothesis import assume, given
from hypothesis import strategies as st
from nets import images, randomise
from torch.utils.flop_counter import FlopCounterMode

from supernet import cost
from supernet.net import Supernet
from supernet.space import Arch

BATCH = 2  # one image of one pixel would have no variance
TOLERANCE = 1e-10  # of the largest gradient, in fp64


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


@given(part_cases(), st.integers(0, 1000))
def test_gradients_are_those_of_the_subnet_and_zero_elsewhere(case: Case, seed: int) -> None:
    """Of every number in the supernet: what the extracted network says, or exactly zero if the subnet lacks it."""
    space, codes = case
    assume(not space.config.get("kernel_transform"))  # small kernels are made of large ones, not cut out of them
    arch = space.decode(codes)
    net = Supernet(space).double()
    randomise(net, seed)
    alone = net.extract(arch)
    x = images(BATCH, space.resolution(arch), seed, channels=space.description["in_channels"]).double()
    inside, outside = net(x, arch), alone(x)
    weights = torch.randn(inside.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (inside * weights).sum().backward()
    (outside * weights).sum().backward()
    found, expected, used = gradients(net), gradients(alone), places(net, arch)
    assert len(used) == len(expected) == len(used.unique()) < len(found)
    assert (found[used] - expected).abs().max() <= TOLERANCE * expected.abs().max()
    found[used] = 0
    assert not found.count_nonzero(), "a gradient outside of the subnet"


def gradients(module: torch.nn.Module) -> torch.Tensor:
    """Of all parameters, one after another."""
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in module.parameters()]
    )


def places(net: Supernet, arch: Arch) -> torch.Tensor:
    """Where each number of the extracted subnet comes from: positions in all parameters one after another."""
    numbered, first = copy.deepcopy(net), 0
    with torch.no_grad():
        for parameter in numbered.parameters():
            positions = torch.arange(first, first + parameter.numel(), dtype=torch.float64)
            parameter.copy_(positions.view(parameter.shape))
            first += parameter.numel()
    return torch.cat([parameter.detach().flatten() for parameter in numbered.extract(arch).parameters()]).long()
