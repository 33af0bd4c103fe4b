"""Mixtures in every family: certain choices are the subnet, every gene gets a gradient; blocks written out by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mixture_reference import cut, expectation, pad_kernel, probabilities
from nets import NAMED, TINY, archs, images, randomise, space_of
from tiny import tiny_space
from tiny_vit import tiny_vit
from torch import Tensor, nn

from supernet import Supernet
from supernet.layers.conv import conv_weight
from supernet.layers.transformer import layer_norm
from supernet.mixture import Mixture
from supernet.space import Space

TIGHT = {"rtol": 0.0, "atol": 1e-12}
# Seconds for a pass over all options; a smaller space of the same family stands for each, below.
LARGE = ("attentivenas", "autoformer_base", "autoformer_small", "ofa_mbv3_w12", "ofa_proxyless", "nb_macro_separate")
FULL = [name for name in (*NAMED, *TINY) if name not in LARGE]


def net_of(space: Space) -> Supernet:
    net = Supernet(space).double()
    randomise(net)
    return net


def small_images(space: Space, batch: int = 3) -> Tensor:
    """Low and wide where any size does, so that all rings of all kernels meet pixels, in little time."""
    side = space.resolution(space.largest())
    x = images(batch, min(side, 32)).double()
    return x.repeat(1, 1, 1, 3) * torch.linspace(0.5, 1.5, 96).double() if side > 32 else x


def leaves(mixture: Mixture) -> Mixture:
    return Mixture(mixture.space, tuple(p.requires_grad_() for p in mixture.probs), mixture.support)


@pytest.fixture(scope="module", params=[*NAMED, *TINY])
def net(request: pytest.FixtureRequest) -> Supernet:
    space = space_of(request.param)
    supernet = Supernet(space).double()
    if request.param not in ("autoformer_base", "autoformer_small"):  # seconds
        randomise(supernet)
    return supernet


def test_certain_choices_are_the_subnet(net: Supernet) -> None:
    """Bit for bit, gradients in play or not, with statistics of the batch in both modes."""
    space, x = net.space, small_images(net.space)
    like = next(net.parameters()).detach()
    tiny = sum(parameter.numel() for parameter in net.parameters()) < 1e6
    for i, arch in enumerate(archs(space, 6 if tiny else 2)):
        net.train(i % 2 == 0)
        expected = net(x, arch)
        mixture = leaves(Mixture.one_hot(space, arch, like))
        assert mixture.plan is not space.plan(arch)
        assert torch.equal(net(x, mixture), expected)


def test_running_all_options_of_a_certain_choice_changes_nothing(net: Supernet, request: pytest.FixtureRequest) -> None:
    """Probabilities of 0 and 1 on all options: other layers run, nothing of them is seen."""
    name = request.node.callspec.params["net"]
    if name not in FULL:
        pytest.skip("as a smaller space of its family")
    x, like = small_images(net.space), next(net.parameters()).detach()
    for arch in [net.space.smallest(), *archs(net.space, 1 if name in NAMED else 8)]:
        with torch.no_grad():
            expected, mixed = net(x, arch), net(x, Mixture.one_hot(net.space, arch, like, full=True))
        assert (mixed - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_every_gene_gets_a_gradient(net: Supernet, request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params["net"] not in FULL:
        pytest.skip("as a smaller space of its family")
    space, x = net.space, small_images(net.space, 2)
    logits = [p.log().requires_grad_() for p in probabilities(space)]
    net.train()
    out = net(x, Mixture.of(space, [logit.softmax(0) for logit in logits]))
    found = torch.autograd.grad(out.square().sum(), logits, allow_unused=True)
    for gene, gradient in zip(space.genes, found, strict=True):
        if len(gene.options) > 1 and gene.key != "resolution":
            assert gradient is not None, gene.name
            assert gradient.abs().min() > 0, gene.name


# Shortcuts


@pytest.mark.parametrize("rule", ["always", "residual"])
@pytest.mark.parametrize("stride", [1, 2])
def test_shortcuts_whose_kind_depends_on_the_widths(rule: str, stride: int) -> None:
    """Identity where the widths agree, else a 1x1 convolution or nothing; pooling with a stride."""
    common = {"depth": [1], "kernel": [3], "expand": [2], "act": "relu"}
    stages = [{**common, "width": [4, 8]}, {**common, "width": [4, 8, 12], "stride": stride}]
    space = tiny_space(resolution=(7,), stem={"width": [8], "stride": 1}, stages=stages, shortcut=rule)
    net, probs = net_of(space), probabilities(space, 5)
    block, x = net.net.get_submodule("stages.1.0"), images(3, 7, channels=8).double()
    spec = Mixture.of(space, probs).plan["stages.1.0"]
    around = block(x, spec) - block(x, replace(spec, shortcut=None))
    genes = {gene.name: p for gene, p in zip(space.genes, probs, strict=True)}
    widths = [(4, 8), (4, 8, 12)]

    def value(codes: tuple[int, ...]) -> Tensor:
        a, b = (options[code] for options, code in zip(widths, codes, strict=True))
        seen = F.avg_pool2d(x[:, :a], stride, padding=1) if stride > 1 else x[:, :a]
        if a == b and (stride == 1 or rule == "always"):
            out = seen
        elif rule == "always":
            out = F.conv2d(seen, block.shortcut.conv.weight[:b, :a])
        else:
            out = torch.zeros(3, b, *seen.shape[2:]).double()
        return F.pad(out, (0, 0, 0, 0, 0, 12 - b))

    p = [genes["width[1]"], genes["width[2]"]]
    used = (p[1][:, None] * (torch.arange(12) < torch.tensor(widths[1])[:, None])).sum(0)
    expected = expectation(p, [(0, 1), (0, 1, 2)], value)
    torch.testing.assert_close(around * used[:, None, None], expected, **TIGHT)
    assert (expected.abs().max() > 0.1) == (rule == "always" or stride == 1)


# Learned kernel transforms


@pytest.mark.parametrize("kept", [(0, 1, 2), (0, 1), (0, 2)])
def test_kernels_made_by_learned_maps(kept: tuple[int, ...]) -> None:
    """The sum of the kernels that the maps make, each padded; maps in play learn."""
    stage = {"width": [8], "depth": [1], "kernel": [3, 5, 7], "expand": [2, 3], "stride": 1, "act": "relu"}
    space = tiny_space(resolution=(8,), stages=[stage], kernel_transform=True)
    net, probs = net_of(space), probabilities(space, 3)
    at = [gene.key for gene in space.genes].index("kernel")
    support = [tuple(range(len(gene.options))) for gene in space.genes]
    support[at] = kept
    probs[at][[i for i in range(3) if i not in kept]] = 0.0
    layer = net.net.get_submodule("stages.0.0.depthwise.conv")
    spec = Mixture(space, tuple(probs), tuple(support)).plan["stages.0.0"].depthwise
    mixed = conv_weight(layer, spec)
    seven, maps = layer.weight, layer.transform
    five = (cut(seven, 24, 1, 5).flatten(1) @ maps["7to5"].T).view(24, 1, 5, 5)
    three = (cut(five, 24, 1, 3).flatten(1) @ maps["5to3"].T).view(24, 1, 3, 3)
    shape = (24, 1, 2 * max(kept) + 3, 2 * max(kept) + 3)
    sizes = [(p, w) for p, w in zip(probs[at], (three, five, seven), strict=True) if p > 0]
    torch.testing.assert_close(mixed, torch.stack([p * pad_kernel(w, shape) for p, w in sizes]).sum(0), **TIGHT)
    mixed.square().sum().backward()
    assert all(matrix.grad is not None and matrix.grad.abs().max() > 0 for matrix in maps.values())


# Transformers


@dataclass(frozen=True)
class Draw:
    """A transformer with one block, and probabilities of embedding width and number of heads."""

    net: Supernet
    plan: Any
    dim: Tensor
    heads: Tensor

    @staticmethod
    def of(**overrides: Any) -> Draw:
        space = tiny_vit(layer_num=(1,), relative_position=None, num_heads=(1, 2, 3), **overrides)
        probs = probabilities(space, 8)
        by_key = {gene.key: p for gene, p in zip(space.genes, probs, strict=True)}
        return Draw(net_of(space), Mixture.of(space, probs).plan, by_key["embed_dim"], by_key["num_heads"])


def tail(p: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """P(length > i) for every i."""
    return (p[:, None] * (torch.arange(lengths[-1]) < torch.tensor(lengths)[:, None])).sum(0)


@pytest.mark.parametrize("bias", ["flat", "shared", "none"])
def test_attention_written_out(bias: str) -> None:
    """Per head: q, k and v of a token as far as the embedding is in use; of a flat bias, the mean of what each
    number of heads reads there; the projection reads a head by the probability that there is one.
    """
    draw = Draw.of(qkv_bias=bias)
    layer: Any = draw.net.net.get_submodule("blocks.0.attention")
    x, width, inners, dims = images(2, 5, channels=1)[:, 0].double(), 24, (8, 16, 24), (12, 20)
    x = x.repeat(1, 1, 4)
    there = tail(draw.heads, inners)
    b = torch.zeros(3, width).double()
    if bias == "shared":
        b = layer.qkv_bias
    elif bias == "flat":
        thirds = [F.pad(layer.qkv_bias[: 3 * n].view(3, n), (0, width - n)) for n in inners]
        b = torch.einsum("h,hij->ij", draw.heads, torch.stack(thirds)) / there
    q, k, v = (F.linear(x * tail(draw.dim, dims), w, c) for w, c in zip(layer.qkv, b, strict=True))
    heads = []
    for h in range(3):
        at = slice(8 * h, 8 * h + 8)
        scores = (q[..., at] @ k[..., at].transpose(1, 2) / 8**0.5).softmax(-1)
        heads.append(scores @ v[..., at])
    expected = F.linear(torch.cat(heads, -1) * there, layer.proj.weight, layer.proj.bias)
    torch.testing.assert_close(layer(x, draw.plan["blocks.0"].attention), expected, **TIGHT)


def test_layer_norm_counts_numbers_as_far_as_they_are_used() -> None:
    draw = Draw.of()
    layer = draw.net.net.get_submodule("blocks.0.norm1")
    assert isinstance(layer, nn.LayerNorm)
    x, use = images(2, 20, channels=1)[:, 0].double() + torch.arange(20) / 5, tail(draw.dim, (12, 20))
    mean = (x * use).sum(-1, keepdim=True) / use.sum()
    variance = ((x - mean) ** 2 * use).sum(-1, keepdim=True) / use.sum()
    expected = (x - mean) / (variance + layer.eps).sqrt() * layer.weight + layer.bias
    torch.testing.assert_close(layer_norm(layer, x, draw.plan["blocks.0"]), expected, **TIGHT)
    torch.testing.assert_close(layer_norm(layer, x, Draw.of().plan["head"]), expected, **TIGHT)


def test_layer_norm_over_the_largest_width_would_not_be_the_subnets() -> None:
    """A narrow token padded with zeros, through a norm of the full width; through ours, it is the narrow norm."""
    space = tiny_vit()
    net = net_of(space)
    arch = next(arch for arch in archs(space, 20) if arch["embed_dim"][0] == 12)
    layer = net.net.get_submodule("blocks.0.norm1")
    assert isinstance(layer, nn.LayerNorm)
    spec = Mixture.one_hot(space, arch, layer.weight.detach(), full=True).plan["blocks.0"]
    assert spec.dim == 20
    x = 1 + images(2, 12, channels=1)[:, 0].double()
    padded = F.pad(x, (0, 8))
    expected = F.layer_norm(x, (12,), layer.weight[:12], layer.bias[:12], layer.eps)
    assert (layer(padded)[..., :12] - expected).abs().max() > 0.1
    torch.testing.assert_close(layer_norm(layer, padded, spec)[..., :12], expected, **TIGHT)


def test_scales_are_mixed() -> None:
    """With `scale` what heads and MLP return is multiplied by the mean of the options' factors."""
    space = tiny_vit(scale=True, layer_num=(1,))
    probs = probabilities(space, 2)
    by_key = {gene.key: p for gene, p in zip(space.genes, probs, strict=True)}
    block = Mixture.of(space, probs).plan["blocks.0"]
    ratios, inner = torch.tensor([3.0 / 1.5, 3.0 / 2.0]).double(), torch.tensor([24 / 8, 24 / 16]).double()
    torch.testing.assert_close(block.scaled, by_key["mlp_ratio"] @ ratios, **TIGHT)
    torch.testing.assert_close(block.attention.scaled, by_key["num_heads"] @ inner, **TIGHT)
    net, arch = net_of(space), archs(space, 1)[0]
    x, like = images(2, 12).double(), next(net.parameters()).detach()
    full = net(x, Mixture.one_hot(space, arch, like, full=True))
    torch.testing.assert_close(full, net(x, arch), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("overrides", [{"pre_norm": False}, {"pool": "cls"}, {"qkv_bias": "flat"}, {"abs_pos": False}])
def test_other_transformers(overrides: dict[str, Any]) -> None:
    space = tiny_vit(**overrides)
    net, x = net_of(space), images(2, 12).double()
    like = next(net.parameters()).detach()
    for arch in archs(space, 6):
        expected = net(x, arch)
        assert torch.equal(net(x, leaves(Mixture.one_hot(space, arch, like))), expected)
        full = net(x, Mixture.one_hot(space, arch, like, full=True))
        torch.testing.assert_close(full, expected, rtol=1e-12, atol=1e-12)
