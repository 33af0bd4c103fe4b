"""Mixtures as values: what they refuse, what they leave alone, certain choices, depth, operations, memory."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mixture_reference import cut, pad_kernel, probabilities, simplex
from nets import archs, images, randomise
from tiny import tiny_space
from tiny_cells import bench, toy
from tiny_vit import tiny_vit
from torch import Tensor, nn

import supernet
from supernet import Supernet
from supernet.layers.conv import batch_norm
from supernet.mixture import Mixture
from supernet.models import conv_macro, macro, resnet
from supernet.space import Arch, Space

TIGHT = {"rtol": 0.0, "atol": 1e-12}
MACRO: dict[str, Any] = {
    "name": "small",
    "resolution": (8,),
    "operations": ("identity", "k3_e3", "k5_e6"),
    "stem": 4,
    "stages": [{"width": 8, "blocks": 2}],
    "head": 16,
    "num_classes": 5,
}


def net_of(space: Space, seed: int = 0) -> Supernet:
    net = Supernet(space).double()
    randomise(net, seed)
    return net


def inputs(net: Supernet, batch: int = 3) -> Tensor:
    return images(batch, net.space.genes[0].options[-1]).double()


def like(net: Supernet) -> Tensor:
    return next(net.parameters())


def varied(net: Supernet, arch: Arch, choices: dict[str, Tensor]) -> Mixture:
    """`arch` with certainty, but for the genes of these names."""
    plain, space = Mixture.one_hot(net.space, arch, like(net)), net.space
    probs, support = list(plain.probs), list(plain.support)
    for i, gene in enumerate(space.genes):
        if gene.name in choices:
            probs[i], support[i] = choices[gene.name], tuple(range(len(gene.options)))
    return Mixture(space, tuple(probs), tuple(support))


def chosen(space: Space, arch: Arch, choices: dict[str, int]) -> Arch:
    """`arch` with other options, by position."""
    codes = [choices.get(gene.name, code) for gene, code in zip(space.genes, space.encode(arch), strict=True)]
    return space.decode(codes)


def seen_by(net: Supernet, module: nn.Module, x: Tensor, arch: Arch | Mixture) -> Tensor:
    """What enters a module."""
    seen: list[Tensor] = []
    with module.register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        net(x, arch)
    return seen[0]


# What it refuses


def test_mistakes_are_named() -> None:
    space = tiny_space()
    probs = tuple(probabilities(space))
    support = tuple(tuple(range(len(gene.options))) for gene in space.genes)
    one = ((0,), *support[1:])
    with pytest.raises(ValueError, match="has 11 genes, got 10"):
        Mixture(space, probs[1:], one[1:])
    with pytest.raises(ValueError, match=r"width\[1\]: expected 2 probabilities, got shape \[3\]"):
        Mixture(space, (*probs[:2], torch.ones(3), *probs[3:]), one)
    for wrong in ((), (1, 0), (0, 0), (0, 2), (-1, 0)):
        with pytest.raises(ValueError, match=r"width\[1\]: .* ascending positions"):
            Mixture(space, probs, (*one[:2], wrong, *one[3:]))
    with pytest.raises(ValueError, match="images of one size"):
        Mixture(space, probs, support)
    assert Mixture(space, probs, one).resolution == 8
    assert Mixture.of(space, probs).resolution == 12
    assert Mixture.of(space, probs, 0).resolution == 8


def test_heads_that_cut_the_same_numbers_differently_cannot_be_mixed() -> None:
    space = tiny_vit(qkv="fixed", num_heads=(1, 2), relative_position=None)
    net = net_of(space)
    with pytest.raises(ValueError, match=r"num_heads.*qkv=fixed"):
        net(inputs(net), Mixture.of(space, probabilities(space)))
    arch = archs(space, 1)[0]
    mixture = Mixture.one_hot(space, arch, like(net).detach().clone().requires_grad_())
    assert torch.equal(net(inputs(net), mixture), net(inputs(net), arch))


# Certain choices


@pytest.mark.parametrize("make", [tiny_space, tiny_vit, toy, bench], ids=["mbconv", "vit", "cells", "nb201"])
def test_certain_choices_that_nothing_learns_from_are_the_subnet(make: Any) -> None:
    space = make()
    for arch in archs(space, 3):
        assert Mixture.one_hot(space, arch, torch.zeros(())).plan is space.plan(arch)


def test_genes_that_do_not_count_change_nothing() -> None:
    """Kernels past the depth can have any probabilities."""
    space = tiny_space(choose="block")
    net = net_of(space)
    arch = next(arch for arch in archs(space, 50) if arch["depth"] == (1, 1))
    mixture = varied(net, arch, {"kernel[3]": simplex((2,))[0], "expand[4]": simplex((2,))[0]})
    assert torch.equal(net(inputs(net), mixture), net(inputs(net), arch))


@pytest.mark.parametrize("make", [tiny_space, tiny_vit, bench], ids=["mbconv", "vit", "nb201"])
def test_a_mixture_leaves_the_network_alone(make: Any) -> None:
    space = make()
    net = net_of(space)
    before, x, arch = deepcopy(net.state_dict()), inputs(net), archs(space, 1)[0]
    expected = net(x, arch)
    probs = [p.requires_grad_() for p in probabilities(space)]
    first = net(x, Mixture.of(space, probs))
    first.sum().backward()
    assert torch.equal(net(x, Mixture.of(space, probs)), first)
    assert torch.equal(net(x, arch), expected)
    after = net.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("make", [tiny_space, tiny_vit, bench], ids=["mbconv", "vit", "nb201"])
def test_options_can_be_removed(make: Any) -> None:
    """Without scaling the others up (DARTS-PT), down to nothing; finite, and so is what flows back."""
    space = make()
    net = net_of(space)
    x = inputs(net)
    for i, gene in enumerate(space.genes):
        if len(gene.options) == 1 or gene.key == "resolution":
            continue
        for removed in (range(1), range(len(gene.options))):
            probs = [p.requires_grad_() for p in probabilities(space)]
            with torch.no_grad():
                probs[i][list(removed)] = 0.0
            out = net(x, Mixture.of(space, probs))
            out.sum().backward()
            assert out.isfinite().all(), gene.name
            assert all(p.grad is None or p.grad.isfinite().all() for p in probs), gene.name


# Depth


@pytest.mark.parametrize("choose", ["stage", "block"])
@pytest.mark.parametrize("train", [True, False])
def test_depth_mixes_what_comes_out_of_each_depth(choose: str, train: bool) -> None:
    space = tiny_space(choose=choose)
    net = net_of(space).train(train)
    x, stages = inputs(net), net.net.stages
    for name, after, options in (("depth[0]", stages[1][0], 2), ("depth[1]", net.net.head, 3)):
        (p,) = simplex((options,))
        deepest = chosen(space, archs(space, 1)[0], {"depth[0]": 1, "depth[1]": 2})
        mixed = seen_by(net, after, x, varied(net, deepest, {name: p}))
        outs = [seen_by(net, after, x, chosen(space, deepest, {name: i})) for i in range(options)]
        assert (outs[0] - outs[1]).abs().max() > 0.1
        torch.testing.assert_close(mixed, torch.einsum("d,d...->...", p, torch.stack(outs)), **TIGHT)


def test_depth_of_a_transformer() -> None:
    space = tiny_vit(layer_num=(1, 2, 4))
    net = net_of(space)
    (p,), deepest = simplex((3,)), chosen(space, archs(space, 1)[0], {"layer_num": 2})
    x, head = inputs(net), net.net.head
    assert isinstance(head, nn.Module)
    mixed = seen_by(net, head, x, varied(net, deepest, {"layer_num": p}))
    outs = torch.stack([seen_by(net, head, x, chosen(space, deepest, {"layer_num": i})) for i in range(3)])
    torch.testing.assert_close(mixed, torch.einsum("d,d...->...", p, outs), **TIGHT)


def test_depth_of_a_stem() -> None:
    """Once-for-All's ResNet: a residual convolution that can be left out."""
    stage = {"width": 16, "blocks": 1, "depth": [0, 1], "expand": [0.5, 1.0], "stride": 1}
    stem = {"width": 16, "middle": 8, "depth": [0, 1]}
    space = resnet.space("small", (16,), stem, [stage], (1.0, 1.5), num_classes=4)
    net = net_of(space)
    x, (p,), arch = inputs(net), simplex((2,)), archs(space, 1)[0]
    after = net.net.get_submodule("stem.2")
    mixed = seen_by(net, after, x, varied(net, arch, {"depth[0]": p}))
    outs = [seen_by(net, after, x, chosen(space, arch, {"depth[0]": i})) for i in range(2)]
    assert (outs[0] - outs[1]).abs().max() > 0.1
    torch.testing.assert_close(mixed, p[0] * outs[0] + p[1] * outs[1], **TIGHT)


