"""Exported folders: what is written is what was scored, and a broken one says so."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import images, randomise
from safetensors.torch import load_file, save_file
from tiny import tiny_space
from torch import nn

import supernet.export
from supernet import Arch, Supernet, UserError, calibrate, load_subnet
from supernet.data.base import DataInfo, resize

INFO = DataInfo("toy", 4, ("a", "b", "c", "d"), 3, 12, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), (8, 12))
BLOCKED = ["hydra", "omegaconf", "timm", "torchvision", "wandb", "sklearn", "matplotlib", "rich", "scipy"]
BLOCKED += ["PIL", "pandas", "onnx", "onnxscript", "search", "numpy"]


class Case:
    """A supernet, one calibrated subnet of it, and images at another side than the subnet's."""

    def __init__(self, **overrides: Any) -> None:
        self.net = Supernet(tiny_space(**overrides))
        randomise(self.net)
        self.arch: Arch = self.net.space.from_json(
            {**self.net.space.largest().to_json(), "resolution": 8, "depth": [2, 2]}
        )
        channels = self.net.space.config["in_channels"]
        self.images = images(6, 12, channels=channels)
        batches = [images(16, 8, seed, channels) for seed in (1, 2)]
        self.subnet = calibrate(self.net.extract(self.arch), batches)

    def export(self, folder: Path, **changes: Any) -> dict[str, Any]:
        arguments = {"subnet": self.subnet, "arch": self.arch, "net": self.net, "folder": folder, "data": INFO}
        arguments |= {"images": self.images, "metrics": {"test": 99.0}, "provenance": {"run": "r"}}
        return supernet.export.export(**{**arguments, **changes})


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


@pytest.fixture(scope="module")
def exported(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "subnet"
    case.export(folder)
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(exported, tmp_path / "subnet"))


def test_round_trip(case: Case, tmp_path: Path) -> None:
    differences = case.export(tmp_path / "new" / "subnet")
    assert differences == {"calibrated": 0.0, "supernet": 0.0}
    loaded = load_subnet(tmp_path / "new" / "subnet")
    x = resize(case.images, 8)
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(x), case.subnet(x))
        case.net.train()
        assert torch.equal(loaded.train()(x), case.net(x, case.arch))


