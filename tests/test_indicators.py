"""What the gradients of a subnet say about its choices: against slow references, and against planted gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from indicator_reference import reference
from nets import NAMED, archs, images, randomise, space_of
from tiny import tiny_space
from tiny_vit import tiny_vit
from torch import Tensor, nn

from supernet.distill import SoftCrossEntropy
from supernet.layers.conv import ConvNormAct
from supernet.net import Supernet
from supernet.observers import SlotGradients
from supernet.optim import zero_gradients
from supernet.paths.indicators import Indicator, Indicators
from supernet.samplers.base import Slot
from supernet.slicing import slice_weight, take
from supernet.space import Arch, Gene, Space, Unit
from supernet.specs import ConvSpec, Plan
from supernet.step import accumulate

KINDS: tuple[Indicator, ...] = ("total", "rms", "relative", "core", "ring")
SPACE = tiny_space()
TARGETS = torch.tensor([0, 1, 2, 3])


def measured(space: Space, kind: Indicator, arch: Arch, gradients: Mapping[str, Tensor], **weights: Any) -> Any:
    """{name of a gene: score} of the genes that could be measured."""
    indicators = Indicators(space, kind)
    indicators.weights = weights.get("weights")
    sites, values = indicators.measure(space.encode(arch), gradients)
    names = [space.genes[indicators.sites[site]].name for site in sites]
    return dict(zip(names, values.tolist(), strict=True))


# Real gradients ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net() -> Supernet:
    net = Supernet(SPACE).double().train()
    randomise(net)
    return net


def slot_gradients(net: Supernet, arch: Arch) -> dict[str, Tensor]:
    """What a slot in the middle of a step gives, as the training loop hands it on."""
    found: list[dict[str, Tensor]] = []

    def keep(slot: Slot, gradients: Mapping[str, Tensor]) -> None:
        found.append({name: gradient.clone() for name, gradient in gradients.items()})

    slots = [Slot(SPACE.largest(), "largest"), Slot(arch, "random"), Slot(SPACE.smallest(), "smallest")]
    zero_gradients(net)
    watch = SlotGradients(net.net, keep, lambda slot: slot.role == "random")
    batch = images(4, 12).double()
    accumulate(net, batch, TARGETS, slots, F.cross_entropy, SoftCrossEntropy(), observers=[watch])
    return found[0]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_subnet_alone(kind: Indicator, net: Supernet) -> None:
    batch = images(4, 12).double()
    with torch.no_grad():
        teacher = net(batch, SPACE.largest())
    for arch in [*archs(SPACE, 6), SPACE.largest(), SPACE.smallest()]:

        def loss(subnet: nn.Module, arch: Arch = arch) -> Tensor:
            return SoftCrossEntropy()(subnet(net.resize(batch, arch)), teacher, TARGETS).mean()

        expected = reference(kind, net, arch, loss)
        weights = {name: parameter.detach() for name, parameter in net.net.named_parameters()}
        actual = measured(SPACE, kind, arch, slot_gradients(net, arch), weights=weights)
        assert actual == pytest.approx(expected, rel=1e-5)
        assert len(set(actual.values())) > 3


# Planted gradients ------------------------------------------------------------------------------------------------


def ones_inside(net: nn.Module, subnet: nn.Module, value: float = 1.0) -> dict[str, Tensor]:
    """A gradient of `value` in the subnet's slices."""
    held = {name: parameter.shape for name, parameter in subnet.named_parameters()}
    modules = dict(net.named_modules())
    gradients = {}
    for name, parameter in net.named_parameters():
        gradients[name] = torch.zeros_like(parameter)
        if name in held:
            is_kernel = isinstance(modules[name.rpartition(".")[0]], nn.Conv2d) and name.endswith("weight")
            take(gradients[name], held[name], (2, 3) if is_kernel else ()).fill_(value)
    return gradients