# Operations


def each(
    net: Supernet, module: nn.Module, x: Tensor, mixture: Mixture, names: Sequence[str]
) -> tuple[Tensor | None, list[tuple[Tensor, Tensor | None]]]:
    """What a module gives in a mixture; and with what probability what in each combination of some genes."""
    genes = [i for name in names for i, gene in enumerate(net.space.genes) if gene.name == name]
    probs, support = [mixture.probs[i] for i in genes], [mixture.support[i] for i in genes]
    found = []
    for codes in np.ndindex(*(len(options) for options in support)):
        whole = [options[0] for options in mixture.support]
        for i, code in zip(genes, codes, strict=True):
            whole[i] = code
        p = torch.stack([vector[code] for vector, code in zip(probs, codes, strict=True)]).prod()
        found.append((p, module(x, net.space.plan(net.space.decode(whole)))))
    return module(x, mixture.plan), found


def same_mixture(mixed: Tensor | None, found: list[tuple[Tensor, Tensor | None]]) -> None:
    outs = [p * out for p, out in found if out is not None]
    assert len({tuple(out.shape) for out in outs}) == 1
    torch.testing.assert_close(mixed, torch.stack(outs).sum(0), **TIGHT)


@pytest.mark.parametrize("edge", range(6))
def test_operations_of_nb201_with_weights_of_their_own(edge: int) -> None:
    space = bench(entangled=False, affine=True)
    net = net_of(space)
    module = net.net.stages[1][0].edges[edge]
    x = images(3, 5, channels=8).double()
    same_mixture(*each(net, module, x, Mixture.of(space, probabilities(space)), [f"edges[{edge}]"]))