def test_what_is_written(case: Case, exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {"arch.json", "config.json", "model.safetensors"}
    config = json.loads((exported / "config.json").read_text())
    plan = case.net.space.plan(case.arch)
    assert json.loads((exported / "arch.json").read_text()) == config["arch"] == case.arch.to_json()
    assert (config["macs"], config["params"]) == (plan.macs, plan.params)
    assert config["classes"] == ["a", "b", "c", "d"]
    assert config["input"] == {"channels": 3, "resolution": 8, "mean": [0.5] * 3, "std": [0.2] * 3}
    assert config["metrics"] == {"test": 99.0}
    assert config["provenance"] == {"run": "r"}
    weights = load_file(exported / "model.safetensors")
    parameters = [v for k, v in weights.items() if "running" not in k and "tracked" not in k]
    assert sum(v.numel() for v in parameters) == plan.params


@pytest.mark.parametrize("training", [True, False])
def test_export_changes_neither_network(case: Case, tmp_path: Path, training: bool) -> None:
    case.net.train(training)
    states = [{k: v.clone() for k, v in n.state_dict().items()} for n in (case.net, case.subnet)]
    case.export(tmp_path)
    for network, before in zip((case.net, case.subnet), states, strict=True):
        assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert case.net.training == training


def test_channels_last(tmp_path: Path) -> None:
    case = Case(in_channels=1)
    case.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    subnet = calibrate(case.net.extract(case.arch), [images(16, 8, 1, channels=1)])
    assert case.export(tmp_path, subnet=subnet) == {"calibrated": 0.0, "supernet": 0.0}


@pytest.mark.parametrize(
    "overrides", [{"shortcut": "always"}, {"choose": "block"}, {"head": {"width": [16], "expand": 2}}]
)
def test_other_kinds_of_space(overrides: dict[str, Any], tmp_path: Path) -> None:
    net = Supernet(tiny_space(**overrides))
    for arch in (net.space.smallest(), net.space.largest()):
        subnet = calibrate(net.extract(arch), [images(8, net.space.resolution(arch))])
        differences = supernet.export.export(subnet, arch, net, tmp_path, INFO, images(4, 12), {}, {})
        assert differences == {"calibrated": 0.0, "supernet": 0.0}


def test_a_subnet_of_one_arch_alone(case: Case, tmp_path: Path) -> None:
    """As trained by itself: the space is restricted to it."""
    net = Supernet(case.net.space.only(case.arch))
    subnet = calibrate(net.extract(case.arch), [images(8, 8)])
    supernet.export.export(subnet, case.arch, net, tmp_path, INFO, case.images, {}, {})
    with torch.no_grad():
        assert torch.equal(load_subnet(tmp_path)(images(2, 8)), subnet(images(2, 8)))


def test_a_reloaded_file_that_differs_is_an_error(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path) -> nn.Module:
        subnet: Any = load_subnet(folder)
        with torch.no_grad():
            subnet.head.classifier.bias[2] += 0.25
        return subnet

    monkeypatch.setattr(supernet.export, "load_subnet", broken)
    with pytest.raises(UserError, match=r"differs from the calibrated subnet by up to 0\.25"):
        case.export(tmp_path)


def test_a_subnet_that_is_not_the_supernets_is_an_error(case: Case, tmp_path: Path) -> None:
    subnet: Any = calibrate(case.net.extract(case.arch), [images(16, 8, 1)])
    with torch.no_grad():
        subnet.head.classifier.bias[2] += 0.5
    with pytest.raises(UserError, match=r"differs from the supernet's subnet by up to 0\.5"):
        case.export(tmp_path, subnet=subnet)


def test_not_a_number_is_an_error(case: Case, tmp_path: Path) -> None:
    subnet: Any = calibrate(case.net.extract(case.arch), [images(16, 8, 1)])
    with torch.no_grad():
        subnet.head.classifier.bias[2] = float("nan")
    with pytest.raises(UserError, match="differs from"):
        case.export(tmp_path, subnet=subnet)


def test_unknown_formats(case: Case, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tflite"):
        case.export(tmp_path / "x", formats=["tflite"])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        load_subnet(folder)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not an exported subnet"):
        load_subnet(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_truncated_files(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    for length in (0, 7, len(content) // 2):
        (folder / name).write_bytes(content[:length])
        with pytest.raises(UserError, match="damaged"):
            load_subnet(folder)
    (folder / name).write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="damaged"):
        load_subnet(folder)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "does not describe an exported subnet"),
        ({"format": None}, "does not describe an exported subnet"),
        ({"version": 99}, "newer version"),
        ({"version": None}, "damaged|does not describe"),
        ({"version": "x"}, "damaged|does not describe"),
        ({"space": None}, "damaged|does not describe"),
        ({"arch": None}, "damaged|does not describe"),
        ({"arch": {"resolution": 8}}, "has the keys"),
        ({"space": {"_target_": "os.system"}}, "not allowed"),
        ({"space": {"_target_": "supernet.models.mbconv.space", "name": "x"}}, "value is required"),
    ],
)
def test_foreign_configs(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(UserError, match=message):
        load_subnet(folder)


def test_config_that_is_no_mapping(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="does not describe"):
        load_subnet(folder)


def test_weights_of_another_arch(case: Case, folder: Path) -> None:
    edit(folder, arch=case.net.space.smallest().to_json())
    with pytest.raises(UserError, match="weights do not fit"):
        load_subnet(folder)
    weights = load_file(folder / "model.safetensors")
    edit(folder, arch=case.arch.to_json())
    save_file({k: v for k, v in weights.items() if k != "stem.conv.weight"}, folder / "model.safetensors")
    with pytest.raises(UserError, match="weights do not fit"):
        load_subnet(folder)


def test_loading_needs_torch_and_safetensors_only(case: Case, exported: Path, tmp_path: Path) -> None:
    """In a process where importing anything else fails."""
    program = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError("blocked: " + name, name=name)

sys.meta_path.insert(0, Blocked())
import torch
from supernet import load_subnet
x = torch.load({str(tmp_path / "x.pt")!r}, weights_only=True)
with torch.no_grad():
    torch.save(load_subnet({str(exported)!r})(x), {str(tmp_path / "y.pt")!r})
"""
    x = resize(case.images, 8)
    torch.save(x, tmp_path / "x.pt")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "y.pt", weights_only=True), case.subnet(x))


def test_pt2(case: Case, tmp_path: Path) -> None:
    differences = case.export(tmp_path, formats=["pt2"])
    assert differences["pt2"] < 1e-5
    program = torch.export.load(tmp_path / "model.pt2").module()
    x = resize(images(3, 12, seed=5), 8)  # another batch size
    with torch.no_grad():
        torch.testing.assert_close(program(x), case.subnet(x))


def test_onnx(case: Case, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    onnxruntime = pytest.importorskip("onnxruntime")
    assert case.export(tmp_path, formats=["onnx"])["onnx"] < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    x = resize(images(3, 12, seed=5), 8)
    actual = session.run(None, {"images": x.numpy()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(actual), case.subnet(x), rtol=1e-4, atol=1e-4)
