"""Slimmable spaces, whose one gene is a width multiplier: against torchvision's networks and closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import mobilenet_v2, resnet50
from torchvision.models._utils import _make_divisible as divisible

import supernet
from supernet.calibrate import track_statistics
from supernet.models import resnet
from supernet.space import Arch


@pytest.fixture(scope="module")
def mobile() -> supernet.Supernet:
    return supernet.build("mobilenetv2_slimmable")


@pytest.fixture(scope="module")
def residual() -> supernet.Supernet:
    return supernet.build("resnet_slimmable")


def at(net: supernet.Supernet, factor: float) -> Arch:
    return next(arch for arch in every(net) if arch["width_mult"] == factor)


def every(net: supernet.Supernet) -> list[Arch]:
    """All subnets; at each there is one number to choose."""
    return [net.space.from_json({"width_mult": m}) for gene in net.space.genes[1:] for m in gene.options]


def counted(model: nn.Module, side: int) -> tuple[int, int]:
    """MACs, as torch counts them, and parameters."""
    meta = model.to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        meta(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops() // 2, sum(p.numel() for p in meta.parameters())


def randomised(model: nn.Module) -> nn.Module:
    """Norms with nothing special about them; other weights as torchvision draws them. fp64, eval mode."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.copy_(1 + 0.3 * torch.rand(tensor.shape, generator=generator))
    return model.double().eval()


def test_one_gene(mobile: supernet.Supernet, residual: supernet.Supernet) -> None:
    for net, low in ((mobile, 0.35), (residual, 0.25)):
        chosen = [gene for gene in net.space.genes if len(gene.options) > 1]
        assert [gene.name for gene in chosen] == ["width_mult"]
        options = [round(low + 0.05 * i, 2) for i in range(round((1 - low) / 0.05) + 1)]
        assert list(chosen[0].options) == options
        assert net.space.size() == len(options)
        assert list(net.space.largest().to_json()) == ["resolution", *(g.key for g in net.space.genes[1:])]