@pytest.mark.parametrize("name", NAMED)
def test_sizes_are_known_in_every_family(name: str) -> None:
    with torch.device("meta"):
        space = space_of(name)
    state = torch.get_rng_state()
    indicators = Indicators(space, "rms")
    for arch in archs(space, 3, seed=3):
        codes, held = space.encode(arch), {}
        for unit, data in enumerate(space.units):
            held |= indicators._shapes(unit, tuple(codes[i] for i in data.reads))
        assert torch.equal(torch.get_rng_state(), state)
        with torch.device("meta"):
            subnet = space.module(space.plan(arch))
        assert held == {key: tuple(parameter.shape) for key, parameter in subnet.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["stage", "block", "learned_kernels", "transformer"])
def test_every_indicator_works_in_families_of_all_kinds(name: str, kind: Indicator) -> None:
    space = {
        "stage": tiny_space(shortcut="always"),
        "block": tiny_space(choose="block"),
        "learned_kernels": tiny_space(kernel_transform=True),
        "transformer": tiny_vit(),
    }[name]
    with torch.device("meta"):
        meta = space.module(space.widest)
    net = meta.to_empty(device="cpu")
    weights = {key: torch.full_like(parameter, 2.0) for key, parameter in net.named_parameters()}
    for arch in archs(space, 2):
        with torch.device("meta"):
            subnet = space.module(space.plan(arch))
        scores = measured(space, kind, arch, ones_inside(net, subnet), weights=weights)
        assert scores
        if kind in ("ring", "rms"):
            assert all(score == pytest.approx(1.0, abs=1e-3) for score in scores.values())
        if kind == "relative":
            assert all(score == pytest.approx(1 / 2.001, abs=1e-3) for score in scores.values())
        if kind in ("total", "core"):
            assert all(score >= 1.0 for score in scores.values())


