"""Vision transformers: slices, relative positions, costs, drop-path, options and mistakes."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import all_codes, images, randomise
from tiny_vit import tiny_vit
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import supernet
from supernet.cost import cost
from supernet.data import DataInfo
from supernet.errors import UserError
from supernet.layers.attention import Attention, relative_index
from supernet.layers.transformer import TransformerBlock
from supernet.net import Supernet
from supernet.space import Arch, Space
from supernet.specs import AttentionSpec

SIDE = 12
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "flat bias": {"qkv_bias": "flat"},
    "no bias": {"qkv_bias": "none"},
    "scale": {"scale": True},
    "post-norm": {"pre_norm": False, "abs_pos": False},
    "class token, fixed width": {"pool": "cls", "relative_position": None, "qkv": "fixed", "num_heads": (1, 2, 3)},
}


def every_arch(space: Space) -> list[Arch]:
    return list(dict.fromkeys(space.decode(codes) for codes in all_codes(space)))


def net_with(name: str = "default", **overrides: Any) -> Supernet:
    net = Supernet(tiny_vit(**OPTIONS[name], **overrides))
    randomise(net)
    return net


def block_of(net: Supernet, index: int) -> TransformerBlock:
    block: Any = net.net.blocks[index]  # type: ignore[index, union-attr]
    return block


@pytest.mark.parametrize("name", OPTIONS)
def test_extracted_subnets_give_the_same_numbers(name: str) -> None:
    """Bit for bit, in train and in eval mode; every subnet of the space."""
    net, x = net_with(name), images(3, SIDE)
    found = set()
    with torch.no_grad():
        for arch in every_arch(net.space):
            subnet = net.train().extract(arch)
            assert torch.equal(net(x, arch), subnet(x))
            assert torch.equal(net.eval()(x, arch), subnet.eval()(x))
            found.add(tuple(subnet(x).flatten().tolist()))
    assert len(found) == net.space.size()


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_stay_in_the_slice(name: str) -> None:
    """Those of the extracted subnet in the slice it uses, zero or none elsewhere."""
    net, x = net_with(name), images(3, SIDE)
    net.double()
    for arch in (net.space.smallest(), net.space.decode([0, 1] + [0, 1] * ((len(net.space.genes) - 3) // 2) + [0])):
        net.zero_grad()
        net(x.double(), arch).logsumexp(1).sum().backward()
        subnet = net.extract(arch)
        subnet(x.double()).logsumexp(1).sum().backward()
        alone = dict(subnet.named_parameters())
        for key, parameter in net.net.named_parameters():
            if parameter.grad is None:
                assert key not in alone
                continue
            inside = parameter.grad[tuple(slice(length) for length in alone[key].shape)]
            assert torch.allclose(inside, alone[key].grad, rtol=1e-9, atol=1e-12), key
            assert inside.count_nonzero() == parameter.grad.count_nonzero(), key


@pytest.mark.parametrize("name", OPTIONS)
def test_costs(name: str) -> None:
    """Tables, plans, modules and torch's own count agree on every subnet."""
    space = tiny_vit(**OPTIONS[name])
    archs = every_arch(space)
    macs, params = cost.batch(space, np.array([space.encode(arch) for arch in archs]))
    for i, arch in enumerate(archs):
        plan = space.plan(arch)
        assert (macs[i], params[i]) == cost(plan)
        network = space.module(plan)
        assert sum(p.numel() for p in network.parameters()) == plan.params
        with FlopCounterMode(display=False) as counter:
            network(images(3, SIDE))
        assert counter.get_total_flops() == 2 * 3 * plan.macs


def test_a_count_by_hand() -> None:
    """One block of one head of 8 on 12 numbers per token, 10 tokens, hidden 18, 4 classes."""
    space = tiny_vit()
    plan = space.plan(space.smallest())
    attention = 10 * 12 * 3 * 8 + 4 * 10 * 10 * 8 + 10 * 8 * 12
    assert plan.macs == 9 * 48 * 12 + attention + 10 * 2 * 12 * 18 + 12 * 4
    tables = 4 * (2 * 1 + 2) * 8
    block = 3 * 8 * 12 + 3 * 8 + tables + 8 * 12 + 12 + 12 * 18 + 18 + 18 * 12 + 12 + 4 * 12
    assert plan.params == 48 * 12 + 12 + 12 + 10 * 12 + block + 2 * 12 + 12 * 4 + 4


