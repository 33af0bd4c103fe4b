"""The spaces of NAS-Bench-Macro and of TangleNAS' plain convolutions: costs, weight sharing, mistakes."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import archs, images, randomise
from torch import Tensor

import supernet
from supernet import Supernet, UserError, calibrate, cost, load_subnet
from supernet.data.base import DataInfo
from supernet.export import export
from supernet.models import conv_macro, macro
from supernet.space import Space, load_space

ROWS = json.loads((Path(__file__).parent / "data" / "nb_macro_rows.json").read_text())  # of the published table
NAMES = ("nb_macro", "nb_macro_separate", "conv_macro")
SMALL_MACRO: dict[str, Any] = {
    "name": "small",
    "resolution": (8,),
    "operations": ("identity", "k3_e3", "k5_e6"),
    "stem": 4,
    "stages": [{"width": 8, "blocks": 2}, {"width": 8, "blocks": 2, "stride": 1}],
    "head": 16,
    "num_classes": 5,
}
SMALL_CONV: dict[str, Any] = {
    "name": "small",
    "resolution": (16,),
    "width": ((2, 4), (3, 5), (4, 6), (2, 8)),
    "kernel": (3, 5, 7),
    "last_width": 6,
    "hidden": (8, 7),
    "num_classes": 5,
}
SMALL = {
    "entangled": macro.space(**SMALL_MACRO),
    "separate": macro.space(**SMALL_MACRO, entangled=False),
    "convs": conv_macro.space(**SMALL_CONV),
}
small_spaces = pytest.mark.parametrize("space", SMALL.values(), ids=SMALL.keys())


@pytest.fixture(scope="module")
def spaces() -> dict[str, Space]:
    with torch.device("meta"):
        return {name: supernet.build(name, num_classes=10).space for name in NAMES}


def net_of(space: Space) -> Any:
    net = Supernet(space)
    randomise(net)
    return net


def inputs(space: Space, count: int = 4) -> Tensor:
    return images(count, space.resolution(space.largest()))


# NAS-Bench-Macro -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nb_macro", "nb_macro_separate"])
def test_published_params_and_macs(spaces: dict[str, Space], name: str) -> None:
    space = spaces[name]
    subnets = [macro.parse(row["arch"]) for row in ROWS]
    expected = [(row["macs"], row["params"]) for row in ROWS]
    assert [tuple(cost(space.plan(arch))) for arch in subnets] == expected
    macs, params = cost.batch(space, np.array([space.encode(arch) for arch in subnets]))
    assert list(zip(macs.tolist(), params.tolist(), strict=True)) == expected


def test_sizes_of_the_spaces_and_of_their_supernets(spaces: dict[str, Space]) -> None:
    """Entangled: the largest subnet, and the 1x1 convs of three identities; separate: the small blocks besides."""
    assert [spaces[name].size() for name in NAMES] == [3**8] * 3
    largest = spaces["nb_macro"].plan(spaces["nb_macro"].largest()).params
    shape_changes = sum(c * 2 * c + 4 * c for c in (32, 64, 128))
    small = 0
    for width_in, width in zip((32, 64, 64, 128, 128, 128, 256, 256), (64, 64, *[128] * 3, *[256] * 3), strict=True):
        middle = 3 * width_in
        small += middle * (width_in + 9 + width) + 2 * (middle + middle + width)
    assert spaces["nb_macro"].widest.params == largest + shape_changes
    assert spaces["nb_macro_separate"].widest.params == largest + shape_changes + small


def test_keys_of_the_table(spaces: dict[str, Space]) -> None:
    space = spaces["nb_macro"]
    assert macro.parse("00000000") == space.smallest()
    assert macro.parse("22222222") == space.largest()
    for arch in archs(space, 50):
        assert macro.parse(macro.arch_string(arch)) == arch
    arch = macro.parse("01202211")
    assert arch["blocks"][:4] == ("identity", "k3_e3", "k5_e6", "identity")
    assert space.from_json({"blocks": list(arch["blocks"])}) == arch
    for bad in ("", "0120221x", "01202213", " 1202211"):
        with pytest.raises(ValueError, match="one digit for each layer"):
            macro.parse(bad)
    with pytest.raises(ValueError, match="does not belong"):
        space.plan(macro.parse("0120221"))
    other = macro.space(**{**SMALL_MACRO, "operations": ("identity", "k7_e2")})
    with pytest.raises(ValueError, match="k7_e2 has no digit"):
        macro.arch_string(other.largest())


def by_hand(x: Tensor, layers: dict[str, Any], key: str, strides: tuple[int, ...]) -> Tensor:
    """The network of a key in the fewest words, its weights read from the entangled supernet's modules."""

    def conv(part: Any, x: Tensor, out: slice, inner: slice, crop: int = 0, **how: Any) -> Tensor:
        weight = part.conv.weight[
            out, inner, crop : part.conv.kernel_size[0] - crop, crop : part.conv.kernel_size[1] - crop
        ]
        y = F.conv2d(x, weight, padding=weight.shape[2] // 2, **how)
        mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), correction=0, keepdim=True)
        scale, shift = part.norm.weight[out], part.norm.bias[out]
        return (y - mean) / (var + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]

    every = slice(None)
    x = conv(layers["stem"], x, every, every).relu()
    for i, (digit, stride) in enumerate(zip(key, strides, strict=True)):
        if digit == "0":
            x = conv(layers[f"blocks.{i}.identity"], x, every, every, stride=stride) if stride == 2 else x
            continue
        block, middle = layers[f"blocks.{i}.block"], slice(x.shape[1] * (3 if digit == "1" else 6))
        y = conv(block.expand, x, middle, every).relu()
        y = conv(block.depthwise, y, middle, every, crop=digit == "1", stride=stride, groups=y.shape[1]).relu()
        y = conv(block.project, y, every, middle)
        x = x + y if stride == 1 else y
    head = layers["head"]
    return head.classifier(conv(head.conv, x, every, every).relu().mean((2, 3)))


