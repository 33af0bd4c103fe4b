"""Checkpoint files of the original codes: read to the last digit, and refused by name where they do not fit."""

from __future__ import annotations

import collections
import json
import math
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
import torch
from torch import Tensor

import supernet
from supernet import UserError
from supernet.pretrained import import_weights, load_pretrained
from supernet.space import Arch

MISSING = object()


def empty_state(family: str) -> dict[str, Tensor]:
    """The right names and shapes, cheaply: all tensors look at the same zeros, which a file holds once."""
    sizes = {key: math.prod(shape) for key, shape in golden.shapes(family).items()}
    zeros = torch.zeros(max(sizes.values()))
    return {key: zeros[: sizes[key]].view(shape) for key, shape in golden.shapes(family).items()}


@pytest.fixture(scope="module")
def alphanet() -> dict[str, Tensor]:
    return golden.original_state("alphanet", tame=True)


@pytest.fixture(scope="module")
def mobile() -> dict[str, Tensor]:
    return golden.original_state("ofa_mbv3")


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def original_arch(net: supernet.Supernet, family: str) -> Arch:
    return net.space.from_json(json.loads((golden.DATA / "original_archs.json").read_text())[family])


def original_logits(name: str) -> np.ndarray:
    """Every eighth class, fp64 [2, 125]."""
    with np.load(golden.DATA / "original_logits.npz") as file:
        logits: np.ndarray = file[name]
    return logits


def worst(net: supernet.Supernet, arch: Arch, expected: np.ndarray) -> float:
    """The largest difference from every eighth logit of the original, relative to the largest of them; fp64."""
    with torch.no_grad():
        logits = net.double().eval()(golden.images(2, net.space.resolution(arch)), arch)
    return golden.relative_error(logits, expected)


def same_weights(a: supernet.Supernet, b: supernet.Supernet) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# What the original computes ----------------------------------------------------------------------------------------


