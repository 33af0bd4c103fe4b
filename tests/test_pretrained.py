"""Checkpoint files of the original codes: read to the last digit, refused by name, and never run."""

from __future__ import annotations

import builtins
import collections
import json
import math
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
import torch
from torch import Tensor

import supernet
from supernet import UserError, pretrained
from supernet.pretrained import import_weights, load_pretrained
from supernet.pretrained.files import read_weights
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


def test_files_that_hold_themselves(tmp_path: Path) -> None:
    """Wrappers are taken off, a few deep; a dictionary inside itself has no end of them."""
    state = {"w": torch.ones(2)}
    for depth in range(4):
        weights = read_weights(saved(tmp_path / f"deep{depth}", state))
        assert weights.tensors["w"].tolist() == [1.0, 1.0]
        state = {"model" if depth % 2 else "state_dict": state}
    assert read_weights(saved(tmp_path / "deep", state)).tensors.keys() == {"w"}
    refused(saved(tmp_path / "deeper", {"model": state}), "more than 4 deep")
    for keys in (("state_dict",), ("model", "state_dict")):
        own: dict[str, Any] = {"w": torch.ones(2)}
        inner = own
        for key in keys[1:]:
            inner[key] = inner = {}
        inner[keys[0]] = own
        for options in ({}, {"_use_new_zipfile_serialization": False}):
            refused(saved(tmp_path / "own", own, **options), "inside one another", "save its state_dict alone")


def test_names_with_many_prefixes(tmp_path: Path) -> None:
    """Parallel training writes one or two; each pass over names of many would cost their whole length."""
    weights = read_weights(saved(tmp_path / "four", {"module." * 4 + "w": torch.ones(2)}))
    assert weights.tensors.keys() == {"w"}
    refused(saved(tmp_path / "five", {"module." * 5 + "w": torch.ones(2)}), "none of the known codes", "module.w")


GIANT = 10**10  # classes, channels: 50 TB of weights


@pytest.fixture
def little_memory() -> Iterator[None]:
    """At most 2 GB more than this process has mapped now."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2 * 2**30, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("key", "giant"),
    [
        ("classifier.linear.weight", torch.zeros(()).expand(GIANT, 1280)),
        ("classifier.linear.bias", torch.zeros(1).expand(GIANT)),
        ("first_conv.conv.weight", torch.zeros(()).expand(16, GIANT, 3, 3)),
        ("first_conv.conv.weight", torch.zeros(16, 1, 3, 3).expand(16, 2, 3, 3)),
        ("blocks.3.conv.point_linear.conv.conv.weight", torch.zeros(7).as_strided((24, 72, 1, 1), (0, 0, 1, 1))),
        ("anything", torch.zeros(2, 1).expand(2, GIANT)),
    ],
)
def test_tensors_that_the_file_does_not_hold(
    key: str, giant: Tensor, legacy: bool, tmp_path: Path, little_memory: None
) -> None:
    """A stride of 0 makes any size of a single value; nothing may be allocated for it."""
    state = changed(empty_state("ofa_mbv3"), **{key: giant})
    path = saved(tmp_path / "file", state, _use_new_zipfile_serialization=not legacy)
    assert path.stat().st_size < 2**24
    refused(path, f": {key} of its state dict: larger than")
    refused(path, f": {key} of its state dict: larger than", family="ofa_mbv3")


def test_shapes_are_compared_before_memory_is_taken(
    tmp_path: Path, little_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes that a file holds are small, but ask for networks that are not."""
    rows = torch.zeros(2**20, dtype=torch.uint8)
    state = empty_state("ofa_mbv3")
    wide = changed(state, classifier__linear__weight=rows.view(2**20, 1), classifier__linear__bias=rows)
    refused(saved(tmp_path / "classes", wide), "[1048576, 1] where [1048576, 1280] is needed")
    deep = changed(state, first_conv__conv__weight=rows.view(16, 2**16, 1, 1))
    refused(saved(tmp_path / "channels", deep), "[16, 65536, 1, 1] where [16, 65536, 3, 3] is needed")
    none = changed(state, classifier__linear__weight=torch.zeros(2**62, 0))
    refused(saved(tmp_path / "none", none), "lacks classifier.linear.weight")
    path = saved(tmp_path / "file", changed(state, extra=rows))
    monkeypatch.setattr(pretrained, "Supernet", None)  # it takes the memory
    refused(path, "unknown tensors extra")
    refused(saved(tmp_path / "file", state), "wrong shapes", "classifier.linear.bias", num_classes=10**9)


# What must never run -------------------------------------------------------------------------------------------------


