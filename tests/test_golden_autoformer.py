"""The AutoFormer spaces against the numbers that the original AutoFormer code computes.

Weights are a deterministic function of their original names and come in through the importer, as a published file
would. Every eighth class is kept.
The original computes GELU in fp32 even in a float64 network, so agreement ends at about 1e-7 of the largest logit.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import DATA, imported, names, relative_error, shapes
from golden import images as golden_images
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import supernet
from supernet.cost import cost
from supernet.pretrained.autoformer import AUTOFORMER

ARCHS: dict[str, dict[str, Any]] = json.loads((DATA / "autoformer_archs.json").read_text())
TOLERANCE = 1e-6  # of the largest logit
# (space, what differs from its file); the options are those of the original's command line.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    # The published subnet has ratios of 3, outside its own space.
    "tiny": ("autoformer_tiny", {"mlp_ratio": [3, 3.5, 4]}),
    "small": ("autoformer_small", {}),
    "base": ("autoformer_base", {}),
    "scale": ("autoformer_tiny", {"scale": True}),
    "postnorm_noabspos_rpe7": ("autoformer_tiny", {"pre_norm": False, "abs_pos": False, "relative_position": 7}),
    "clsToken_noRPE_plainQKV": (
        "autoformer_tiny",
        {"pool": "cls", "relative_position": None, "qkv": "fixed", "num_heads": [4]},
    ),
}
BEHIND = {"pos_embed": "abs_pos", "norm.": "pre_norm"}  # tensors that are there with an option


def listing(family: str, options: dict[str, Any]) -> dict[str, list[int]]:
    """Names and shapes of the original's tensors under the options that change them; all variants are of one width."""
    distance = options.get("relative_position", 14)
    without = tuple(name for name, option in BEHIND.items() if not options.get(option, True))
    return {
        key: [2 * distance + 2, shape[1]] if ".rel_pos_embed_" in key else shape
        for key, shape in shapes(family).items()
        if not key.startswith(without) and (distance or ".rel_pos_embed_" not in key)
    }


def built(variant: str, folder: Path) -> supernet.Supernet:
    family, options = VARIANTS[variant]
    return imported(family, folder, listing=listing(family, options), **options).eval()


def images() -> Tensor:
    return golden_images(2, 224)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with np.load(DATA / "autoformer_golden.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> supernet.Supernet:
    return built("tiny", tmp_path_factory.mktemp("original"))


def error(net: supernet.Supernet, golden: dict[str, Any], variant: str, tag: str) -> float:
    """The largest difference, relative to the largest logit."""
    with torch.no_grad():
        logits = net(images(), net.space.from_json(ARCHS[variant][tag]["arch"]))
    return relative_error(logits, golden[f"{variant}/{tag}"])


@pytest.mark.parametrize("tag", ARCHS["tiny"])
def test_logits(tiny: supernet.Supernet, golden: dict[str, Any], tag: str) -> None:
    assert error(tiny, golden, "tiny", tag) < TOLERANCE


@pytest.mark.parametrize(("variant", "tag"), [(name, "min") for name in VARIANTS if name != "tiny"])
def test_logits_of_the_other_spaces_and_options(golden: dict[str, Any], variant: str, tag: str, tmp_path: Path) -> None:
    assert error(built(variant, tmp_path), golden, variant, tag) < TOLERANCE


def test_logits_in_fp32(tiny: supernet.Supernet, golden: dict[str, Any]) -> None:
    net = copy.deepcopy(tiny).float()
    with torch.no_grad():
        logits = net(images().float(), net.space.from_json(ARCHS["tiny"]["rand00"]["arch"]))
    assert relative_error(logits, golden["tiny/rand00"]) < 5e-6


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
    table = names(tiny.net, AUTOFORMER)
    gradients = {table[key]: p.grad for key, p in tiny.net.named_parameters() if p.grad is not None}
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
    name, options = VARIANTS[variant]
    net = supernet.build(name, **options).to("meta")
    for tag, entry in ARCHS[variant].items():
        arch = net.space.from_json(entry["arch"])
        counted = cost(net.space.plan(arch))
        assert counted.macs == entry["macs"], tag
        # The original also counts positions that are not there.
        positions = 0 if options.get("abs_pos", True) else 197 * arch["embed_dim"][0]
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
    tiny: supernet.Supernet, golden: dict[str, Any], mistake: str, overrides: dict[str, Any], least: float
) -> None:
    name, options = VARIANTS["tiny"]
    net = supernet.build(name, **{**options, **overrides}).double().eval()
    right = tiny.net.state_dict()
    table = {"no relative position on keys": "key_table", "no relative position on values": "value_table"}.get(mistake)
    with torch.no_grad():
        for key, parameter in net.net.named_parameters():
            same = parameter.shape == right[key].shape
            parameter.copy_(right[key] if same else right[key].unflatten(0, (-1, 3)).T)
            if table and table in key:
                parameter.zero_()
    assert error(net, golden, "tiny", "rand00") > least