def test_the_readable_form() -> None:
    """Lists as long as there are layers; the published code's dictionaries, without a resolution, are read."""
    space = tiny_vit()
    data = {"layer_num": 1, "mlp_ratio": [2.0], "num_heads": [2], "embed_dim": [20]}
    arch = space.from_json(data)
    assert arch.to_json() == {"resolution": SIDE, **data}
    assert list(arch.to_json()) == ["resolution", "layer_num", "mlp_ratio", "num_heads", "embed_dim"]
    assert space.largest().to_json()["embed_dim"] == [20, 20]
    for arch in every_arch(space):
        assert space.from_json(arch.to_json()) == arch
        assert space.decode(space.encode(arch)) == arch
    assert space.size() == len(every_arch(space)) == 2 * (4 + 16)
    with pytest.raises(ValueError, match="embed_dim"):
        space.from_json({**data, "embed_dim": [12, 20]})


def test_the_supernet_holds_no_more_than_subnets_use() -> None:
    net = supernet.build("autoformer_tiny", layer_num=[1], num_classes=7)
    shapes = {key: tuple(p.shape) for key, p in net.net.named_parameters()}
    assert shapes["blocks.0.attention.qkv"] == (3, 256, 240)
    assert shapes["blocks.0.attention.qkv_bias"] == (768,)
    assert shapes["blocks.0.attention.key_table.vertical"] == (30, 64)
    assert shapes["blocks.0.fc1.weight"] == (960, 240)
    assert shapes["embed.position"] == (1, 197, 240)
    assert shapes["head.classifier.weight"] == (7, 240)
    assert not [key for key in net.state_dict() if key.endswith("index")]


@pytest.mark.parametrize(
    ("name", "size", "params"),
    [
        ("autoformer_tiny", 3 * sum(4**n for n in (12, 13, 14)), (5_366_056, 10_517_272)),
        ("autoformer_small", 3 * sum(9**n for n in (12, 13, 14)), (13_057_320, 34_790_440)),
        ("autoformer_base", 3 * sum(6**n for n in (14, 15, 16)), (41_687_896, 76_882_264)),
    ],
)
def test_published_spaces(name: str, size: int, params: tuple[int, int]) -> None:
    with torch.device("meta"):
        space = supernet.build(name).space
    assert space.size() == size
    assert (space.plan(space.smallest()).params, space.plan(space.largest()).params) == params


# Relative positions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grid", "distance"), [(1, 1), (3, 1), (3, 2), (4, 14)])
def test_relative_index(grid: int, distance: int) -> None:
    """Against the definition, pair by pair."""
    index = relative_index(grid, distance)
    assert index.shape == (2, grid**2 + 1, grid**2 + 1)
    for (i, query), (j, key) in product(enumerate(product(range(grid), repeat=2)), repeat=2):
        for axis in (0, 1):
            offset = max(-distance, min(distance, key[axis] - query[axis]))
            assert index[axis, i + 1, j + 1] == offset + distance + 1
    assert not index[:, 0].any()
    assert not index[:, :, 0].any()


def attention(**changes: Any) -> tuple[Attention, AttentionSpec]:
    settings: dict[str, Any] = {"dim": 6, "inner": 8, "heads": 2, "tokens": 10, "bias": "shared", "distance": 1}
    spec = AttentionSpec(**{**settings, **changes}, score_scale=0.5, output_scale=1.0)
    layer = Attention(spec).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    return layer, spec


def tokens(batch: int = 2) -> Tensor:
    return torch.randn(batch, 10, 6, generator=torch.Generator().manual_seed(1)).double()


def projected(layer: Attention, x: Tensor) -> tuple[Tensor, ...]:
    assert layer.qkv_bias is not None
    return tuple(F.linear(x, layer.qkv[i], layer.qkv_bias[i]).unflatten(2, (2, 4)).transpose(1, 2) for i in range(3))


def test_attention_without_positions_is_torchs() -> None:
    layer, _ = attention(distance=None)
    out = F.scaled_dot_product_attention(*projected(layer, tokens()), scale=0.5)
    expected = layer.proj(out.transpose(1, 2).flatten(2))
    assert torch.allclose(layer(tokens()), expected, rtol=1e-10, atol=1e-10)


