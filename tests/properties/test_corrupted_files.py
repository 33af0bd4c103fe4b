"""Every file that is read, damaged at random: one clear line, or what was written; never code, never a traceback."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import Damage, Payload, damages, foreign_files
from families import refusal
from hypothesis import event, given
from hypothesis import strategies as st
from nets import images, randomise
from PIL import Image
from tiny import tiny_space
from tiny_run import assert_same

import supernet.export
from search.algorithm import Trial
from search.constraint import Constraint
from search.history import read_trials
from search.latency.model import LatencyModel
from supernet import Supernet, calibrate, checkpoint, load_subnet, load_supernet
from supernet.build import open_run, parse_arch
from supernet.cost import macs_of
from supernet.data import cifar, fashion_mnist
from supernet.data.base import DataInfo
from supernet.data.files import read_image
from supernet.pretrained.files import read_weights
from supernet.runs import plain, read_json, write_json

CPU = torch.device("cpu")
SPACE = tiny_space()
ARCH = SPACE.from_json({**SPACE.largest().to_json(), "resolution": 8, "depth": [2, 2]})
INFO = DataInfo("toy", 4, ("a", "b", "c", "d"), 3, 12, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), (8, 12))
SETUP = {"space": plain(SPACE.config), "weights": "0", "calibration_images": 8, "data": {}}
COSTS = Constraint().on(SPACE).costs
SECONDS = 20.0  # for one file, on a slow machine; none of these needs a hundredth of it


@dataclass(frozen=True)
class Kind:
    """A file, how it is read, and whether a checksum tells that what was read is what was written."""

    name: str
    content: bytes = field(repr=False)
    read: Callable[[Path], Any] = field(repr=False)
    sealed: bool = False


@dataclass(frozen=True)
class Files:
    """One whole file of every kind in `folder`; `touched` is there only if something was executed."""

    folder: Path
    kinds: dict[str, Kind] = field(repr=False)
    touched: Path

    def damaged(self, kind: Kind, damage: Callable[[bytes], bytes]) -> Path:
        path = self.folder / kind.name
        path.write_bytes(damage(kind.content))
        return path

    def restore(self, kind: Kind) -> None:
        (self.folder / kind.name).write_bytes(kind.content)


def _trials(folder: Path) -> bytes:
    from search.history import History

    path = folder / "trials.jsonl"
    history = History(path, SPACE, SETUP)
    for number, arch in enumerate((SPACE.smallest(), SPACE.largest())):
        history.append(Trial(arch, {"top1": 50.0 + number, "loss": 1.0, **COSTS(arch)}, 0.5))
    return path.read_bytes()


def _export(net: Supernet, folder: Path) -> Path:
    subnet = calibrate(net.extract(ARCH), [images(16, 8, seed) for seed in (1, 2)])
    supernet.export.export(subnet, ARCH, net, folder / "subnet", INFO, images(4, 12), {"test": 9.0}, {"run": "r"})
    return folder / "subnet"


def _picture(form: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def _idx(path: Path) -> Any:
    tensor = fashion_mnist.read_idx(path)
    assert tensor.dtype == torch.uint8
    return None


def _json(name: str, content: Any, read: Callable[[Path], Any]) -> Kind:
    return Kind(name, json.dumps(content, indent=2).encode(), read)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("files")
    net = Supernet(SPACE)
    randomise(net)
    state = {"space": plain(SPACE.config), "model": net.state_dict(), "config": {"seed": 3}, "step": 7}
    checkpoint.save(folder / "checkpoint.pt", state)
    torch.save(net.state_dict(), folder / "published.pth")
    exported = _export(net, folder)
    row = {"arch": ARCH.to_json(), "macs": 1, "top1_search": 50.0}
    LatencyModel(SPACE, macs_of(SPACE), {"device": "none"}).save(folder / "latency.json")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    idx = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (5, 28, 28)) + pixels.tobytes()

    def weights(path: Path) -> Any:
        opened = open_run(path, CPU)
        return {"model": opened.net.state_dict(), "config": opened.config, "step": opened.step}

    def network(path: Path) -> Any:
        return load_subnet(path.parent).state_dict()

    kinds = [
        Kind("checkpoint.pt", (folder / "checkpoint.pt").read_bytes(), weights, sealed=True),
        Kind("best.pt", (folder / "checkpoint.pt").read_bytes(), checkpoint.load, sealed=True),
        Kind("published.pth", (folder / "published.pth").read_bytes(), lambda p: read_weights(p).tensors, sealed=True),
        Kind("subnet/model.safetensors", (exported / "model.safetensors").read_bytes(), network, sealed=True),
        Kind("subnet/config.json", (exported / "config.json").read_bytes(), network, sealed=True),
        Kind("subnet/arch.json", (exported / "arch.json").read_bytes(), lambda p: parse_arch(SPACE, str(p))),
        _json("front.json", {"rows": [row, row], "chosen": row}, lambda p: parse_arch(SPACE, f"{p}#1")),
        _json("config.json", {"train": {"epochs": 3}, "seed": 0}, read_json),
        Kind("trials.jsonl", _trials(folder), lambda p: read_trials(p, SPACE, SETUP, COSTS)),
        Kind("latency.json", (folder / "latency.json").read_bytes(), lambda p: LatencyModel.load(p, SPACE)),
        Kind("train-images-idx3-ubyte", idx, _idx),
        Kind("train-images-idx3-ubyte.gz", gzip.compress(idx, mtime=0), fashion_mnist.read_idx, sealed=True),
        *(
            Kind(f"x.{form}", _picture(form), read_image)
            for form in ("png", "jpeg", "gif", "bmp", "webp", "tiff", "ppm")
        ),
    ]
    return Files(folder, {kind.name: kind for kind in kinds}, folder / "touched")


KINDS = (
    *("checkpoint.pt", "best.pt", "published.pth", "subnet/model.safetensors", "subnet/config.json"),
    *("subnet/arch.json", "front.json", "config.json", "trials.jsonl", "latency.json"),
    *("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"),
    *(f"x.{form}" for form in ("png", "jpeg", "gif", "bmp", "webp", "tiff", "ppm")),
)


def tried(files: Files, kind: Kind, damage: Callable[[bytes], bytes], expected: Any) -> str | None:
    """What a user is told of a damaged file; None if it is read, as it was written where a checksum could tell."""
    path = files.damaged(kind, damage)
    found: list[Any] = []
    start = time.monotonic()
    try:
        message = refusal(lambda: found.append(kind.read(path)))
    finally:
        files.restore(kind)
    assert time.monotonic() - start < SECONDS
    assert not files.touched.exists(), "something in the file was executed"
    if message is None and kind.sealed:
        assert_same(found[0], expected)
    return message


@pytest.mark.parametrize("name", KINDS)
def test_every_whole_file_is_read(files: Files, name: str) -> None:
    kind = files.kinds[name]
    assert tried(files, kind, lambda data: data, kind.read(files.damaged(kind, lambda data: data))) is None
    assert set(KINDS) == set(files.kinds)


@pytest.mark.parametrize("name", KINDS)
def test_other_files_under_its_name(files: Files, name: str) -> None:
    """Empty, of another format, nested without end, numbers without end, or made to run code."""
    kind = files.kinds[name]
    for what, content in foreign_files(files.touched).items():
        message = tried(files, kind, lambda data, content=content: content, None) if what != "image" else "not asked"
        assert message is not None or (name == "config.json" and what not in ("nothing", "noise")), what


PLACE = Path("/nonexistent/touched")  # payloads of random damage; `foreign_files` above has real ones


@given(st.sampled_from(KINDS), st.lists(damages(PLACE), min_size=1, max_size=3))
def test_random_damage(files: Files, name: str, changes: list[Damage]) -> None:
    kind = files.kinds[name]

    def damage(data: bytes) -> bytes:
        for change in changes:
            data = change(data)
        return data

    whole = kind.read(files.damaged(kind, lambda data: data)) if kind.sealed else None
    message = tried(files, kind, damage, whole)
    event("read" if message is None else "refused")  # `--hypothesis-show-statistics` says how many there were


def test_a_payload_would_run_where_pickles_are_run(tmp_path: Path) -> None:
    """The attack of these tests is one: the standard library's own reader falls for it."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "touched")))
    assert (tmp_path / "touched").exists()