WRITER = """
import argparse, collections, enum, sys, torch
import numpy as np

class Config(dict):
    __getattr__ = dict.__getitem__
    def __setstate__(self, state):
        raise SystemExit("the file's class was run")

class Settings:
    def __init__(self):
        self.lr, self.nested = 0.1, Config(a=[1, Config(b=2)])
    def __setstate__(self, state):
        raise SystemExit("the file's class was run")

class Mode(enum.Enum):
    TRAIN = 1

state = {"feature_mix_layer.conv.weight": torch.ones(3, 2), "first_conv.bn.bias": torch.arange(4.0)}
around = {
    "args": Config(lr=0.1, steps=[1, 2], inner=Config()), "settings": Settings(), "mode": Mode.TRAIN, "hook": len,
    "space": argparse.Namespace(width=3, config=Config()), "best": np.float64(0.75), "shape": torch.Size([1]),
    "parts": (Settings(), {"x": Settings}), "array": np.arange(3), "kind": np.dtype("float32"),
}
torch.save({"epoch": 3, "state_dict": state, **around}, sys.argv[1])
torch.save({"state_dict": Config(state)}, sys.argv[2])
"""


def test_configuration_objects_are_dropped_and_weights_read(tmp_path: Path) -> None:
    """Classes that exist only where the file was made: this process cannot import them, and must not need to."""
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    paths = [tmp_path / "a.pth.tar", tmp_path / "b.pth.tar"]
    subprocess.run([sys.executable, str(script), *map(str, paths)], check=True)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(paths[0], weights_only=True)
    registered = torch.serialization.get_safe_globals()
    weights = read_weights(paths[0])
    assert torch.serialization.get_safe_globals() == registered
    assert {key: tensor.tolist() for key, tensor in weights.tensors.items()} == {
        "feature_mix_layer.conv.weight": [[1.0, 1.0]] * 3,
        "first_conv.bn.bias": [0.0, 1.0, 2.0, 3.0],
    }
    assert {"epoch", "args", "settings", "mode", "hook", "space", "best", "array"} <= set(weights.entries)
    assert {"__main__.Config", "__main__.Settings", "argparse.Namespace"} <= set(weights.objects)
    wrapped = read_weights(paths[1]).tensors  # a state dict that is itself an object of the file's own class
    assert all(torch.equal(weights.tensors[key], wrapped[key]) for key in weights.tensors)
    assert weights.tensors.keys() == wrapped.keys()


class Attack:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def attacks(marker: Path) -> dict[str, Attack]:
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "system": Attack(os.system, f"touch {marker}"),
        "eval": Attack(builtins.eval, code),
        "exec": Attack(builtins.exec, code),
        "open": Attack(builtins.open, str(marker), "w"),
        "run": Attack(subprocess.check_call, ["touch", str(marker)]),
        "popen": Attack(subprocess.Popen, ["touch", str(marker)]),
        "getattr": Attack(getattr, Attack(__import__, "os"), "system"),
        "touch": Attack(Path.touch, marker),
        "load": Attack(pickle.loads, pickle.dumps(Attack(os.system, f"touch {marker}"))),
        "inside": Attack(repr, Attack(eval, code)),
    }


@pytest.mark.parametrize("name", list(attacks(Path("marker"))))
@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_cannot_run_code(name: str, legacy: bool, tmp_path: Path) -> None:
    """It is refused, or its weights are read without the call; the marker that the call would leave is not there."""
    marker, path = tmp_path / "marker", tmp_path / "file"
    attack = attacks(marker)[name]
    for content in (
        {"args": attack, "state_dict": {"w": torch.ones(2)}},
        {"state_dict": {"w": torch.ones(2), "x": attack}},
        {"state_dict": attack},
        attack,
    ):
        saved(path, content, _use_new_zipfile_serialization=not legacy)
        with suppress(UserError):
            weights = read_weights(path)
            assert weights.tensors["w"].tolist() == [1.0, 1.0]
            assert weights.objects
        assert not marker.exists()


@pytest.mark.parametrize("name", ["system", "eval", "exec", "run", "load", "inside"])
def test_the_same_files_run_code_in_a_reader_that_trusts_them(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "file", {"args": attacks(tmp_path / "marker")[name]})
    torch.load(path, weights_only=False)
    assert (tmp_path / "marker").exists()


def test_calls_that_the_reader_allows_get_no_further(tmp_path: Path) -> None:
    """PyTorch's own constructors call what they are given; what a file can give them is inert."""
    marker = tmp_path / "marker"
    rebuild = Attack(torch._tensor._rebuild_from_type_v2, eval, torch.Tensor, (f"open({str(marker)!r}, 'w')",), {})
    with pytest.raises(UserError):
        read_weights(saved(tmp_path / "file", {"x": rebuild, "state_dict": {"w": Attack(eval, "1")}}))
    assert not marker.exists()
    hook = collections.OrderedDict(w=torch.ones(2))
    hook.get = len  # type: ignore[method-assign, assignment]  # attributes travel with the object
    assert read_weights(saved(tmp_path / "hooked", {"state_dict": hook})).tensors["w"].tolist() == [1.0, 1.0]
