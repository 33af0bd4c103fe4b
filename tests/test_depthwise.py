"""The weight gradient of wide depthwise convolutions, and where it stands in for PyTorch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.layers import depthwise
from supernet.layers.depthwise import depthwise_conv2d, depthwise_weight_gradient, slow_gradient

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CASES = [
    # side, kernel, stride, padding, dilation
    (9, 5, 1, 2, 1),
    (9, 5, 2, 2, 1),
    (10, 5, 2, 2, 1),
    (26, 5, 1, 2, 1),
    (50, 7, 2, 3, 1),
    (51, 7, 2, 3, 1),
    (3, 7, 1, 3, 1),
    (12, 5, 3, 1, 1),
    (28, 5, 1, 4, 2),
    (28, 5, 2, 4, 2),
    (11, 5, 1, 0, 1),
]


def inputs(side: int, memory: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(side)
    x = torch.randn(3, 8, side, side, generator=rng, dtype=dtype).contiguous(memory_format=FORMATS[memory])
    return x.requires_grad_(), torch.randn(8, 1, 7, 7, generator=rng, dtype=dtype)


@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize(("side", "kernel", "stride", "padding", "dilation"), CASES)
def test_gradients_are_autograds(
    side: int, kernel: int, stride: int, padding: int, dilation: int, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = inputs(side, memory)
    how = tuple((n, n) for n in (stride, padding, dilation))
    weight = weight[..., :kernel, :kernel].clone().requires_grad_()
    wanted = F.conv2d(x, weight, None, stride, padding, dilation, 8)
    by = torch.randn_like(wanted)
    expected = torch.autograd.grad(wanted, (x, weight), by)
    for large in (1, 10**9):  # images one by one, and all as channels of one
        monkeypatch.setattr(depthwise, "LARGE", large)
        out = depthwise_conv2d(x, weight, *how)
        assert torch.equal(out, wanted)
        for found, right in zip(torch.autograd.grad(out, (x, weight), by), expected, strict=True):
            assert found.shape == right.shape
            torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)


def test_the_gradient_of_an_oblong_kernel() -> None:
    x, weight = inputs(12, "channels_last")
    weight = weight[..., :3, :5].clone().requires_grad_()
    wanted = F.conv2d(x, weight, None, 1, (1, 2), 1, 8)
    by = torch.randn_like(wanted)
    found = depthwise_weight_gradient(x, by, (3, 5), (1, 1), (1, 2), (1, 1))
    torch.testing.assert_close(found, torch.autograd.grad(wanted, weight, by)[0], rtol=1e-12, atol=1e-12)


def test_second_derivatives() -> None:
    x, weight = inputs(6, "contiguous")
    weight = weight[:, :, :5, :5].clone().requires_grad_()

    def layer(x: Tensor, weight: Tensor) -> Tensor:
        return depthwise_conv2d(x[:1, :2], weight[:2], (1, 1), (2, 2), (1, 1))

    assert torch.autograd.gradgradcheck(layer, (x, weight))


def test_frozen_inputs_and_weights_get_no_gradient() -> None:
    x, weight = inputs(9, "channels_last")
    weight = weight[..., :5, :5].clone().requires_grad_()
    out = depthwise_conv2d(x.detach(), weight, (1, 1), (2, 2), (1, 1))
    out.sum().backward()
    assert x.grad is None
    assert weight.grad is not None


def test_an_empty_batch_gives_zeros() -> None:
    x, weight = inputs(9, "contiguous")
    weight = weight.clone().requires_grad_()
    depthwise_conv2d(x[:0], weight, (1, 1), (3, 3), (1, 1)).sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


@pytest.mark.skipif(depthwise.CAPABILITY not in ("AVX512", "AVX2"), reason="another processor")
def test_it_stands_in_where_pytorchs_is_slow() -> None:
    x, weight = inputs(9, "channels_last", torch.float32)
    wide, narrow = (weight[..., :k, :k].clone().requires_grad_() for k in (5, 3))
    assert slow_gradient(x, wide, 8)
    cases: dict[str, Any] = {
        "narrow": (x, narrow, 8),
        "fp64": (x.double(), wide.double(), 8),
        "frozen": (x, wide.detach(), 8),
        "dense": (x, wide.detach().expand(8, 8, 5, 5).clone().requires_grad_(), 1),
    }
    assert not [name for name, case in cases.items() if slow_gradient(*case)]
    with torch.no_grad():
        assert not slow_gradient(x, wide, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert not slow_gradient(x, wide, 8)
