"""The moving average against the recursion written by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from supernet.ema import averaged


def trajectory(steps: int) -> list[list[torch.Tensor]]:
    rng = torch.Generator().manual_seed(0)
    shapes = [(3, 2), (3,)]
    return [[torch.randn(s, generator=rng, dtype=torch.double) for s in shapes] for _ in range(steps)]


def follow(decay: float, weights: list[list[torch.Tensor]]) -> list[list[torch.Tensor]]:
    """What the average is after each update."""
    model = nn.Linear(2, 3).double()
    ema = averaged(model, decay)
    seen = []
    for step in weights:
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), step, strict=True):
                parameter.copy_(value)
        ema.update_parameters(model)
        seen.append([p.detach().clone() for p in ema.module.parameters()])
    return seen


@pytest.mark.parametrize("decay", [0.05, 0.5, 0.999])
def test_the_average_is_the_recursion_with_a_warm_up(decay: float) -> None:
    weights = trajectory(60)
    expected = weights[0]  # the first update copies
    for n, seen in enumerate(follow(decay, weights)):
        if n:
            d = min(decay, (1 + n) / (10 + n))
            expected = [d * old + (1 - d) * new for old, new in zip(expected, weights[n], strict=True)]
        for one, other in zip(seen, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_initial_weights_are_forgotten_early() -> None:
    """With a bare decay of 0.999 they would still make up 95% after 50 steps."""
    start = [torch.full((3, 2), 100.0, dtype=torch.double), torch.zeros(3, dtype=torch.double)]
    then = [torch.zeros_like(tensor) for tensor in start]
    assert follow(0.999, [start, *[then] * 50])[-1][0].max() < 0.01


def test_constant_weights_stay_what_they_are() -> None:
    weights = trajectory(1) * 20
    assert torch.equal(follow(0.9, weights)[-1][0], weights[0][0])


def test_the_average_neither_shares_nor_moves_the_model() -> None:
    model = nn.Linear(2, 3)
    ema = averaged(model, 0.9)
    before = model.weight.clone()
    ema.update_parameters(model)
    ema.module.weight.data.add_(1.0)
    assert torch.equal(model.weight, before)