class Blocks(nn.Module):
    """A network of convolutions, one below another."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({name.split(".")[1]: ConvNormAct(spec) for name, spec in plan.layers})


def conv(kernel: int = 1, width: int = 4, **rest: Any) -> ConvSpec:
    return ConvSpec(4, width, size=8, kernel=kernel, norm_eps=None, **rest)


def kernel_space() -> Space:
    """One layer of weights alone, with 3 x 3 or 5 x 5 kernels."""
    genes = [Gene("resolution", None, (8,)), Gene("kernel", None, (3, 5))]
    return Space("kernels", genes, [Unit("blocks.a", (1,), conv)], Blocks, {})


def depth_space() -> Space:
    """One to three layers; the first does not read the depth."""
    genes = [Gene("resolution", None, (8,)), Gene("depth", None, (1, 2, 3))]
    units = [Unit("blocks.0", (), conv)]
    for i in (1, 2):
        units.append(Unit(f"blocks.{i}", (1,), lambda depth, i=i: conv() if depth > i else None))
    return Space("depths", genes, units, Blocks, {})


def planted(space: Space, kind: Indicator, codes: tuple[int, ...], value: float = 3.0) -> dict[str, float]:
    net, arch = space.module(space.widest), space.decode(codes)
    scores: dict[str, float] = measured(space, kind, arch, ones_inside(net, space.module(space.plan(arch)), value))
    return scores


def test_equal_gradients_of_nested_choices_score_equally_but_for_the_total() -> None:
    space = kernel_space()
    for kind in ("rms", "core", "ring"):
        small, large = (planted(space, kind, (0, option))["kernel"] for option in (0, 1))
        assert small == pytest.approx(large, rel=1e-6)
    small, large = (planted(space, "total", (0, option))["kernel"] for option in (0, 1))
    assert large / small == pytest.approx((25 / 9) ** 0.5, rel=1e-6)


def test_core_and_ring_look_where_they_should() -> None:
    space = kernel_space()
    gradient = torch.zeros(4, 4, 5, 5)
    gradient[:, :, 1:4, 1:4] = 2.0
    gradients = {"blocks.a.conv.weight": gradient}
    arch = space.decode((0, 1))
    assert measured(space, "ring", arch, gradients)["kernel"] == 0.0
    assert measured(space, "core", arch, gradients)["kernel"] == pytest.approx(2 * (16 * 9) ** 0.5)
    gradients["blocks.a.conv.weight"] = 2.0 - gradient
    assert measured(space, "ring", arch, gradients)["kernel"] == pytest.approx(2.0)
    assert measured(space, "core", arch, gradients)["kernel"] == 0.0


def test_depth_is_scored_by_the_blocks_that_read_it() -> None:
    space = depth_space()
    gradients = {f"blocks.{i}.conv.weight": torch.full((4, 4, 1, 1), v) for i, v in enumerate((9.0, 2.0, 4.0))}

    def scores(kind: Indicator, depth: int) -> dict[str, float]:
        active = {n: g if int(n.split(".")[1]) < depth else 0 * g for n, g in gradients.items()}
        found: dict[str, float] = measured(space, kind, space.decode((0, depth - 1)), active)
        return found

    for kind in KINDS:
        if kind != "relative":
            assert scores(kind, 1) == {}  # nothing that reads it is there
    assert scores("rms", 2)["depth"] == pytest.approx(2.0)
    assert scores("rms", 3)["depth"] == pytest.approx(3.0)
    assert scores("core", 2)["depth"] == pytest.approx(8.0)  # of the block that all but the shallowest have
    assert scores("core", 3)["depth"] == pytest.approx(8.0)
    assert scores("ring", 2)["depth"] == pytest.approx(2.0)
    assert scores("ring", 3)["depth"] == pytest.approx(4.0)


def test_sorts_of_parameters_are_averaged_not_summed() -> None:
    genes = [Gene("resolution", None, (8,)), Gene("width", None, (2, 4))]
    units = [Unit("blocks.a", (1,), lambda width: ConvSpec(3, width, size=8, kernel=3, bias=True))]
    space = Space("sorts", genes, units, Blocks, {})
    sizes = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "norm.weight": (4,), "norm.bias": (4,)}
    values = {"conv.weight": 2.0, "conv.bias": 5.0, "norm.weight": 3.0, "norm.bias": 4.0}
    gradients = {f"blocks.a.{key}": torch.full(size, values[key]) for key, size in sizes.items()}
    norm = ((3.0**2 + 4.0**2) / 2) ** 0.5
    score = measured(space, "rms", space.largest(), gradients)["width"]
    assert score == pytest.approx((2.0 + 5.0 + norm) / 3, rel=1e-6)


@dataclass(frozen=True)
class EitherSpec:
    """Either of two layers with weights of their own, or neither."""

    first: ConvSpec | None = None
    second: ConvSpec | None = None


class Either(nn.Module):
    """What an `EitherSpec` says."""

    def __init__(self, spec: EitherSpec) -> None:
        super().__init__()
        self.first, self.second = (None if part is None else ConvNormAct(part) for part in (spec.first, spec.second))


class Operation(nn.Module):
    """A network of one `Either`."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.op = Either(plan["op"])


def test_options_with_weights_of_their_own_and_without_any() -> None:
    made = {
        "skip": EitherSpec(),
        "a3": EitherSpec(first=conv(3)),
        "a5": EitherSpec(first=conv(5)),
        "b3": EitherSpec(second=conv(3)),
        "b5": EitherSpec(second=conv(5)),
    }
    genes = [Gene("resolution", None, (8,)), Gene("op", None, tuple(made))]
    space = Space("ops", genes, [Unit("op", (1,), made.__getitem__)], Operation, {})
    for kind in ("total", "rms", "core", "ring"):
        assert planted(space, kind, (0, 0)) == {}
    in_kernel = {3: 3 * (16 * 9) ** 0.5, 5: 3 * (16 * 25) ** 0.5}
    for option, kernel in ((1, 3), (2, 5), (3, 3), (4, 5)):
        assert planted(space, "rms", (0, option))["op"] == pytest.approx(3.0)
        assert planted(space, "ring", (0, option))["op"] == pytest.approx(3.0)
        assert planted(space, "total", (0, option))["op"] == pytest.approx(in_kernel[kernel])
        assert planted(space, "core", (0, option))["op"] == pytest.approx(in_kernel[3])


