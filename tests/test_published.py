"""`python search.py` on checkpoint files published elsewhere: from the original file to an exported subnet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
import torch
import yaml

from search.runner import main
from supernet import UserError, load_subnet
from supernet.runs import config_dir
from supernet.space import Arch


class TrainingOptions:
    """Such as AttentiveNAS pickles beside its weights."""

    def __init__(self) -> None:
        self.epochs = 360


def content(family: str, state: dict[str, Any]) -> dict[str, Any]:
    """What the original code saves."""
    if family == "alphanet":
        parallel = {f"module.{key}": tensor for key, tensor in state.items()}
        return {"epoch": 359, "state_dict": parallel, "optimizer": {}, "args": TrainingOptions()}
    return {"model" if family.startswith("autoformer") else "state_dict": state}


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """The shipped configuration."""
    loaded: dict[str, Any] = yaml.safe_load((config_dir() / "search.yaml").read_text())
    algorithm = yaml.safe_load((config_dir() / "algorithm" / "evolution.yaml").read_text())
    shipped = {key: value for key, value in loaded.items() if key not in ("defaults", "hydra")}
    return {**shipped, "algorithm": algorithm, "runs_dir": str(tmp_path / "runs"), "device": "cpu"}


def exported(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "runs" / "pretrained").glob("*/search/*/subnet")
    return folder


@pytest.mark.parametrize(
    ("family", "case", "tolerance"),
    [
        ("ofa_mbv3", "ofa_mbv3", 1e-5),
        ("ofa_proxyless", "ofa_proxyless", 1e-5),
        ("ofa_resnet50", "ofa_resnet50", 1e-5),
        ("alphanet", "alphanet/random_02", 5e-5),
        ("autoformer_tiny", "autoformer_tiny", 1e-5),
    ],
)
def test_from_an_original_file_to_an_exported_subnet(
    config: dict[str, Any], family: str, case: str, tolerance: float, tmp_path: Path
) -> None:
    """Without data nothing is calibrated: the exported subnet computes what the original did, in fp32."""
    file, arch = tmp_path / "original.pth", tmp_path / "arch.json"
    torch.save(content(family, golden.original_state(family, tame=family == "alphanet")), file)
    arch.write_text(json.dumps(json.loads((golden.DATA / "original_archs.json").read_text())[case]))
    main({**config, "checkpoint": str(file), "arch": str(arch)})
    folder = exported(tmp_path)
    facts = json.loads((folder / "config.json").read_text())
    assert facts["num_classes"] == 1000
    assert facts["metrics"] == {}
    with np.load(golden.DATA / "original_logits.npz") as logits, torch.no_grad():
        expected = logits[case]
        actual = load_subnet(folder)(golden.images(2, facts["input"]["resolution"]).float())[:, ::8].numpy()
    assert np.abs(actual - expected).max() < tolerance * np.abs(expected).max()


def small_file(tmp_path: Path, classes: int = 10) -> Path:
    """OFA's file for another number of classes; weights of zeros will do."""
    shapes = {key: list(shape) for key, shape in golden.shapes("ofa_mbv3").items()}
    shapes["classifier.linear.weight"][0] = shapes["classifier.linear.bias"][0] = classes
    file = tmp_path / "small.pth"
    torch.save({key: golden.fill(key, shape) for key, shape in shapes.items()}, file)
    return file


def digits(**changes: Any) -> dict[str, Any]:
    section = yaml.safe_load((config_dir() / "data" / "digits.yaml").read_text())
    return {**section, "batch_size": 32, "seed": 0, **changes}


def test_a_search_needs_data(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="brings no data to search on: say data=imagenet"):
        main({**config, "checkpoint": str(small_file(tmp_path))})


def test_data_of_other_images_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has in_channels 1"):
        main({**config, "checkpoint": str(small_file(tmp_path)), "data": digits()})


def test_a_published_subnet_by_name(config: dict[str, Any], tmp_path: Path) -> None:
    main({**config, "checkpoint": str(small_file(tmp_path)), "arch": "ofa_lg_g8_8ms@160"})
    arch = json.loads((exported(tmp_path) / "arch.json").read_text())
    assert arch["resolution"] == 160
    with pytest.raises(UserError, match="alphanet_a4: that subnet is of space 'alphanet'"):
        main({**config, "checkpoint": str(small_file(tmp_path)), "arch": "alphanet_a4"})
    with pytest.raises(UserError, match=r"did you mean ofa_lg_g8_8ms"):
        main({**config, "checkpoint": str(small_file(tmp_path)), "arch": "ofa_lg_g8_9ms"})


def test_entries_of_the_space_can_be_replaced(config: dict[str, Any], tmp_path: Path) -> None:
    file = str(small_file(tmp_path))
    main({**config, "checkpoint": file, "arch": "smallest", "space": {"resolution": [64]}, "family": "ofa_mbv3"})
    assert json.loads((exported(tmp_path) / "arch.json").read_text())["resolution"] == 64
    with pytest.raises(UserError, match="not of family 'ofa_proxyless'"):
        main({**config, "checkpoint": file, "arch": "smallest", "family": "ofa_proxyless"})


def test_statistics_are_kept_only_where_there_are_some(config: dict[str, Any], tmp_path: Path) -> None:
    """With data, a published subnet is calibrated like any other; 0 images keep the file's statistics."""
    from supernet import load_supernet
    from supernet.evaluate import calibrated_subnet

    net = load_supernet(small_file(tmp_path))
    arch: Arch = net.space.smallest()
    kept: Any = calibrated_subnet(net, arch, None, 0)
    assert torch.equal(kept.stem.norm.running_mean, net.net.stem.norm.running_mean)  # type: ignore[union-attr]
    assert not kept.training
