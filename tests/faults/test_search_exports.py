"""Exported subnets that were damaged or edited since they were written, and exports that fail half-way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest
import torch
from images import NoisyImages
from tiny import tiny_space

from supernet import export
from supernet.data import Data
from supernet.errors import UserError
from supernet.evaluate import calibrated_subnet
from supernet.net import Supernet
from supernet.space import load_space


def exported(folder: Path) -> Path:
    torch.manual_seed(0)
    net, data = Supernet(tiny_space()), cast(Data, NoisyImages())
    arch = net.space.smallest()
    subnet = calibrated_subnet(net, arch, data, 32)
    images = data.evaluation("val", net.space.resolution(arch))[0][0]
    export.export(subnet, arch, net, folder / "subnet", data.info, images, {"val": 1.5}, {})
    return folder / "subnet"


def test_every_flipped_bit_of_weights_is_noticed(tmp_path: Path) -> None:
    file = exported(tmp_path) / "model.safetensors"
    whole = bytearray(file.read_bytes())
    for at in [*range(0, len(whole), len(whole) // 97), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"damaged export|do not fit the arch") as caught:
            export.load_subnet(tmp_path / "subnet")
        assert len(str(caught.value).splitlines()) == 1
    file.write_bytes(whole)
    export.load_subnet(tmp_path / "subnet")


def test_a_configuration_may_be_edited_where_it_decides_nothing(tmp_path: Path) -> None:
    file = exported(tmp_path) / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "classes": ["cat", "dog", "cow", "hen"], "metrics": {}}))
    export.load_subnet(tmp_path / "subnet")
    file.write_text(json.dumps({key: value for key, value in config.items() if key != "sha256"}))
    export.load_subnet(tmp_path / "subnet")  # as an older version wrote it
    stem = {**config["space"]["stem"], "act": "relu"}  # other numbers from the same weights
    assert stem != config["space"]["stem"]
    file.write_text(json.dumps({**config, "space": {**config["space"], "stem": stem}}))
    with pytest.raises(UserError, match="damaged export"):
        export.load_subnet(tmp_path / "subnet")


def test_a_described_network_gets_no_memory_that_its_file_does_not_fill(tmp_path: Path) -> None:
    file = exported(tmp_path) / "config.json"
    config = json.loads(file.read_text())
    widths = [2**20]
    huge = {**config["space"], "stem": {**config["space"]["stem"], "width": widths}, "head": {"width": widths}}
    stages = [{**stage, "width": widths} for stage in huge["stages"]]
    space = load_space({**huge, "stages": stages})  # terabytes
    assert space.plan(space.smallest()).params > 2**42
    file.write_text(json.dumps({**config, "space": space.config, "arch": space.smallest().to_json()}))
    with pytest.raises(UserError, match="do not fit the arch"):
        export.load_subnet(tmp_path / "subnet")


def test_an_older_export_is_there_until_the_new_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = exported(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise PermissionError(13, "Permission denied", str(target))
        return rename(self, target)

    def interrupted(*given: object) -> dict[str, float]:
        raise KeyboardInterrupt

    for owner, name, replaced, error in (
        (Path, "rename", refused, PermissionError),
        (export, "_verify", interrupted, KeyboardInterrupt),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, replaced)
            with pytest.raises(error):
                exported(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["subnet"]
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