def test_genes_of_skipped_blocks_are_not_measured() -> None:
    space = space_of("tiny_block")
    deepest, shallowest = space.largest(), space.smallest()
    with torch.device("meta"):
        subnets = [space.module(space.plan(arch)) for arch in (deepest, shallowest)]
    net = space.module(space.widest)
    of_deepest, of_shallowest = (
        measured(space, "rms", arch, ones_inside(net, subnet))
        for arch, subnet in zip((deepest, shallowest), subnets, strict=True)
    )
    names = {gene.name for gene in space.genes if len(gene.options) > 1}
    assert set(of_deepest) == names
    codes = space.encode(shallowest)
    counted = {g.name for g in space.genes if space.counts(g, codes) and len(g.options) > 1}
    assert set(of_shallowest) == {name for name in counted if not name.startswith("depth")} < names


def test_a_gene_that_does_not_count_is_not_measured_where_its_layer_runs() -> None:
    genes = [Gene("resolution", None, (8,)), Gene("groups", None, (1, 2)), Gene("kernel", None, (3, 5), 1, 1)]
    units = [Unit("blocks.a", (1, 2), lambda groups, kernel: conv(kernel))]
    space = Space("conditional", genes, units, Blocks, {})
    assert set(planted(space, "rms", (0, 1, 1))) == {"groups", "kernel"}
    assert set(planted(space, "rms", (0, 0, 1))) == {"groups"}


def test_learned_kernels_are_measured_in_the_size_that_the_subnet_holds() -> None:
    space = tiny_space(kernel_transform=True)
    net = Supernet(space)
    assert any("transform" in name for name, _ in net.net.named_parameters())
    arch = space.smallest()
    layer = net.net.get_submodule("stages.1.0.depthwise.conv")
    own = net.extract(arch).get_submodule("stages.1.0.depthwise.conv").weight
    assert own.shape[2] == 3
    assert slice_weight(layer, own.shape).shape == own.shape
    shapes = Indicators(space, "rms")
    (unit,) = [i for i, unit in enumerate(space.units) if unit.name == "stages.1.0"]
    codes = tuple(space.encode(arch)[i] for i in space.units[unit].reads)
    held = shapes._shapes(unit, codes)
    assert held["stages.1.0.depthwise.conv.weight"] == own.shape
    assert not any("transform" in name for name in held)


def test_a_narrowed_space_reads_the_gradients_of_the_whole_supernet(net: Supernet) -> None:
    narrow = SPACE.narrow({"depth": [1, 2], "kernel": [3]})
    arch = narrow.sample(np.random.default_rng(1))
    whole = SPACE.from_json(arch.to_json())
    gradients = slot_gradients(net, whole)
    scores, expected = (measured(space, "rms", a, gradients) for space, a in ((narrow, arch), (SPACE, whole)))
    assert 4 < len(scores) < len(expected)
    assert scores == {name: expected[name] for name in scores}


def test_an_unknown_indicator_is_refused() -> None:
    with pytest.raises(ValueError, match=r"indicator='size': choose one of total, rms, relative, core, ring"):
        Indicators(SPACE, "size")  # type: ignore[arg-type]


def test_scores_of_a_step_do_not_depend_on_what_was_measured_before() -> None:
    gradients = {n: torch.randn(p.shape) for n, p in SPACE.module(SPACE.widest).named_parameters()}
    used, (first, *others) = Indicators(SPACE, "ring"), archs(SPACE, 9)
    for arch in others:
        used.measure(SPACE.encode(arch), gradients)
    sites, scores = used.measure(SPACE.encode(first), gradients)
    fresh_sites, fresh = Indicators(SPACE, "ring").measure(SPACE.encode(first), gradients)
    assert sites == fresh_sites
    assert torch.equal(scores, fresh)
    assert np.all(scores.numpy() > 0)
