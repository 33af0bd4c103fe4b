"""The named small datasets, their files, and what happens when files are missing or damaged."""

from __future__ import annotations

import gzip
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from supernet.data import cifar, digits, fashion_mnist
from supernet.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs" / "data"
COMMON: dict[str, Any] = {
    "batch_size": 16,
    "eval_batch_size": 100,
    "seed": 0,
    "split_seed": 0,
    "val_fraction": 0.1,
    "search_fraction": 0.1,
    "resolution": [12, 16],
}


def write_fashion_mnist(folder: Path, num: int = 100, packed: bool = True) -> None:
    """Files of `num` random images each in Fashion-MNIST's format; image i is of class i % 10."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (num, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        sizes = b"".join(n.to_bytes(4, "big") for n in (num, 28, 28))
        images = b"\0\0\x08\x03" + sizes + pixels.tobytes()
        labels = b"\0\0\x08\x01" + num.to_bytes(4, "big") + bytes(i % 10 for i in range(num))
        for name, content in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            path = folder / (name + ".gz" * packed)
            path.write_bytes(gzip.compress(content) if packed else content)


def test_digits() -> None:
    data = digits.load(**COMMON)
    assert data.info.size == 16
    assert data.info.num_classes == 10
    assert data.info.resolution == (12, 16)
    assert dict(data.sizes) == {"train": 1078, "val": 180, "search": 180, "test": 359}
    images = torch.cat([x for s in data.sizes for x, _ in data.evaluation(s, 16)])
    assert images.shape == (1797, 1, 16, 16)
    assert abs(images.mean()) < 0.02
    assert abs(images.std() - 1) < 0.02
    counts = torch.cat([t for _, t in data.evaluation("test", 16)]).bincount()
    assert counts.min() >= 34
    assert counts.max() <= 37


@pytest.mark.parametrize("split_seed", [0, 3])
def test_digits_are_normalised_by_their_training_images_alone(split_seed: int) -> None:
    data = digits.load(**COMMON | {"split_seed": split_seed})
    train = torch.cat(list(data.calibration(16, 1078))).double()
    assert len(train) == 1078
    std, mean = torch.std_mean(train, correction=0)
    assert abs(mean) < 2e-4  # rounded to four digits
    assert abs(std - 1) < 2e-4
    others = torch.cat([x for s in ("val", "search", "test") for x, _ in data.evaluation(s, 16)])
    assert abs(others.mean()) > 5e-4, "the other images are not normalised by themselves"


def test_digits_keep_their_native_size_when_asked() -> None:
    from sklearn.datasets import load_digits

    data = digits.load(size=8, **COMMON)
    images = torch.cat([x for s in data.sizes for x, _ in data.evaluation(s, 8)])
    levels = (images * data.info.std[0] + data.info.mean[0]) * 16
    total = torch.tensor(load_digits().images.sum() / 1797)
    torch.testing.assert_close(levels.double().sum((1, 2, 3)).mean(), total, rtol=1e-3, atol=0)


@pytest.mark.parametrize("layout", [".", "FashionMNIST/raw"])
@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_reads_both_layouts(tmp_path: Path, layout: str, packed: bool) -> None:
    write_fashion_mnist(tmp_path / "root" / layout, packed=packed)
    data = fashion_mnist.load(root=tmp_path / "root", **COMMON)
    assert dict(data.sizes) == {"train": 80, "val": 10, "search": 10, "test": 100}
    images, targets = data.evaluation("test", 28)[0]
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (100, 28, 28), dtype=np.uint8))
    read = ((images * 0.353 + 0.286) * 255).round().to(torch.uint8).squeeze(1)
    order = data._index["test"]
    assert torch.equal(read, pixels[order])
    assert torch.equal(targets, order % 10)


@pytest.mark.skipif(not fashion_mnist.DEBIAN_ROOT.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian() -> None:
    config: Any = OmegaConf.load(CONFIGS / "fashion_mnist.yaml")
    shares = {key: config[key] for key in ("val_fraction", "search_fraction")}
    data = fashion_mnist.load(root=fashion_mnist.DEBIAN_ROOT, **COMMON | shares)
    assert dict(data.sizes) == {"train": 50_000, "val": 5_000, "search": 5_000, "test": 10_000}
    for split in ("val", "search", "test"):
        counts = torch.cat([targets for _, targets in data.evaluation(split, 8)]).bincount()
        assert (counts == data.sizes[split] // 10).all()


def test_fashion_mnist_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz.*apt install dataset-fashion-mnist") as e:
        fashion_mnist.load(root=tmp_path, **COMMON)
    assert str(tmp_path / "FashionMNIST" / "raw") in str(e.value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_ROOT", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"into data/FashionMNIST/raw.*nowhere"):
        fashion_mnist.load(**COMMON)
    write_fashion_mnist(tmp_path / "data")
    assert fashion_mnist.load(**COMMON).sizes["test"] == 100


@pytest.mark.parametrize("damage", ["cut", "not gzip", "wrong header", "labels for images", "short"])
def test_fashion_mnist_damaged(tmp_path: Path, damage: str) -> None:
    write_fashion_mnist(tmp_path / "raw")
    path = tmp_path / "raw" / "train-images-idx3-ubyte.gz"
    content = gzip.decompress(path.read_bytes())
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "not gzip":
        path.write_bytes(b"<html>404</html>")
    elif damage == "wrong header":
        path.write_bytes(gzip.compress(b"\0\0\x0d" + content[3:]))
    elif damage == "short":
        path.write_bytes(gzip.compress(content[:-1]))
    else:
        path.write_bytes((tmp_path / "raw" / "train-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz .*download"):
        fashion_mnist.load(root=tmp_path / "raw", **COMMON)


def write_cifar10(root: Path) -> None:
    """Files of 20 random images each in the format of CIFAR-10; image i is of class i % 10."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        entry = {
            "data": rng.integers(0, 256, (20, 3072), dtype=np.uint8),
            "labels": [i % 10 for i in range(20)],
        }
        (folder / name).write_bytes(pickle.dumps(entry))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda path, md5: Path(path).exists())
    write_cifar10(tmp_path)
    data = cifar.load(root=tmp_path, **COMMON)
    assert data.info.name == "cifar10"
    assert data.info.class_names == tuple("abcdefghij")
    assert dict(data.sizes) == {"train": 80, "val": 10, "search": 10, "test": 20}
    images, _ = data.evaluation("test", 32)[0]
    last = pickle.loads((tmp_path / "cifar-10-batches-py" / "test_batch").read_bytes())
    expected = torch.from_numpy(last["data"]).view(20, 3, 32, 32)[data._index["test"]] / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.info.mean, data.info.std))
    torch.testing.assert_close(images * std + mean, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_classes", [10, 100])
def test_cifar_missing(tmp_path: Path, num_classes: int) -> None:
    folder = {10: "cifar-10-batches-py", 100: "cifar-100-python"}[num_classes]
    with pytest.raises(UserError, match=rf"{folder}.*data\.download=true"):
        cifar.load(num_classes=num_classes, root=tmp_path, **COMMON)
    with pytest.raises(UserError, match=r"data\.num_classes=20"):
        cifar.load(num_classes=20, **COMMON)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"size": 4}, r"data\.size=4"),
        ({"test_fraction": 1}, r"data\.test_fraction=1"),
        ({"test_fraction": 0.8}, r"data\.test_fraction=0\.8 leaves no training images"),
        ({"augment": {"shfit": 1}}, r"data\.augment\.shfit does not exist"),
    ],
)
def test_digits_bad_values(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        digits.load(**COMMON | changes)


def test_digits_config_loads_as_written() -> None:
    root = OmegaConf.create({"train": {"batch_size": 32}, "seed": 3, "data": OmegaConf.load(CONFIGS / "digits.yaml")})
    options: Any = OmegaConf.to_container(root, resolve=True)
    options["data"].pop("_target_")
    data = digits.load(**options["data"])
    assert next(data.train(0)).images.shape == (32, 1, 16, 16)
    assert data.info.resolution == (12, 16)


def test_importing_the_package_stays_light() -> None:
    heavy = ("torchvision", "sklearn", "timm", "PIL", "hydra", "omegaconf", "matplotlib", "rich")
    code = f"import sys, supernet.data; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