@pytest.mark.parametrize("edge", range(3))
def test_operations_of_the_toy_cell_with_weights_of_their_own(edge: int) -> None:
    space = toy(entangled=False, affine=True)
    net = net_of(space)
    module = net.net.cells[0].edges[edge]
    x = images(3, 9, channels=8).double()
    same_mixture(*each(net, module, x, Mixture.of(space, probabilities(space)), [f"reduce[{edge}]"]))


@pytest.mark.parametrize("edge", [0, 4, 13])
def test_operations_of_darts_with_weights_of_their_own(edge: int) -> None:
    """An edge runs an operation only in the pairs of inputs that it belongs to."""
    space = supernet.build("darts", num_classes=5, channels=4, cells=3, resolution=[8], entangled=False).space
    net = net_of(space)
    module = net.net.cells[0].edges[edge]
    node = {0: 0, 4: 1, 13: 3}[edge]
    reads = [
        space.genes[i].name
        for unit in space.units
        if unit.name.startswith(f"cells.0.edges.{edge}.")
        for i in unit.reads
    ]
    names = [name for name in dict.fromkeys(reads) if name != "resolution"]
    assert len(names) >= (2 if node else 1)
    x = images(3, 8, channels=4).double()
    same_mixture(*each(net, module, x, Mixture.of(space, probabilities(space)), names))


def test_kernels_of_one_operation_are_mixed_in_weights() -> None:
    """1x1 and 3x3 share a kernel: mixed as far as the edge is a convolution at all."""
    space = bench(affine=True)
    net = net_of(space)
    p = dict(zip(space.genes[1].options, simplex((5,), 3)[0], strict=True))
    probs = [torch.stack(list(p.values())) if gene.key == "edges" else torch.ones(1) for gene in space.genes]
    edge, x = net.net.stages[0][0].edges[0], images(3, 6, channels=4).double()
    body = edge["conv"].body
    either = p["nor_conv_1x1"] + p["nor_conv_3x3"]
    weight = body.conv.weight
    inner = pad_kernel(cut(weight, 4, 4, 1), weight.shape)
    kernel = (p["nor_conv_1x1"] * inner + p["nor_conv_3x3"] * weight) / either
    conv = batch_norm(body.norm, F.conv2d(F.relu(x), kernel, padding=1), None)
    pooled = F.avg_pool2d(x, 3, 1, padding=1, count_include_pad=False)
    expected = p["skip_connect"] * x + p["avg_pool_3x3"] * pooled + either * conv
    torch.testing.assert_close(edge(x, Mixture.of(space, probs).plan), expected, **TIGHT)