def test_alphanet_as_published(alphanet: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parallel = {f"module.{key}": tensor for key, tensor in alphanet.items()}
    content = {"epoch": 360, "state_dict": parallel, "optimizer": {"state": {}, "param_groups": []}}
    net = load_pretrained(saved(tmp_path / "alphanet.pth.tar", content))
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "666 statistics" in line
    assert "30 shortcut" in line
    assert "epoch, optimizer" in line
    for name in ("alphanet/min", "alphanet/random_02"):
        assert worst(net, original_arch(net, name), original_logits(name)) < 1e-9, name


@pytest.mark.parametrize(
    ("family", "tolerance"),
    [("ofa_mbv3", 1e-9), ("ofa_proxyless", 1e-9), ("ofa_resnet50", 1e-9), ("autoformer_tiny", 1e-6)],
)
def test_logits_of_a_file_in_the_original_layout(family: str, tolerance: float, tmp_path: Path) -> None:
    """AutoFormer's original computes GELU in fp32."""
    wrapper = "model" if family.startswith("autoformer") else "state_dict"
    imported = import_weights(saved(tmp_path / "file", {wrapper: golden.original_state(family)}))
    assert imported.family == family
    arch = original_arch(imported.net, family)
    expected = original_logits(family)
    assert worst(imported.net, arch, expected) < tolerance
    subnet = imported.net.extract(arch)  # running statistics come along
    with torch.no_grad():
        logits = subnet(golden.images(2, imported.net.space.resolution(arch)))
    assert golden.relative_error(logits, expected) < tolerance


@pytest.mark.parametrize("family", ["ofa_mbv3_w12", "autoformer_small", "autoformer_base"])
def test_recognised_by_shapes(family: str, tmp_path: Path) -> None:
    imported = import_weights(saved(tmp_path / "file", empty_state(family)))
    assert (imported.family, imported.left_out) == (family, "")


def test_bare_and_wrapped_and_legacy_files_are_the_same(mobile: dict[str, Tensor], tmp_path: Path) -> None:
    plain = load_pretrained(saved(tmp_path / "bare", mobile))
    old_zip = {"_use_new_zipfile_serialization": False}
    for i, (content, options) in enumerate(
        [
            ({"state_dict": mobile}, {}),
            (collections.OrderedDict((f"module.{key}", tensor) for key, tensor in mobile.items()), {}),
            ({"state_dict": mobile}, old_zip),
            ({"state_dict": {key: torch.nn.Parameter(t) if t.ndim else t for key, t in mobile.items()}}, {}),
        ]
    ):
        assert same_weights(plain, load_pretrained(saved(tmp_path / f"file{i}", content, **options))), i


def test_older_spelling_of_once_for_all(mobile: dict[str, Tensor], tmp_path: Path) -> None:
    """The block's body had another name, and fixed layers said conv, bn and linear twice."""
    old = {}
    for key, tensor in mobile.items():
        if key.startswith("blocks."):
            key = key.replace(".conv.", ".mobile_inverted_conv.", 1)
        if key.startswith(("first_conv.", "blocks.0.", "classifier.")):
            key = key.replace(".bn.", ".bn.bn.").replace(".conv.weight", ".conv.conv.weight")
            key = key.replace(".linear.", ".linear.linear.")
        old[key] = tensor
    assert len(set(old) - set(mobile)) > 400
    now, then = (load_pretrained(saved(tmp_path / name, state)) for name, state in (("now", mobile), ("then", old)))
    assert same_weights(now, then)


def test_numbers_of_classes_and_channels_are_those_of_the_file(mobile: dict[str, Tensor], tmp_path: Path) -> None:
    state = {**mobile, "classifier.linear.weight": torch.rand(7, 1280), "classifier.linear.bias": torch.rand(7)}
    state["first_conv.conv.weight"] = torch.rand(16, 1, 3, 3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    net = load_pretrained(saved(tmp_path / "file", state), "ofa_mbv3", resolution=[160])
    assert torch.equal(torch.get_rng_state(), before)
    assert net(torch.rand(2, 1, 32, 32), net.space.smallest()).shape == (2, 7)
    assert net.space.largest()["resolution"] == 160


def test_counters_of_batches_may_be_missing(mobile: dict[str, Tensor], tmp_path: Path) -> None:
    old = {key: tensor for key, tensor in mobile.items() if not key.endswith("num_batches_tracked")}
    assert same_weights(load_pretrained(saved(tmp_path / "a", mobile)), load_pretrained(saved(tmp_path / "b", old)))


def test_autoformer_takes_q_k_and_v_apart_and_leaves_the_bias_flat(tmp_path: Path) -> None:
    state = empty_state("autoformer_tiny")
    rows = torch.arange(768.0)
    state["blocks.3.attn.qkv.weight"] = rows[:, None] + torch.arange(256) / 1024
    state["blocks.3.attn.qkv.bias"] = rows
    path = saved(tmp_path / "file", {"model": state})
    net = load_pretrained(path, "autoformer_tiny", num_heads=[3])
    attention = net.get_submodule("net.blocks.3.attention")
    weight, bias = attention.get_parameter("qkv"), attention.get_parameter("qkv_bias")
    assert weight.shape == (3, 192, 240)  # the first 3 of 4 heads, the widest embedding
    for part in range(3):
        assert torch.equal(weight[part, :, 0], rows[part::3][:192])
    assert torch.equal(weight[1, 5], 16.0 + torch.arange(240) / 1024)
    assert torch.equal(bias, rows[:576])
    fixed = load_pretrained(path, "autoformer_tiny", qkv="fixed", num_heads=[4])
    weight = fixed.get_submodule("net.blocks.3.attention").get_parameter("qkv")
    assert torch.equal(weight[:, :, 0].flatten(), rows)  # that variant of the original does not interleave


# What does not fit ---------------------------------------------------------------------------------------------------


def refused(path: Path, *words: str, family: str | None = None, **overrides: Any) -> None:
    with pytest.raises(UserError) as error:
        load_pretrained(path, family, **overrides)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message, message


def changed(state: dict[str, Tensor], **changes: Any) -> dict[str, Tensor]:
    """`state` with entries replaced or taken out; dots in names are written as two underscores."""
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in {**state, **named}.items() if value is not MISSING}


def test_wrong_family(mobile: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved(tmp_path / "file", mobile)
    refused(path, "'alphanet'", "ofa_mbv3", family="alphanet")
    refused(path, "'ofa_mbv3_w12'", "are those of ofa_mbv3", family="ofa_mbv3_w12")
    with pytest.raises(UserError, match="ofa_mbv3"):
        load_pretrained(path, "ofa_mbv4")
    small = saved(tmp_path / "small", {"model": empty_state("autoformer_small")})
    refused(small, "are those of autoformer_small", family="autoformer_tiny")
    refused(path, "does not fit 'mbv3_tiny'", family="mbv3_tiny")


@pytest.mark.parametrize("family", ["alphanet", "ofa_mbv3", "ofa_proxyless", "ofa_resnet50", "autoformer_tiny"])
def test_every_tensor_is_needed_but_those_left_out_knowingly(family: str, tmp_path: Path) -> None:
    """Each missing tensor is named in the original's spelling; alone, or with four others and the number of more."""
    state = empty_state(family)
    key = next(key for key in state if "blocks.3." in key and key.endswith("weight"))
    refused(saved(tmp_path / "one", changed(state, **{key: MISSING})), f"it lacks {key}")
    dropped = [key for key in state if key.startswith("blocks.2.") and "_tracking" not in key and "num_" not in key]
    dropped = [key for key in dropped if family != "alphanet" or "shortcut" in key or "mobile" in key]
    rest = {key: tensor for key, tensor in state.items() if key not in dropped}
    refused(saved(tmp_path / "many", rest), "it lacks ", f" and {len(dropped) - 5} more")


def test_unknown_and_misshapen_tensors(mobile: dict[str, Tensor], tmp_path: Path) -> None:
    zero = torch.zeros(1)
    refused(saved(tmp_path / "a", changed(mobile, extra__weight=zero)), "unknown tensors extra.weight")
    many = {f"blocks__{30 + i}__conv__x": zero for i in range(9)}
    refused(saved(tmp_path / "b", changed(mobile, **many)), "blocks.34.conv.x and 4 more")
    refused(
        saved(tmp_path / "c", changed(mobile, final_expand_layer__conv__weight=torch.zeros(960, 161, 1, 1))),
        "final_expand_layer.conv.weight [960, 161, 1, 1] where [960, 160, 1, 1] is needed",
    )
    first = changed(mobile, first_conv__conv__weight=torch.zeros(17, 3, 3, 3))
    refused(saved(tmp_path / "d", first), "[17, 3, 3, 3]", "give family=")
    refused(saved(tmp_path / "e", changed(mobile, classifier__linear__weight=MISSING)), "classifier.linear.weight")
    twice = changed(mobile, first_conv__bn__bn__bias=torch.zeros(16))
    refused(saved(tmp_path / "f", twice), "several names", "first_conv.bn.bias")
    refused(saved(tmp_path / "g", mobile), "wrong shapes", "classifier.linear.bias", num_classes=10)
    refused(saved(tmp_path / "h", {"weight": zero}), "none of the known codes", "weight")


@pytest.mark.parametrize(
    ("override", "word"),
    [({"num_classes": 10}, "head.weight"), ({"resolution": [112]}, "pos_embed"), ({"relative_position": 7}, "table")],
)
def test_autoformer_is_narrowed_only_where_subnets_are(override: dict[str, Any], word: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "file", {"model": empty_state("autoformer_tiny")})
    refused(path, "wrong shapes", word, **override)


def test_files_that_are_no_checkpoints(mobile: dict[str, Tensor], tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "does not exist")
    refused(tmp_path, "is not a file")
    (tmp_path / "text").write_text("once upon a time")
    refused(tmp_path / "text", "cannot be read")
    (tmp_path / "empty").touch()
    refused(tmp_path / "empty", "cannot be read")
    refused(saved(tmp_path / "list", [1, 2]), "no state dict")
    refused(saved(tmp_path / "numbers", {"state_dict": {"epoch": 3}}), "no state dict")
    refused(saved(tmp_path / "mixed", {"state_dict": {**mobile, "best": 3.0}}), "best", "not plain real tensors")
    refused(saved(tmp_path / "complex", changed(mobile, x=torch.zeros(1, dtype=torch.cfloat))), "x of its state dict")
    for name, options in (("zip", {}), ("legacy", {"_use_new_zipfile_serialization": False})):
        whole = saved(tmp_path / name, mobile, **options).read_bytes()
        for length in (len(whole) // 2, len(whole) - 100, 1000):
            (tmp_path / "cut").write_bytes(whole[:length])
            refused(tmp_path / "cut", "damaged")
    flipped = bytearray((tmp_path / "zip").read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (tmp_path / "flipped").write_bytes(flipped)
    refused(tmp_path / "flipped", "damaged")
