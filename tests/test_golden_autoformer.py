"""The AutoFormer spaces against the numbers that the original AutoFormer code computes.

Every weight is a deterministic function of its original name, so no checkpoint is needed. Every eighth class is kept.
The original computes GELU in fp32 even in a float64 network, so agreement ends at about 1e-7 of the largest logit.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import supernet
from supernet.cost import cost
from supernet.slicing import take

DATA = Path(__file__).parent / "data"
ARCHS: dict[str, dict[str, Any]] = json.loads((DATA / "autoformer_archs.json").read_text())
TOLERANCE = 1e-6  # of the largest logit
# (space, what differs from its file, width and number of heads of the original's own weights); the options are those
# of the original's command line.
VARIANTS: dict[str, tuple[str, dict[str, Any], int]] = {
    # The published subnet has ratios of 3, outside its own space.
    "tiny": ("autoformer_tiny", {"mlp_ratio": [3, 3.5, 4]}, 256),
    "small": ("autoformer_small", {}, 448),
    "base": ("autoformer_base", {}, 640),
    "scale": ("autoformer_tiny", {"scale": True}, 256),
    "postnorm_noabspos_rpe7": (
        "autoformer_tiny",
        {"pre_norm": False, "abs_pos": False, "relative_position": 7},
        256,
    ),
    "clsToken_noRPE_plainQKV": (
        "autoformer_tiny",
        {"pool": "cls", "relative_position": None, "qkv": "fixed", "num_heads": [4]},
        256,
    ),
}
NAMES = {
    "embed.position": "pos_embed",
    "embed.cls_token": "cls_token",
    "embed.patch.": "patch_embed_super.proj.",
    "head.norm.": "norm.",
    "head.classifier.": "head.",
}
IN_BLOCK = {
    "norm1.": "attn_layer_norm.",
    "norm2.": "ffn_layer_norm.",
    "attention.qkv_bias": "attn.qkv.bias",
    "attention.qkv": "attn.qkv.weight",
    "attention.proj.": "attn.proj.",
    "attention.key_table.": "attn.rel_pos_embed_k.embeddings_table_",
    "attention.value_table.": "attn.rel_pos_embed_v.embeddings_table_",
}


def original_name(key: str) -> str:
    """The name that AutoFormer gives to a parameter of ours."""
    prefix, names = "", NAMES
    if key.startswith("blocks."):
        _, index, key = key.split(".", 2)
        prefix, names = f"blocks.{index}.", IN_BLOCK
    for ours, theirs in names.items():
        if key.startswith(ours):
            rest = key.removeprefix(ours)
            return prefix + theirs + {"vertical": "v", "horizontal": "h"}.get(rest, rest)
    return prefix + key


def original_shape(name: str, shape: torch.Size, width: int) -> tuple[int, ...]:
    """What the original stores: every elastic axis as wide as its supernet; q, k and v in one axis."""
    if "embeddings_table" in name:
        return tuple(shape)
    known: dict[str, tuple[int, ...]] = {
        "patch_embed_super.proj.weight": (width, *shape[1:]),
        "pos_embed": (*shape[:-1], width),
        "cls_token": (1, 1, width),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "fc1.weight": (4 * width, width),
        "fc1.bias": (4 * width,),
        "fc2.weight": (width, 4 * width),
        "head.weight": (shape[0], width),
        "head.bias": tuple(shape),
    }
    return known.get(name.split(".", 2)[2] if name.startswith("blocks.") else name, (width,))


def filled(name: str, shape: tuple[int, ...]) -> Tensor:
    """The golden fill of one tensor, by its original name. fp64 holding fp32 values."""
    normal = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
    if "embed" in name.split(".")[-1] or name == "cls_token":
        value = 0.02 * normal
    elif name.endswith("bias"):
        value = 0.05 * normal
    elif len(shape) == 1:
        value = 1 + 0.1 * normal
    else:
        value = normal * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(value.astype(np.float32).astype(np.float64))


def apart(rows: Tensor, interleaved: bool) -> Tensor:
    """[3 * inner, ..] -> [3, inner, ..]: rows are q, k, v, q, k, v, .. or all of q, all of k, all of v."""
    return rows.unflatten(0, (-1, 3)).transpose(0, 1) if interleaved else rows.unflatten(0, (3, -1))


def fill(net: supernet.Supernet, width: int) -> None:
    """Weights of the original's supernet, cut to the widest that a subnet uses."""
    interleaved = net.space.config["qkv"] == "elastic"
    with torch.no_grad():
        for key, parameter in net.net.named_parameters():
            name = original_name(key)
            value = filled(name, original_shape(name, parameter.shape, width))
            if "attn.qkv" in name and parameter.ndim > 1:
                value = apart(value, interleaved)
            parameter.copy_(take(value, parameter.shape))


def built(variant: str, **more: Any) -> supernet.Supernet:
    name, overrides, width = VARIANTS[variant]
    net = supernet.build(name, **{**overrides, **more}).double()
    fill(net, width)
    return net.eval()


