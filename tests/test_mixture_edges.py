"""Mixtures at the edge: options that are run with probability 0 get the gradient of making them a little probable."""

from __future__ import annotations

import pytest
import torch
from nets import images, net_of, randomise
from torch import Tensor

from supernet.mixture import Mixture
from supernet.net import Supernet

STEP = 1e-8


def loss_of(net: Supernet, probs: list[Tensor], support: tuple[tuple[int, ...], ...], x: Tensor) -> Tensor:
    logits = net(x, Mixture(net.space, tuple(probs), support))
    return (logits * torch.arange(logits.shape[1], dtype=logits.dtype)).tanh().sum()


@pytest.mark.parametrize("name", ["toy_cell", "nb201", "darts", "nb_macro", "tiny_block"])
def test_an_option_beside_the_certain_one(name: str) -> None:
    """Two options of one gene are run, as ProxylessNAS does, all other genes are certain."""
    net = net_of(name).double()
    randomise(net)
    space = net.space
    arch = space.largest()
    like = torch.zeros((), dtype=torch.float64)
    certain = Mixture.one_hot(space, arch, like)
    x = images(3, space.resolution(arch), channels=space.description["in_channels"]).double()
    checked = 0
    for gene, options in enumerate(space.genes):
        counts = space.counts(options, space.encode(arch))
        if options.key in ("resolution", "width") or len(options.options) < 2 or not counts:
            continue
        drawn = certain.support[gene][0]
        for candidate in {0, drawn - 1} - {drawn}:
            support = list(certain.support)
            support[gene] = tuple(sorted((drawn, candidate)))
            probs = [p.clone().requires_grad_() for p in certain.probs]
            (gradient,) = torch.autograd.grad(loss_of(net, probs, tuple(support), x), [probs[gene]])
            moved = [p.clone() for p in certain.probs]
            moved[gene][candidate] = STEP
            with torch.no_grad():
                slope = (loss_of(net, moved, tuple(support), x) - loss_of(net, probs, tuple(support), x)) / STEP
            torch.testing.assert_close(gradient[candidate], slope, rtol=1e-3, atol=1e-5)
            checked += bool(gradient[candidate].abs() > 1e-4)
        if checked >= 12:
            break
    assert checked >= 3