@pytest.mark.parametrize("factor", [0.35, 0.5, 0.75, 1.0])
def test_mobilenet_is_torchvisions(mobile: supernet.Supernet, factor: float) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reference = randomised(mobilenet_v2(width_mult=factor))
    arch = at(mobile, factor)
    subnet = mobile.extract(arch).double().eval()
    track_statistics(subnet)
    state = subnet.state_dict()
    in_order = zip(state, reference.state_dict().values(), strict=True)
    subnet.load_state_dict(dict(in_order))
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        expected = reference(x)
        torch.testing.assert_close(subnet(x), expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
    assert supernet.cost(mobile.space.plan(arch)) == counted(reference, 224)


def torchvision_name(key: str) -> str:
    """The name that torchvision's ResNet gives to a tensor of ours."""
    part, *rest, leaf = key.split(".")
    if part == "head":
        return f"fc.{leaf}"
    kind = rest[-1]
    if part == "stem":
        return f"{'conv1' if kind == 'conv' else 'bn1'}.{leaf}"
    stage, block, layer, _ = rest
    if layer == "shortcut":
        name = f"downsample.{0 if kind == 'conv' else 1}"
    else:
        name = layer if kind == "conv" else layer.replace("conv", "bn")
    return f"layer{int(stage) + 1}.{block}.{name}.{leaf}"


def test_the_largest_resnet_is_torchvisions(residual: supernet.Supernet) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reference = randomised(resnet50())
    net = supernet.Supernet(residual.space).double()
    track_statistics(net.net)
    state: dict[str, Tensor] = reference.state_dict()
    net.net.load_state_dict({key: state[torchvision_name(key)] for key in net.net.state_dict()})
    x = torch.randn(2, 3, 100, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        for training in (False, True):
            actual, expected = net.train(training)(x), reference.train(training)(x)
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11 * float(expected.abs().max()))
    assert supernet.cost(net.space.plan(net.space.largest())) == counted(reference, 224)
    assert supernet.cost(net.space.plan(net.space.largest())) == (4_089_184_256, 25_557_032)


@pytest.mark.parametrize("factor", [0.25, 0.35, 0.5, 0.7, 0.75, 0.95])
def test_narrower_resnets_have_the_closed_forms(residual: supernet.Supernet, factor: float) -> None:
    stem = divisible(64 * factor, 8)
    params, macs = 3 * stem * 49 + 2 * stem, 3 * stem * 49 * 112**2
    width_in, side_in = stem, 56
    for base, blocks, side in ((64, 3, 56), (128, 4, 28), (256, 6, 14), (512, 3, 7)):
        inner, width = divisible(base * factor, 8), divisible(4 * base * factor, 8)
        for block in range(blocks):
            first, second, third = width_in * inner, 9 * inner**2, inner * width
            around = width_in * width if block == 0 else 0
            params += first + second + third + around + 2 * (2 * inner + width + (width if block == 0 else 0))
            macs += first * side_in**2 + (second + third + around) * side**2
            width_in, side_in = width, side
    params, macs = params + 1000 * (width_in + 1), macs + 1000 * width_in
    arch = at(residual, factor)
    assert supernet.cost(residual.space.plan(arch)) == (macs, params)
    assert counted(residual.extract(arch), 224) == (macs, params)


def test_narrower_resnets_are_slices(residual: supernet.Supernet) -> None:
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    arch = at(residual, 0.3)
    with torch.no_grad():
        assert torch.equal(residual.train()(x, arch), residual.extract(arch)(x))


def test_drop_path_acts_on_identity_shortcuts_in_training_only(residual: supernet.Supernet) -> None:
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    arch = at(residual, 0.25)
    rates = [spec.drop_path for name, spec in residual.space.plan(arch).layers if name.startswith("stages")]
    assert rates == [i / 16 for i in range(16)]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        plain, dropped = residual.train()(x, arch), residual(x, arch, drop_path=0.5)
        assert not torch.equal(plain, dropped)
        assert torch.equal(residual.eval()(x, arch, drop_path=0.5), residual(x, arch))


STAGE = {"width": 32, "expand": [0.25, 0.5], "blocks": 1, "depth": [0, 1], "stride": 2}
SPACE: dict[str, Any] = {
    "name": "small",
    "resolution": (32,),
    "stem": {"width": 16},
    "stages": [STAGE],
    "width_mult": (0.5, 1.0),
}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"stages": []}, "at least one stage"),
        ({"choose": "network"}, r"stages\[0\]: needs middle and no expand"),
        ({"choose": "block"}, "choose='block'"),
        ({"norm_eps": 0.0}, "norm_eps=0.0"),
        ({"num_classes": 0}, "num_classes"),
        ({"width_mult": (1.0, 0.5)}, "width_mult="),
        ({"stem": {"width": 16, "depth": [0, 2]}}, r"stem\.depth=\[0, 2\]"),
        ({"stem": {"width": 16, "kernel": 4}}, r"stem\.kernel"),
        ({"stem": {"kernel": 3}}, r"stem\.width"),
        ({"stages": [{**STAGE, "expand": None}]}, r"stages\[0\]: needs expand and no middle"),
        ({"stages": [{**STAGE, "middle": 8}]}, r"stages\[0\]: needs expand and no middle"),
        ({"stages": [{**STAGE, "depth": [1, 0]}]}, r"stages\[0\]\.depth="),
        ({"stages": [{**STAGE, "depth": [-1, 0]}]}, r"stages\[0\]\.depth"),
        ({"stages": [{**STAGE, "kernel": 3}]}, r"stages\[0\]: unknown entries \['kernel'\]"),
    ],
)
def test_impossible_spaces_are_refused(overrides: dict[str, Any], message: str) -> None:
    assert resnet.space(**SPACE).size() == 2 * 2 * (1 + 2) * 2
    with pytest.raises(ValueError, match=message):
        resnet.space(**{**SPACE, **overrides})