def test_attention_with_positions_pair_by_pair() -> None:
    """Each query has keys and values of its own: those of the tokens plus the relative position's."""
    layer, _ = attention()
    index = relative_index(3, 1)
    query, key, value = projected(layer, tokens())
    out = torch.empty_like(query)
    for i in range(10):
        positions = []
        for table in (layer.key_table, layer.value_table):
            assert table is not None
            rows = [table.vertical[index[0, i, j]] + table.horizontal[index[1, i, j]] for j in range(10)]
            positions.append(torch.stack(rows))
        scores = (query[:, :, i : i + 1] * (key + positions[0])).sum(-1) * 0.5
        out[:, :, i] = (scores.softmax(-1)[..., None] * (value + positions[1])).sum(2)
    expected = layer.proj(out.transpose(1, 2).flatten(2))
    assert torch.allclose(layer(tokens(), index=index), expected, rtol=1e-10, atol=1e-10)


def test_without_positions_patches_are_a_set() -> None:
    net = net_with(abs_pos=False, relative_position=None).double()
    x = images(2, SIDE).double()
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4).flatten(2, 3)  # [B, C, 9, 4, 4]
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    shuffled = patches[:, :, order].unflatten(2, (3, 3)).permute(0, 1, 2, 4, 3, 5).reshape(x.shape)
    assert not torch.equal(x, shuffled)
    assert torch.allclose(net(x), net(shuffled), rtol=1e-10, atol=1e-10)
    relative = net_with(abs_pos=False).double()
    assert not torch.allclose(relative(x), relative(shuffled), rtol=1e-3)


def test_transposed_images_swap_the_tables() -> None:
    net = net_with(abs_pos=False).double()
    x = images(2, SIDE).double()
    expected = net(x)
    with torch.no_grad():
        patch: Any = net.net.embed.patch  # type: ignore[union-attr]
        patch.weight.copy_(patch.weight.transpose(2, 3).clone())
        swapped = net(x.transpose(2, 3))
        assert not torch.allclose(swapped, expected, rtol=1e-6)
        for name in ("key_table", "value_table"):
            for i in range(2):
                table = getattr(block_of(net, i).attention, name)
                table.vertical, table.horizontal = table.horizontal, table.vertical
        assert torch.allclose(net(x.transpose(2, 3)), expected, rtol=1e-10, atol=1e-10)


def test_who_uses_which_bias() -> None:
    """Two heads' biases seen by one head: leading parts of q, k, v each, or thirds of one leading part."""
    numbers = torch.arange(24, dtype=torch.float64)
    for bias, starts in (("shared", (0, 8, 16)), ("flat", (0, 4, 8))):
        layer, _ = attention(bias=bias)
        small = attention(bias=bias, inner=4, heads=1)[1]
        assert layer.qkv_bias is not None
        with torch.no_grad():
            layer.qkv.zero_()
            layer.qkv_bias.copy_(numbers.reshape(layer.qkv_bias.shape))
        for part, start in zip(layer._project(tokens(), small), starts, strict=True):
            assert torch.equal(part[0, 0, 0], numbers[start : start + 4])


# Drop-path ------------------------------------------------------------------------------------------------------


def test_drop_path_grows_with_the_position_in_the_deepest_network() -> None:
    space = tiny_vit(layer_num=(2, 5))
    for arch in (space.smallest(), space.largest()):
        plan = space.plan(arch)
        fractions = [spec.drop_path for name, spec in plan.layers if name.startswith("blocks")]
        assert fractions == [i / 4 for i in range(arch["layer_num"])]


