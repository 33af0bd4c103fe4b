"""Partial channels (PC-DARTS): a mixture whose operations see the leading channels of their input only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import images, randomise
from tiny_cells import OPS, bench, toy
from tiny_gradient import FRESH, search_config
from torch import Tensor, nn

import supernet
from search.constraint import Budget
from search.gradient.learner import Learner
from search.gradient.problem import Step
from search.gradient.search import GradientSearch
from search.job import open_job
from supernet import Supernet
from supernet.errors import UserError
from supernet.layers.cell import Edge
from supernet.layers.operations import FactorizedReduce
from supernet.layers.partial import beside, thinned
from supernet.log import RunLog
from supernet.mixture import Mixture
from supernet.space import Space
from supernet.specs import ConvSpec, FactorizedReduceSpec, IdentitySpec, NormedPoolSpec, PoolSpec, SeparableSpec


def darts(channels: int = 8, side: int = 9) -> Space:
    """Three cells, of which the last two halve their input; its sides are odd."""
    return supernet.build("darts", num_classes=10, resolution=[side], channels=channels, cells=3).space


def toy_cell(width: int = 8) -> Space:
    cells = [{"kind": "reduce", "width": width}, {"kind": "normal", "width": width}]
    return toy(in_channels=1, resolution=[13], cells=[*cells, {"kind": "reduce", "width": 2 * width}], ops=OPS)


SPACES: dict[str, Callable[[int], Space]] = {"toy": toy_cell, "darts": darts}


def random_probs(space: Space, seed: int = 0) -> list[Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return [torch.randn(len(gene.options), generator=noise).softmax(0).requires_grad_() for gene in space.genes]


def mixture_of(space: Space, part: int) -> Mixture:
    return replace(Mixture.of(space, random_probs(space)), partial=part)


def random_net(space: Space) -> Supernet:
    net = Supernet(space)
    randomise(net)
    return net


def edges_of(net: nn.Module) -> Iterator[tuple[str, Edge]]:
    return ((name, module) for name, module in net.named_modules() if isinstance(module, Edge))


# The parts ------------------------------------------------------------------------------------------------------


def test_a_thinned_spec_has_a_part_of_the_channels() -> None:
    deep = ConvSpec(16, 16, 5, kernel=3, stride=2, depthwise=True, size_in=9, dilation=2, affine=False)
    flat = ConvSpec(16, 32, 5)
    assert thinned(deep, 4) == replace(deep, in_channels=4, out_channels=4)
    assert thinned(deep, 4).groups == 4
    assert thinned(SeparableSpec(deep, flat, step=2), 4) == SeparableSpec(
        replace(deep, in_channels=4, out_channels=4), replace(flat, in_channels=4, out_channels=8), step=2
    )
    pool = PoolSpec("avg", 16, 9, 5, 2)
    assert thinned(pool, 2) == PoolSpec("avg", 8, 9, 5, 2)
    assert thinned(NormedPoolSpec(pool, 1e-3), 2) == NormedPoolSpec(PoolSpec("avg", 8, 9, 5, 2), 1e-3)
    assert thinned(IdentitySpec(), 4) == IdentitySpec()
    half = ConvSpec(16, 8, 5, stride=2, norm_eps=None)
    reduce = thinned(FactorizedReduceSpec(half, half, 1e-5, False), 4)
    assert (reduce.even.in_channels, reduce.even.out_channels, reduce.out_channels) == (4, 2, 4)


def test_the_others_go_around_and_channels_are_shuffled() -> None:
    """Channel i of part g comes to place i * parts + g (ShuffleNet)."""
    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    out = torch.tensor([100.0, 101.0, 102.0]).reshape(1, 3, 1, 1)
    assert beside(x, out, 2).flatten().tolist() == [100, 3, 101, 4, 102, 5]
    assert beside(x, out[:, :2], 3).flatten().tolist() == [100, 2, 4, 101, 3, 5]
    x = images(2, 3, channels=8)
    mixed = beside(x, -x[:, :2], 4)
    assert torch.equal(mixed, torch.cat([-x[:, :2], x[:, 2:]], 1)[:, [0, 2, 4, 6, 1, 3, 5, 7]])


@pytest.mark.parametrize("side", [4, 5, 7])
def test_the_others_are_pooled_where_the_side_is_halved(side: int) -> None:
    half = -(-side // 2)
    x, out = images(2, side, channels=4), torch.zeros(2, 2, half, half)
    mixed = beside(x, out, 2)
    assert mixed.shape == (2, 4, half, half)
    assert not mixed[:, ::2].any()
    for channel in (2, 3):
        for i in range(half):
            for j in range(half):
                window = x[:, channel, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]  # cut at the border
                assert torch.equal(mixed[:, 2 * (channel - 2) + 1, i, j], window.amax((1, 2)))


# Edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [2, 4])
@pytest.mark.parametrize("name", SPACES)
def test_an_edge_is_that_of_a_thin_network_beside_the_other_channels(name: str, part: int) -> None:
    """The thin one has 1 / part of the channels and the leading slices of the weights."""
    wide, thin = (random_net(SPACES[name](width)) for width in (8 * part, 8))
    plan, thin_plan = mixture_of(wide.space, part).plan, mixture_of(thin.space, 1).plan
    edges = dict(edges_of(thin))
    kinds: set[type] = set()
    for place, edge in edges_of(wide):
        twin = edges[place]
        with torch.no_grad():
            for own, source in zip(twin.parameters(), edge.parameters(), strict=True):
                own.copy_(source[tuple(slice(size) for size in own.shape)])
        kinds |= {type(operation) for operation in edge.values()}
        sizes = [norm.num_features for norm in twin.modules() if isinstance(norm, nn.BatchNorm2d)]
        x = images(3, 7, channels=part * max(sizes))
        seen, others = x[:, : max(sizes)], x[:, max(sizes) :]
        out = twin(seen, thin_plan)
        assert out is not None
        if out.shape[-1] != 7:
            assert out.shape[-1] == 4
            others = F.max_pool2d(others, 2, ceil_mode=True)
        joined = torch.cat([out, others], 1)
        order = [group * max(sizes) + i for i in range(max(sizes)) for group in range(part)]
        found = edge(x, plan)
        assert found is not None
        assert torch.allclose(found, joined[:, order], atol=1e-5), place
    assert len(kinds) >= 3
    assert (FactorizedReduce in kinds) == (name == "darts")


def beyond(weight: Tensor, part: int) -> Tensor:
    """Which entries of a weight [out, in, ...] are outside the leading 1 / part of the channels."""
    outside = torch.ones(weight.shape, dtype=torch.bool)
    inner = weight.shape[1] if weight.shape[1] == 1 else weight.shape[1] // part  # 1: depthwise
    outside[: weight.shape[0] // part, :inner] = False
    return outside


@pytest.mark.parametrize("part", [2, 4])
@pytest.mark.parametrize("name", SPACES)
def test_only_leading_channels_of_operations_learn(name: str, part: int) -> None:
    net = random_net(SPACES[name](16))
    side = net.space.resolution(net.space.largest())
    x = images(4, side, channels=1 if name == "toy" else 3)
    mixture = mixture_of(net.space, part)
    F.cross_entropy(net(x, mixture), torch.arange(4)).backward()
    operations = {id(weight) for _, edge in edges_of(net) for weight in edge.parameters()}
    assert operations
    for place, weight in net.named_parameters():
        assert weight.grad is not None, place
        if id(weight) in operations:
            outside = beyond(weight, part)
            assert outside.any(), place
            assert not weight.grad[outside].any(), place
            assert weight.grad[~outside].any(), place
        elif weight.ndim == 4:
            assert weight.grad.flatten(1).any(1).all(), place  # what stands around cells learns as a whole
    for gene, p in zip(net.space.genes, mixture.probs, strict=True):
        assert len(p) == 1 or (p.grad is not None and p.grad.any()), gene.name


# Networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
def test_one_part_is_no_partial_channels(name: str) -> None:
    net = random_net(SPACES[name](8))
    space = net.space
    side = space.resolution(space.largest())
    x = images(4, side, channels=1 if name == "toy" else 3)
    mixtures = [Mixture.of(space, random_probs(space)), mixture_of(space, 1), mixture_of(space, 2)]
    outputs = [net(x, mixture) for mixture in mixtures]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-3)
    gradients = [torch.autograd.grad(out.square().sum(), [*net.parameters()], retain_graph=True) for out in outputs[:2]]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    certain = Mixture.one_hot(space, space.largest(), like=x)
    assert torch.equal(net(x, certain), net(x, space.largest()))
    # Without its other channels a subnet is not itself: a certain choice is no plain subnet then.
    part = replace(certain, partial=2)
    assert part.plan.partial == 2
    assert not torch.allclose(net(x, part), net(x, certain), atol=1e-3)


@pytest.mark.parametrize(("name", "channels", "part"), [("toy_cell", 1, 2), ("toy_cell", 1, 4), ("darts", 3, 2)])
def test_named_spaces_run(name: str, channels: int, part: int) -> None:
    sizes: dict[str, dict[str, Any]] = {"toy_cell": {"resolution": [12]}, "darts": {"resolution": [8], "channels": 8}}
    small = sizes[name]
    net = supernet.build(name, num_classes=10, in_channels=channels, **small)
    side = small["resolution"][0]
    logits = net(images(3, side, channels=channels), mixture_of(net.space, part))
    assert logits.shape == (3, 10)
    assert logits.isfinite().all()


# Settings -------------------------------------------------------------------------------------------------------


def settings_of(folder: Path, **changes: Any) -> GradientSearch:
    described = search_config(folder, "darts", FRESH)["algorithm"]
    return GradientSearch.of({**described, **changes}, Budget(toy(), {}, {}))


def test_widths_of_cells_must_be_divisible(tmp_path: Path) -> None:
    """By twice the number of parts: a factorised reduction makes each half of its channels by itself."""
    named = supernet.build("toy_cell", num_classes=10, in_channels=1, resolution=[12])  # 32 and 64 channels
    settings = settings_of(tmp_path)
    for net, good, bad in (
        (named, (1, 2, 4, 8, 16), (3, 5, 32, 64)),
        (Supernet(darts(8)), (1, 2, 4), (3, 8, 16)),
        (Supernet(bench()), (1, 2), (4,)),
        (Supernet(toy()), (1, 2), (4,)),  # 8 and 12 channels
    ):
        for part in good:
            replace(settings, partial_channels=part).check_channels(net)
        for part in bad:
            with pytest.raises(UserError, match=f"algorithm.partial_channels={part}: .* cells of .* channels") as said:
                replace(settings, partial_channels=part).check_channels(net)
            assert len(str(said.value).splitlines()) == 1
    plain = supernet.build("conv_macro", num_classes=10)
    settings.check_channels(plain)
    with pytest.raises(UserError, match="partial_channels=2: this space has no cells"):
        replace(settings, partial_channels=2).check_channels(plain)


@pytest.mark.parametrize("part", [0, -2])
def test_a_number_of_parts_below_one_is_refused(part: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"partial_channels={part}"):
        settings_of(tmp_path, partial_channels=part)


def test_candidates_cannot_be_scored_with_partial_channels(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"candidates=3 with partial_channels=4: .*set candidates=1") as said:
        settings_of(tmp_path, partial_channels=4, candidates=3)
    assert len(str(said.value).splitlines()) == 1
    assert settings_of(tmp_path, partial_channels=4, candidates=1).partial_channels == 4
    assert settings_of(tmp_path, partial_channels=1, candidates=3).candidates == 3


def test_steps_and_scores_have_the_partial_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("space=toy_cell", "data.size=12", "space.resolution=[12]", "algorithm.batch_size=8")
    job = open_job(search_config(tmp_path, "gdas", *words, "algorithm.partial_channels=4"))
    settings = GradientSearch.of(job.config["algorithm"], job.budget)
    log = RunLog(tmp_path, quiet=True)
    learner = Learner(settings, job.run.net, job.images, job.budget, 8, 0, True, tmp_path, log, {})
    seen: list[int] = []
    forward = learner.net.forward

    def watched(images: Any, mixture: Any, **named: Any) -> Tensor:
        seen.append(mixture.plan.partial)
        out: Tensor = forward(images, mixture, **named)
        assert out.isfinite().all()
        return out

    monkeypatch.setattr(learner.net, "forward", watched)
    step = Step(learner, 0, *next(learner.halves.epoch(0)), 0.0)
    step.train_loss(for_weights=True)
    step.val_loss()
    probs = learner.probabilities()
    learner.evaluate(probs, Mixture.of(learner.space, probs).support, 8)
    assert seen == [4, 4, 4]