def test_payloads_inside_torch_files(files: Files, tmp_path: Path) -> None:
    for path, read in ((tmp_path / "c.pt", checkpoint.load), (tmp_path / "p.pth", read_weights)):
        for content in (Payload(files.touched), {"model": {"w": torch.zeros(2)}, "x": Payload(files.touched)}):
            torch.save({"format": checkpoint.FORMAT, "version": 1, "state": content}, path)
            refusal(read, path)
            assert not files.touched.exists()


# Sizes that a file claims ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2**32 - 1,) * 3, (2**16, 2**16, 2**32 - 1), (2**31, 2**31, 4), (2**32 - 1,) * 255])
def test_an_idx_file_that_claims_to_be_huge(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Also where the product of the sides, in 64 bits, is a number like any other."""
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(b"\0\0\x08" + bytes([len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape))
    assert "not a complete IDX file" in str(refusal(fashion_mnist.read_idx, path))


def test_an_idx_file_that_unpacks_without_end(tmp_path: Path) -> None:
    """A few kilobytes of gzip can be gigabytes of zeros; what is read is what the header announces."""
    path = tmp_path / "train-images-idx3-ubyte.gz"
    header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (1, 28, 28))
    path.write_bytes(gzip.compress(header + bytes(200_000_000), 1))
    tracemalloc.start()
    message = refusal(fashion_mnist.read_idx, path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "not a complete IDX file" in str(message)
    assert peak < 20e6


def test_a_picture_that_claims_to_be_huge(tmp_path: Path) -> None:
    data = bytearray(_picture("bmp"))
    data[18:26] = (60_000).to_bytes(4, "little") * 2
    (tmp_path / "x.bmp").write_bytes(data)
    assert "cannot be read as an image" in str(refusal(read_image, tmp_path / "x.bmp"))


@pytest.mark.parametrize(
    "changes",
    [
        {"stem": {"width": [2**40]}},
        {"head": {"width": [10**300]}},
        {"resolution": list(range(1, 20_000)), "choose": "block"},
        {"num_classes": 10**12},
        {"norm_eps": float("nan")},
        {"drop_path_stages": 10**400},
        {"resolution": [float("inf")]},
    ],
)
def test_a_checkpoint_whose_space_claims_to_be_huge(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Refused by what the space says, before a network of that size is built."""
    state = {"space": {**plain(SPACE.config), **changes}, "model": {}, "config": {}, "step": 1}
    checkpoint.save(tmp_path / "c.pt", state)
    start = time.monotonic()
    assert refusal(open_run, tmp_path / "c.pt", CPU) is not None
    assert time.monotonic() - start < SECONDS


def test_json_that_claims_to_be_huge_or_deep(tmp_path: Path) -> None:
    for text in ("9" * 10_000, '{"a": ' + "9" * 10_000 + "}", "[" * 200_000, '{"a":' * 100_000, "NaN", "1e999"):
        (tmp_path / "a.json").write_text(text)
        assert refusal(parse_arch, SPACE, str(tmp_path / "a.json")) is not None
    assert refusal(parse_arch, SPACE, "{" * 5000) is not None
    write_json(tmp_path / "a.json", ARCH.to_json())
    assert parse_arch(SPACE, str(tmp_path / "a.json")) == ARCH


# Checkpoints with every checksum right that would take any memory ---------------------------------------------------


def with_pickle(path: Path, pickled: bytes) -> None:
    """A file as torch writes it, with another pickle inside."""
    checkpoint.save(path, {"step": 1})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, pickled if name.endswith("data.pkl") else content)