@pytest.mark.parametrize("branch", ["attention", "mlp"])
def test_drop_path_drops_or_scales_the_branch_of_whole_images(branch: str) -> None:
    net = net_with(relative_position=None)
    block = block_of(net, 1)
    x = torch.randn(64, 10, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        silent: nn.Linear = block.fc2 if branch == "attention" else block.attention.proj
        silent.weight.zero_()
        silent.bias.zero_()
        kept = (block.eval()(x) - x) * 4 / 3
        assert torch.equal(block(x, drop_path_rate=0.25), block(x))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found = block.train()(x, drop_path_rate=0.25) - x
    dropped = (found == 0).flatten(1).all(1)
    assert 4 <= dropped.sum() <= 30
    assert torch.allclose(found[~dropped], kept[~dropped], rtol=1e-4, atol=1e-5)


def test_the_first_block_is_never_dropped() -> None:
    net, x = net_with().train(), images(8, SIDE)
    shallow = net.space.smallest()
    assert torch.equal(net(x, shallow, drop_path=0.9), net(x, shallow))
    assert not torch.equal(net(x, drop_path=0.9), net(x))


def test_dropout_acts_before_the_classifier_in_training_only() -> None:
    net, x = net_with(), images(8, SIDE)
    assert not torch.equal(net.train()(x, dropout=0.5), net(x))
    assert torch.equal(net.eval()(x, dropout=0.5, drop_path=0.5), net(x))


# Export, devices, mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flat bias", "class token, fixed width"])
def test_export(name: str, tmp_path: Path) -> None:
    net = net_with(name)
    info = DataInfo("toy", 4, ("a", "b", "c", "d"), 3, SIDE, (0.5,) * 3, (0.2,) * 3, (SIDE,))
    formats = ("pt2", "onnx") if name == "flat bias" else ("pt2",)
    arch = net.space.from_json({**net.space.smallest().to_json(), "num_heads": [2]})
    subnet = supernet.calibrate(net.extract(arch), [images(4, SIDE)])
    differences = supernet.export.export(subnet, arch, net, tmp_path / "s", info, images(4, SIDE), {}, {}, formats)
    assert differences["calibrated"] == differences["supernet"] == 0.0
    loaded = supernet.load_subnet(tmp_path / "s")
    assert torch.equal(loaded(images(2, SIDE)), net.eval()(images(2, SIDE), arch))


def test_channels_last_and_bf16() -> None:
    net = net_with().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = images(2, SIDE).to(memory_format=torch.channels_last)
    arch = net.space.smallest()
    assert torch.equal(net(x, arch), net.extract(arch)(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = net(x, arch)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), net(x, arch), atol=0.1 * float(net(x, arch).abs().max().detach()))


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="12 x 12 px, got 16 x 16"):
        net_with()(images(1, 16))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"resolution": (12, 16)}, "resolution=.12, 16."),
        ({"resolution": (14,)}, "resolution=14.*patch=4"),
        ({"embed_dim": (12, 12.5)}, "embed_dim"),
        ({"embed_dim": (20, 12)}, "embed_dim"),
        ({"embed_dim": ()}, "embed_dim"),
        ({"num_heads": (0, 1)}, "num_heads"),
        ({"mlp_ratio": (0.01,)}, "mlp_ratio"),
        ({"layer_num": (1.5,)}, "layer_num"),
        ({"super_dim": 16}, "super_dim=16"),
        ({"super_mlp_ratio": 1.0}, "super_mlp_ratio=1.0"),
        ({"relative_position": 0}, "relative_position"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"pool": "max"}, "pool='max'"),
        ({"qkv": "both"}, "qkv='both'"),
        ({"qkv_bias": "all"}, "qkv_bias='all'"),
        ({"qkv": "fixed", "num_heads": (5,), "relative_position": None}, "num_heads=.5.*super_dim=24"),
        ({"qkv": "fixed", "num_heads": (2, 3)}, "num_heads=.2, 3."),
        ({"num_classes": 0}, "num_classes"),
    ],
)
def test_mistakes_are_named(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny_vit(**overrides)


def test_mistakes_in_a_configuration_are_the_users() -> None:
    with pytest.raises(UserError, match="num_heads"):
        supernet.build("autoformer_tiny", num_heads=[4, 3])
    with pytest.raises(UserError, match=r"qkv_bias.*'flat'"):
        supernet.build("autoformer_tiny", qkv_bias="interleaved")


def test_the_published_tiny_subnet_needs_a_wider_space() -> None:
    data = {"layer_num": 12, "mlp_ratio": [3] * 12, "num_heads": [3] * 12, "embed_dim": [192] * 12}
    with torch.device("meta"):
        with pytest.raises(ValueError, match=r"mlp_ratio.*3"):
            supernet.build("autoformer_tiny").space.from_json(data)
        wider = supernet.build("autoformer_tiny", mlp_ratio=[3, 3.5, 4]).space
    assert wider.from_json(data)["mlp_ratio"] == (3.0,) * 12
