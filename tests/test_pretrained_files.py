"""Checkpoint files that were made to do harm: they end in one line, take no memory and run nothing."""

from __future__ import annotations

import builtins
import collections
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pretrained import changed, empty_state, refused, saved
from torch import Tensor

from supernet import UserError, pretrained
from supernet.pretrained.files import read_weights

# What has no end, or no bounds ---------------------------------------------------------------------------------------


def test_files_that_hold_themselves(tmp_path: Path) -> None:
    """Wrappers are taken off, a few deep; a dictionary inside itself has no end of them."""
    state: dict[str, Any] = {"w": torch.ones(2)}
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
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("reads in /proc how much memory is mapped")
    mapped = int(statm.read_text().split()[0]) * resource.getpagesize()
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
    refused(saved(tmp_path / "file", state), "wrong shapes", "classifier.linear.bias", num_classes=10**6)


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
    registered = set(torch.serialization.get_safe_globals())
    weights = read_weights(paths[0])
    assert set(torch.serialization.get_safe_globals()) == registered
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