@torch.no_grad()
def test_forward_by_hand() -> None:
    """k3_e3 is the centre of the kernel and the first half of the expanded channels of k5_e6."""
    space = macro.space(**{**SMALL_MACRO, "stages": [{"width": 8, "blocks": 2}, {"width": 16, "blocks": 3}]})
    net = net_of(space).double()
    x = inputs(space).double()
    layers = dict(net.net.named_modules())
    for key in ("01212", "10120", "22000", "00201", "11111", "00000"):
        expected = by_hand(x, layers, key, (2, 1, 2, 1, 1))
        torch.testing.assert_close(net(x, macro.parse(key, 8)), expected, rtol=1e-9, atol=1e-9)


def test_separate_blocks_share_nothing() -> None:
    """The small block's weights get no gradient from the large one, and the other way round."""
    space = SMALL["separate"]
    net = net_of(space)
    for key, own in (("1111", "k3_e3"), ("2222", "k5_e6")):
        net.zero_grad(set_to_none=True)
        net(inputs(space), macro.parse(key, 8)).square().sum().backward()
        used = {name.split(".")[2] for name, p in net.net.named_parameters() if "blocks" in name and p.grad is not None}
        assert used == {own}


def test_layers_that_keep_the_shape_can_be_left_out() -> None:
    net = net_of(SMALL["entangled"])
    assert list(net.extract(macro.parse("0000", 8)).blocks) == ["0"]  # the first has a stride
    assert list(net.extract(macro.parse("0012", 8)).blocks) == ["0", "2", "3"]


def test_drop_path_grows_with_the_position(spaces: dict[str, Space]) -> None:
    plan = spaces["nb_macro"].plan(spaces["nb_macro"].largest())
    assert [plan[f"blocks.{i}.block"].drop_path for i in range(8)] == [i / 8 for i in range(8)]


def test_odd_sides_round_up() -> None:
    space = macro.space(**{**SMALL_MACRO, "resolution": (9, 13)})
    net = net_of(space)
    seen: list[int] = []
    for layer in net.net.blocks.values():
        layer.register_forward_hook(lambda module, given, out: seen.append(out.shape[-1]))
    for resolution, half in ((9, 5), (13, 7)):
        arch = macro.parse("2121", resolution)
        net(images(2, resolution), arch)
        planned = [spec.depthwise.size for name, spec in space.plan(arch).layers if name.endswith(".block")]
        assert planned == [half] * 4
    assert seen == [5] * 4 + [7] * 4