def images() -> Tensor:
    generator = np.random.Generator(np.random.PCG64(0))
    return torch.from_numpy(generator.standard_normal((2, 3, 224, 224)).astype(np.float32)).double()


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with np.load(DATA / "autoformer_golden.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="module")
def tiny() -> supernet.Supernet:
    return built("tiny")


def error(net: supernet.Supernet, golden: dict[str, Any], variant: str, tag: str) -> float:
    """The largest difference, relative to the largest logit."""
    with torch.no_grad():
        logits = net(images(), net.space.from_json(ARCHS[variant][tag]["arch"]))
    expected = golden[f"{variant}/{tag}"]
    return float(np.abs(logits[:, ::8].numpy() - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("tag", ARCHS["tiny"])
def test_logits(tiny: supernet.Supernet, golden: dict[str, Any], tag: str) -> None:
    assert error(tiny, golden, "tiny", tag) < TOLERANCE


@pytest.mark.parametrize(("variant", "tag"), [(name, "min") for name in VARIANTS if name != "tiny"])
def test_logits_of_the_other_spaces_and_options(golden: dict[str, Any], variant: str, tag: str) -> None:
    assert error(built(variant), golden, variant, tag) < TOLERANCE


def test_logits_in_fp32(golden: dict[str, Any]) -> None:
    net = built("tiny").float()
    with torch.no_grad():
        logits = net(images().float(), net.space.from_json(ARCHS["tiny"]["rand00"]["arch"]))
    expected = golden["tiny/rand00"]
    assert np.abs(logits[:, ::8].numpy() - expected).max() < 5e-6 * np.abs(expected).max()


def test_extracted_subnets_compute_the_same_bit_for_bit(tiny: supernet.Supernet) -> None:
    arch = tiny.space.from_json(ARCHS["tiny"]["published_T"]["arch"])
    subnet = tiny.extract(arch)
    assert sum(p.numel() for p in subnet.parameters()) == ARCHS["tiny"]["published_T"]["params"]
    with torch.no_grad():
        assert torch.equal(tiny(images(), arch), subnet(images()))


def test_gradients(tiny: supernet.Supernet, golden: dict[str, Any]) -> None:
    """Norm, sum and number of non-zeros of every gradient, which the original took in fp32."""
    entry = ARCHS["tiny"]["rand00"]
    tiny.zero_grad()
    loss = F.cross_entropy(tiny(images(), tiny.space.from_json(entry["arch"])), torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(float(golden["grads/loss"]), rel=1e-6)
    loss.backward()
    gradients = {original_name(key): p.grad for key, p in tiny.net.named_parameters() if p.grad is not None}
    assert set(gradients) == set(golden["grads/keys"].tolist())
    for key, (norm, total, nonzero) in zip(golden["grads/keys"].tolist(), golden["grads/values"], strict=True):
        gradient = gradients[key]
        assert gradient.norm().item() == pytest.approx(norm, rel=2e-5), key
        assert gradient.sum().item() == pytest.approx(total, abs=2e-6 * norm * gradient.numel() ** 0.5), key
        # A few are zero by chance; of the keys' biases many, whose true gradient is zero.
        if not key.endswith("qkv.bias"):
            assert abs(gradient.count_nonzero().item() - nonzero) <= 1e-4 * nonzero + 1, key
    tiny.zero_grad()


@pytest.mark.parametrize("variant", VARIANTS)
def test_costs(variant: str) -> None:
    """Integers; and what torch counts on our own forward."""
    name, overrides, _ = VARIANTS[variant]
    net = supernet.build(name, **overrides).to("meta")
    for tag, entry in ARCHS[variant].items():
        arch = net.space.from_json(entry["arch"])
        counted = cost(net.space.plan(arch))
        assert counted.macs == entry["macs"], tag
        # The original also counts positions that are not there.
        positions = 0 if overrides.get("abs_pos", True) else 197 * arch["embed_dim"][0]
        assert counted.params == entry["params"] - positions, tag
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 224, 224, device="meta"), arch)
        assert counter.get_total_flops() == 2 * counted.macs, tag


@pytest.mark.parametrize(
    ("mistake", "overrides", "least"),
    [
        ("epsilon", {"norm_eps": 1e-6}, 1e-4),
        ("biases interleaved like the weights", {"qkv_bias": "shared"}, 0.1),
        ("no relative position on keys", {}, 1e-3),
        ("no relative position on values", {}, 1e-2),
    ],
)
def test_the_comparison_sees_mistakes(
    golden: dict[str, Any], mistake: str, overrides: dict[str, Any], least: float
) -> None:
    net = built("tiny", **overrides)
    table = {"no relative position on keys": "key_table", "no relative position on values": "value_table"}.get(mistake)
    with torch.no_grad():
        for key, parameter in net.net.named_parameters():
            if table and table in key:
                parameter.zero_()
    assert error(net, golden, "tiny", "rand00") > least
