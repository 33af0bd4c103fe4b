"""The slicing rule, copies, and gradients: against explicit indexing."""

from __future__ import annotations

import pytest
import torch
from nets import TINY, archs, images, net_of, randomise
from torch import Tensor, nn

from supernet.net import Supernet
from supernet.slicing import CONV_KERNEL_DIMS, copy_slices, take


def explicit(wide: Tensor, shape: torch.Size, is_conv: bool) -> Tensor:
    """The view of `wide` that a tensor of `shape` must come from, by plain indexing."""
    if wide.ndim == 4 and is_conv:
        out, inner, kernel, _ = shape
        low = (wide.shape[2] - kernel) // 2
        return wide[:out, :inner, low : low + kernel, low : low + kernel]
    return wide[tuple(slice(0, length) for length in shape)]


def test_kernels_are_cropped_at_the_centre() -> None:
    weight = torch.arange(2 * 3 * 49).reshape(2, 3, 7, 7)
    for kernel, low in ((3, 2), (5, 1), (7, 0)):
        part = take(weight, (1, 2, kernel, kernel), CONV_KERNEL_DIMS)
        assert torch.equal(part, weight[:1, :2, low : low + kernel, low : low + kernel])


def test_a_slice_is_a_view_and_the_whole_is_the_parameter_itself() -> None:
    weight = nn.Parameter(torch.zeros(4, 4))
    assert take(weight, (4, 4)) is weight
    with torch.no_grad():
        take(weight, (2, 3)).fill_(1.0)
    assert weight.sum() == 6
    assert weight[:2, :3].sum() == 6


@pytest.mark.parametrize("shape", [(5, 4), (4, 5), (4,), (4, 4, 1)])
def test_what_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"does not fit in a weight of shape \(4, 4\)"):
        take(torch.zeros(4, 4), shape)


@pytest.mark.parametrize("name", [*TINY, "mbv3_tiny"])
def test_extraction_copies_the_right_entries(name: str) -> None:
    net = net_of(name)
    randomise(net)
    wide = dict(net.net.named_parameters())
    for arch in archs(net.space, 20):
        for key, parameter in net.extract(arch).named_parameters():
            assert torch.equal(parameter, explicit(wide[key], parameter.shape, True)), key


def test_extraction_copies_and_does_not_share() -> None:
    net = net_of("tiny_stage")
    arch = net.space.largest()
    subnet = net.extract(arch)
    before = {key: value.clone() for key, value in subnet.state_dict().items()}
    randomise(net, seed=1)
    assert all(torch.equal(before[key], value) for key, value in subnet.state_dict().items())
    supernet_before = {key: value.clone() for key, value in net.state_dict().items()}
    randomise(subnet, seed=2)
    assert all(torch.equal(supernet_before[key], value) for key, value in net.state_dict().items())
    pointers = {p.untyped_storage().data_ptr() for p in net.parameters()}
    assert not pointers & {p.untyped_storage().data_ptr() for p in subnet.parameters()}


def test_extraction_does_not_touch_the_random_stream() -> None:
    net = net_of("tiny_stage")
    state = torch.get_rng_state()
    net.extract(net.space.smallest())
    assert torch.equal(torch.get_rng_state(), state)


def test_copy_refuses_a_target_with_other_layers() -> None:
    net, other = net_of("tiny_stage"), net_of("mbv3_tiny")
    with pytest.raises((AttributeError, ValueError)):
        copy_slices(net.net, other.net)


@pytest.mark.parametrize("name", [*TINY, "mbv3_tiny"])
def test_gradients_are_those_of_the_subnet_and_zero_elsewhere(name: str) -> None:
    net = net_of(name).double()
    randomise(net)
    for arch in [net.space.smallest(), *archs(net.space, 8)]:
        x = images(4, net.space.resolution(arch)).double()
        net.zero_grad()
        _loss(net(x, arch)).backward()
        subnet = net.extract(arch)
        _loss(subnet(x)).backward()
        alone = {key: p.grad for key, p in subnet.named_parameters()}
        for key, parameter in net.net.named_parameters():
            outside = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            gradient = alone.get(key)
            if gradient is not None:
                active = explicit(outside, gradient.shape, True)
                torch.testing.assert_close(active, gradient, rtol=1e-11, atol=1e-11, msg=key)
                active.zero_()
            assert not outside.any(), key


def test_gradients_of_several_subnets_add_up() -> None:
    net = net_of("tiny_block").double()
    randomise(net)
    chosen = archs(net.space, 3)
    total = {key: torch.zeros_like(p) for key, p in net.named_parameters()}
    for arch in chosen:
        for key, gradient in _gradients(net, arch).items():
            total[key] += gradient
    net.zero_grad()
    for arch in chosen:
        _loss(net(_input(net, arch), arch)).backward()
    for key, parameter in net.named_parameters():
        actual = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(actual, total[key], rtol=1e-12, atol=1e-14)


def _input(net: Supernet, arch: object) -> Tensor:
    return images(4, 8).double()


def _gradients(net: Supernet, arch: object) -> dict[str, Tensor]:
    net.zero_grad()
    _loss(net(_input(net, arch), arch)).backward()  # type: ignore[arg-type]
    return {key: p.grad.clone() for key, p in net.named_parameters() if p.grad is not None}


def _loss(logits: Tensor) -> Tensor:
    weights = torch.linspace(-1, 2, logits.numel(), dtype=logits.dtype).reshape(logits.shape)
    return (logits.tanh() * weights).sum()