# Plain convolutions --------------------------------------------------------------------------------------------


def test_params_of_plain_convolutions(spaces: dict[str, Space]) -> None:
    """Counted from the description of the network."""
    space = spaces["conv_macro"]
    for arch in [space.smallest(), space.largest(), *archs(space, 30)]:
        widths = [3, *arch["width"], 256]
        kernels = [*arch["kernel"], 7]
        convs = sum((a * k * k + 1) * b for a, b, k in zip(widths, widths[1:], kernels, strict=False))
        mlp = [256 * 6 * 6, 256, 128, 64, 10]
        assert space.plan(arch).params == convs + sum((a + 1) * b for a, b in pairwise(mlp))


def test_rows_of_the_published_table_are_archs(spaces: dict[str, Space]) -> None:
    space = spaces["conv_macro"]
    arch = space.from_json({"width": [8, 16, 32, 64], "kernel": [5, 3, 3, 7]})
    assert [spec.weight_shape for name, spec in space.plan(arch).layers if name != "head"] == [
        (8, 3, 5, 5),
        (16, 8, 3, 3),
        (32, 16, 3, 3),
        (64, 32, 7, 7),
        (256, 64, 7, 7),
    ]


@torch.no_grad()
def test_plain_convolutions_by_hand() -> None:
    space = SMALL["convs"]
    net = net_of(space)
    for arch in archs(space, 10):
        x = images(3, 16)
        y, shapes = x, zip((*arch["width"], 6), (*arch["kernel"], 7), net.net.convs, strict=True)
        for i, (width, kernel, part) in enumerate(shapes):
            crop = (part.conv.kernel_size[0] - kernel) // 2
            weight = part.conv.weight[:width, : y.shape[1], crop : crop + kernel, crop : crop + kernel]
            y = F.conv2d(y, weight, part.conv.bias[:width], padding=2 if i == 4 else kernel // 2).relu()
            y = F.max_pool2d(y, 2) if i in (1, 2) else y
        y = y.flatten(1)
        for layer in net.net.head.hidden:
            y = layer(y).relu()
        torch.testing.assert_close(net(x, arch), net.net.head.classifier(y), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_dropout_zeroes_whole_channels() -> None:
    """Of the third conv's pooled map and of the fifth conv, in training mode only."""
    space = SMALL["convs"]
    net = net_of(space).train()
    seen: list[Tensor] = []
    for part in (net.net.convs[3], net.net.head):
        part.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = images(200, 16)
        net(x, dropout=0.0)
        net(x, dropout=0.5)
    after_third, after_last, dropped_third, dropped_last = seen
    dropped = (dropped_third.flatten(2) == 0).all(2)
    clean = (after_third.flatten(2) == 0).all(2)
    assert dropped[~clean].float().mean() == pytest.approx(0.5, abs=0.06)
    kept = ~dropped[..., None, None].expand_as(after_third)
    torch.testing.assert_close(dropped_third[kept], 2 * after_third[kept])
    zero, before = (dropped_last.flatten(2) == 0).all(2), (after_last.flatten(2) == 0).all(2)
    assert zero.float().mean() > before.float().mean() + 0.3
    net.eval()
    assert torch.equal(net(x, dropout=0.5), net(x))


def test_images_of_another_side_are_refused() -> None:
    with pytest.raises(ValueError, match="takes images of 16 x 16 px, got 24 x 24"):
        net_of(SMALL["convs"])(images(1, 24))


# All -----------------------------------------------------------------------------------------------------------


@small_spaces
@torch.no_grad()
def test_extracted_subnets_give_the_same_numbers(space: Space) -> None:
    """Bit for bit, in both modes; and after calibration, both of the extracted network alone."""
    net, x = net_of(space), inputs(space)
    for arch in [space.smallest(), space.largest(), *archs(space, 40)]:
        subnet = net.train().extract(arch)
        assert sum(p.numel() for p in subnet.parameters()) == space.plan(arch).params
        assert torch.equal(net(x, arch), subnet(x))
        assert torch.equal(net.eval()(x, arch), subnet.eval()(x))


@small_spaces
def test_gradients_outside_the_slice_are_zero(space: Space) -> None:
    """Inside they are those of the extracted subnet: leading channels, centres of kernels."""
    net, x = net_of(space).double(), inputs(space).double()
    for arch in archs(space, 20):
        subnet = net.extract(arch)
        subnet(x).square().sum().backward()
        own = dict(subnet.named_parameters())
        net.zero_grad(set_to_none=True)
        net(x, arch).square().sum().backward()
        for name, parameter in net.net.named_parameters():
            if name not in own:
                assert parameter.grad is None, name
                continue
            centred = range(parameter.ndim) if parameter.ndim == 4 else ()
            slices = []
            for dim, (wide, length) in enumerate(zip(parameter.shape, own[name].shape, strict=True)):
                start = (wide - length) // 2 if dim in (2, 3) and centred else 0
                slices.append(slice(start, start + length))
            inside = torch.zeros_like(parameter, dtype=torch.bool)
            inside[tuple(slices)] = True
            assert not parameter.grad[~inside].any(), name
            torch.testing.assert_close(parameter.grad[tuple(slices)], own[name].grad, rtol=1e-9, atol=1e-9)


@small_spaces
def test_every_weight_is_used_by_some_subnet(space: Space) -> None:
    net, x = net_of(space), inputs(space)
    for arch in [space.smallest(), space.largest(), *archs(space, 30)]:
        net(x, arch).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@small_spaces
def test_export_and_checkpoint(space: Space, tmp_path: Path) -> None:
    net = net_of(space)
    side = space.resolution(space.largest())
    info = DataInfo("toy", 5, tuple("abcde"), 3, side, (0.5,) * 3, (0.2,) * 3, (side,))
    for i, arch in enumerate([space.smallest(), space.largest(), *archs(space, 2)]):
        subnet = calibrate(net.extract(arch), [images(8, side, seed) for seed in range(2)])
        folder = tmp_path / str(i)
        assert export(subnet, arch, net, folder, info, inputs(space), {}, {}) == {"calibrated": 0.0, "supernet": 0.0}
        with torch.no_grad():
            assert torch.equal(load_subnet(folder)(inputs(space)), subnet(inputs(space)))
    torch.save({"space": space.config, "model": net.state_dict()}, tmp_path / "checkpoint.pt")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    again = Supernet(load_space(state["space"]))
    again.load_state_dict(state["model"])
    for arch in archs(space, 3):
        assert torch.equal(again(inputs(space), arch), net(inputs(space), arch))


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("macro", {"operations": ["identity", "conv3"]}, "operations: 'conv3' is unknown"),
    ("macro", {"operations": ["identity", "k4_e3"]}, "kernels must be odd"),
    ("macro", {"operations": ["identity", "k3_e0"]}, "k3_e0: whole numbers"),
    ("macro", {"operations": ["k3_e3", "k3_e3"]}, "options must be distinct"),
    ("macro", {"operations": []}, "options must be distinct"),
    ("macro", {"stages": []}, "at least one stage"),
    ("macro", {"stages": [{"width": 8}]}, r"stages\[0\].blocks"),
    ("macro", {"stages": [{"width": 8, "blocks": 1, "kernel": 3}]}, "unknown entries"),
    ("macro", {"resolution": [8, 8]}, "resolution="),
    ("macro", {"head": 0}, "stem, head"),
    ("macro", {"norm_eps": 0.0}, "norm_eps"),
    ("conv_macro", {"resolution": [16, 32]}, "a single one"),
    ("conv_macro", {"resolution": [8]}, "at least 12"),
    ("conv_macro", {"width": [[2, 4]]}, "each of 4 convolutions"),
    ("conv_macro", {"width": [[4, 2], [3], [4], [2]]}, r"width\[0\]"),
    ("conv_macro", {"kernel": [3, 4]}, "kernels must be odd"),
    ("conv_macro", {"hidden": [0]}, "last_width, hidden"),
]


@pytest.mark.parametrize(("family", "change", "message"), MISTAKES)
def test_mistakes_are_one_clear_line(family: str, change: dict[str, Any], message: str) -> None:
    config = {"macro": SMALL_MACRO, "conv_macro": SMALL_CONV}[family]
    plain = json.loads(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=message) as caught:
        load_space({"_target_": f"supernet.models.{family}.space", **plain})
    assert len(str(caught.value).splitlines()) == 1