@pytest.mark.parametrize("kind", ["sep", "dil"])
def test_separable_kernels_are_mixed_in_weights(kind: str) -> None:
    """The same network with the mixed kernels in place of the largest gives the same."""
    space = supernet.build("toy_cell", num_classes=5, resolution=[12]).space
    net = net_of(space)
    ops = list(space.genes[1].options)
    (p,) = simplex((len(ops),), 2)
    small, large = (ops.index(f"{kind}_conv_{k}x{k}") for k in (3, 5))
    edge = net.net.cells[1].edges[1]
    copy = deepcopy(edge)
    for module in copy.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (5, 5):
            inner = pad_kernel(cut(module.weight, module.weight.shape[0], 1, 3), module.weight.shape)
            module.weight.data = (p[small] * inner + p[large] * module.weight).data / (p[small] + p[large])
    name = "normal[1]"
    at = next(i for i, gene in enumerate(space.genes) if gene.name == name)
    base = Mixture.one_hot(space, space.largest(), like(net))
    probs, support = list(base.probs), list(base.support)
    probs[at], support[at] = p, tuple(sorted((small, large)))
    plan = Mixture(space, tuple(probs), tuple(support)).plan
    x = images(3, 6, channels=next(edge[kind].parameters()).shape[0]).double()
    hard = space.plan(chosen(space, space.largest(), {name: large}))
    torch.testing.assert_close(edge(x, plan), (p[small] + p[large]) * copy(x, hard), **TIGHT)


def test_a_layer_that_can_be_skipped() -> None:
    """NAS-Bench-Macro with weights of their own: the identity counts as an operation."""
    space = macro.space(**MACRO, entangled=False)
    net = net_of(space)
    layers = net.net.blocks
    for i, channels in ((0, 4), (1, 8)):  # a convolution stands for the identity; nothing does
        x = images(3, 8, channels=channels).double()
        same_mixture(*each(net, layers[str(i)], x, Mixture.of(space, probabilities(space)), [f"blocks[{i}]"]))


def test_a_skipped_layer_beside_blocks_that_share_weights() -> None:
    """The identity by its probability; the block, mixed given that there is one, by the rest."""
    space = macro.space(**MACRO)
    net = net_of(space)
    layer, x = net.net.blocks["1"], images(3, 8, channels=8).double()
    (p,) = simplex((3,))
    base = Mixture.one_hot(space, space.largest(), like(net))
    mixture = varied(net, space.largest(), {"blocks[1]": p})
    given = p.clone()
    given[0] = 0.0
    block = Mixture(space, (*base.probs[:-1], given / given.sum()), (*base.support[:-1], (1, 2)))
    expected = p[0] * x + (1 - p[0]) * layer(x, block.plan)
    torch.testing.assert_close(layer(x, mixture.plan), expected, **TIGHT)


# Memory


@pytest.mark.parametrize("family", ["mbconv", "conv_macro"])
def test_memory_does_not_grow_with_the_number_of_widths_and_kernels(family: str) -> None:
    """Bytes that a pass keeps for the backward pass, with 2, 3 and 5 options of the same largest size."""

    def space(widths: int) -> Space:
        width, kernel = list(range(40 - 4 * (widths - 1), 41, 4)), [9 - 2 * i for i in range(widths)][::-1]
        if family == "conv_macro":
            rows = (tuple(width),) * 4
            return conv_macro.space("m", (16,), rows, tuple(kernel), 8, (8,), num_classes=4)
        stage = {"width": width, "depth": [1], "kernel": kernel, "expand": [2], "act": "relu"}
        stem, head = {"width": width, "stride": 1}, {"width": [16]}
        return tiny_space(resolution=(16,), stem=stem, stages=[stage, stage], head=head)

    kept = [_kept_bytes(space(n)) for n in (2, 3, 5)]
    assert max(kept) <= 1.01 * min(kept)


def _kept_bytes(space: Space) -> int:
    net = Supernet(space)
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)
        return tensor

    held: list[Tensor] = []
    probs = [p.float().requires_grad_() for p in probabilities(space)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net(images(16, 16), Mixture.of(space, probs))
    return sum(storages.values())