SIZE = b"\x8a\x04" + (300_000_000).to_bytes(4, "little") + b"\x85R."  # called with that number


@pytest.mark.parametrize("read", [checkpoint.load, checkpoint.newest_whole, load_supernet, read_weights])
@pytest.mark.parametrize("name", [b"builtins\nbytearray\n", b"__builtin__\nbytearray\n"])
def test_a_file_cannot_ask_for_any_memory(tmp_path: Path, read: Callable[[Path], Any], name: bytes) -> None:
    """Torch's weights-only reader would call it: 300 MB of zeros for a file of a kilobyte."""
    path = tmp_path / "c.pt"
    with_pickle(path, b"\x80\x02c" + name + SIZE)
    tracemalloc.start()
    message = refusal(read, path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "unsafe to load" in str(message)
    assert peak < 20e6


@pytest.mark.parametrize(
    "name",
    [
        *("torch.storage UntypedStorage", "torch Tensor", "torch FloatTensor", "torch._utils _rebuild_sparse_tensor"),
        *(
            "torch._utils _rebuild_meta_tensor_no_storage",
            "collections Counter",
            "builtins set",
            "torch.serialization x",
        ),
    ],
)
def test_only_what_save_writes_is_named(tmp_path: Path, name: str) -> None:
    with_pickle(tmp_path / "c.pt", b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n.")
    assert "not made by this project or is unsafe" in str(refusal(checkpoint.load, tmp_path / "c.pt"))


def test_what_stands_before_a_whole_file_is_not_read(tmp_path: Path) -> None:
    """An archive may have a beginning of its own, and torch takes that for a file of its old format."""
    path = tmp_path / "c.pt"
    checkpoint.save(path, {"step": 1})
    path.write_bytes(b"\x80\x03cbuiltins\nbytearray\n" + SIZE + path.read_bytes())
    assert "is not a checkpoint" in str(refusal(checkpoint.load, path))


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_tensors_without_their_values(tmp_path: Path) -> None:
    """One of the meta device claims memory that the file does not hold."""
    mark = {"format": checkpoint.FORMAT, "version": checkpoint.VERSION}
    good = {"space": plain(SPACE.config), "config": {}, "step": 1, **mark}
    for tensor in (torch.empty(10**13, device="meta"), torch.eye(3).to_sparse()):
        torch.save({**good, "model": {**Supernet(SPACE).state_dict(), "x": tensor}}, tmp_path / "c.pt")
        assert "not plain real tensors" in str(refusal(load_supernet, tmp_path / "c.pt"))


# CIFAR's archives are pickles: they are compared with their published checksums before anything reads them ---------


CIFAR = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch", "batches.meta"]


@given(st.sampled_from(CIFAR), st.sampled_from([*foreign_files(PLACE)]))
def test_cifar_archives_of_others(tmp_path_factory: pytest.TempPathFactory, name: str, what: str) -> None:
    root = tmp_path_factory.getbasetemp() / "cifar"
    folder, touched = root / "cifar-10-batches-py", root / "touched"
    folder.mkdir(parents=True, exist_ok=True)
    for other in CIFAR:
        (folder / other).write_bytes(pickle.dumps(Payload(touched)))
    (folder / name).write_bytes(foreign_files(touched)[what])
    shares = {"seed": 0, "split_seed": 0, "val_fraction": 0.1, "search_fraction": 0.1, "resolution": [24]}
    message = refusal(cifar.load, batch_size=8, eval_batch_size=8, root=root, **shares)
    assert message is not None
    assert "not found or is incomplete" in message
    assert not touched.exists()
