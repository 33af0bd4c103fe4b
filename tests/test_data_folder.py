"""Image folders: layouts, splits, exact resume through worker processes, caching, and clear errors."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from supernet.data import folder, imagenet, transforms
from supernet.data.base import epoch_order
from supernet.data.files import read_image
from supernet.data.policies import augmentation_policy
from supernet.data.stream import StreamData
from supernet.data.workers import seeded_libraries
from supernet.errors import UserError

# Python 3.12 and later warn when a process with threads is forked; the workers only decode images.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

COMMON: dict[str, Any] = {
    "batch_size": 4,
    "eval_batch_size": 5,
    "seed": 0,
    "split_seed": 0,
    "val_fraction": 0.2,
    "search_fraction": 0.2,
    "resolution": [16, 24],
    "size": 24,
    "num_workers": 0,
}


def write_class(path: Path, num: int, hue: int = 0, suffix: str = "png") -> None:
    path.mkdir(parents=True)
    for i in range(num):
        noise = torch.randint(0, 256, (3, 30 + i, 40), generator=torch.Generator().manual_seed(i))
        tv.to_pil_image(((noise + hue) % 256).to(torch.uint8)).save(path / f"{i:02}.{suffix}")


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Three classes of ten images, without train and test folders."""
    for hue, name in enumerate(("ant", "bee", "cat")):
        write_class(tmp_path / "flat" / name, 10, 50 * hue)
    return tmp_path / "flat"


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    for part, num in (("train", 10), ("val", 3)):
        for hue, name in enumerate(("ant", "bee")):
            write_class(tmp_path / "nested" / part / name, num, 50 * hue, "jpg")
    return tmp_path / "nested"


def load(root: Path | None, **changes: Any) -> StreamData:
    return folder.load(root=root, **COMMON | changes)


def names(data: StreamData, split: str) -> set[str]:
    return set(data._splits[split].names)


def test_one_level_makes_a_stratified_test_set(flat: Path) -> None:
    data = load(flat)
    assert data.info.class_names == ("ant", "bee", "cat")
    assert dict(data.sizes) == {"train": 15, "val": 6, "search": 6, "test": 3}
    parts = [names(data, split) for split in data.sizes]
    assert len(set.union(*parts)) == 30
    for split, per_class in (("val", 2), ("search", 2), ("test", 1)):
        targets = torch.cat([t for _, t in data.evaluation(split, 24)])
        assert targets.bincount().tolist() == [per_class] * 3
    record = json.loads(json.dumps(data.split_record()))
    assert set(record["held_out_of_training_images"]) == {"val", "search", "test"}
    assert set(record["held_out_of_training_images"]["val"]) == names(data, "val")
    assert load(flat, seed=9).split_record() == data.split_record()
    assert load(flat, split_seed=1).split_record()["sha256"] != data.split_record()["sha256"]


def test_two_levels_use_the_given_test_set(nested: Path) -> None:
    data = load(nested)
    assert dict(data.sizes) == {"train": 12, "val": 4, "search": 4, "test": 6}
    assert all(name.startswith("val/") for name in names(data, "test"))
    assert all(name.startswith("train/") for s in ("train", "val", "search") for name in names(data, s))
    assert set(data.split_record()["held_out_of_training_images"]) == {"val", "search"}
    for name in ("ant", "bee"):
        write_class(nested / "test" / name / "deeper", 2)
    data = load(nested)
    assert dict(data.sizes) == {"train": 16, "val": 6, "search": 4, "test": 4}
    assert all(name.startswith("test/") for name in names(data, "test"))


def spy_on_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A list to which every file is added when it is decoded (in this process)."""
    calls: list[Path] = []

    def read(path: Path) -> Image.Image:
        calls.append(path)
        return read_image(path)

    monkeypatch.setattr(transforms, "read_image", read)
    return calls


# torchvision's draw from torch, `v0` from `random`, `rand-…` from NumPy and `random`, `augmix-…` from both.
POLICIES = ["trivialaugment", "v0", "rand-m9-mstd0.5-inc1", "augmix-m3-w2"]


def global_generators() -> str:
    """Everything that the next draws from the global generators depend on."""
    return repr((torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_within_an_epoch_is_exact(flat: Path, workers: int, policy: str) -> None:
    reference = list(load(flat, auto_augment=policy).train(1))
    data = load(flat, auto_augment=policy, num_workers=workers)
    dropped = data.train(0)
    next(dropped)
    before = global_generators()
    for first in (0, 2):
        rest = list(data.train(1, first))
        assert len(rest) == data.steps_per_epoch() - first == 3 - first
        for one, two in zip(reference[first:], rest, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert global_generators() == before, "the global generators must stay untouched"
    other = list(data.train(2))
    assert not torch.equal(other[0].images, reference[0].images)
    targets = torch.tensor(data._splits["train"].targets)
    assert all(torch.equal(targets[b.index], b.targets) for b in other)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_given_order_decides_the_visits(flat: Path, workers: int) -> None:
    data = load(flat, num_workers=workers, auto_augment="v0")
    default = list(data.train(1))
    same = list(data.train(1, order=epoch_order(15, seed=0, epoch=1)))
    order = torch.tensor([3, 9, 3, 0, 14, 3, 9, 1, 1, 2, 2, 4, 5, 6, 7])
    drawn, rest = list(data.train(1, order=order)), list(data.train(1, 1, order))
    for ours, theirs in ((same, default), (rest, drawn[1:])):
        for one, two in zip(ours, theirs, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    index = torch.cat([batch.index for batch in drawn])
    assert torch.equal(index, order[:12])
    images = torch.cat([batch.images for batch in drawn])
    assert len(images.flatten(1).unique(dim=0)) == 12, "every visit has its own augmentation"
    # An image's first visit looks as in any other order of the epoch.
    usual = {int(i): image for batch in default for i, image in zip(batch.index, batch.images, strict=True)}
    firsts = [place for place in range(12) if int(index[place]) not in index[:place] and int(index[place]) in usual]
    assert len(firsts) >= 5
    assert all(torch.equal(images[place], usual[int(index[place])]) for place in firsts)
    targets = torch.tensor(data._splits["train"].targets)
    assert all(torch.equal(targets[batch.index], batch.targets) for batch in drawn)


def test_augmentation_depends_on_the_image_not_on_its_batch(flat: Path) -> None:
    small, large = load(flat), load(flat, batch_size=12)
    ours = torch.cat([b.images for b in small.train(0)])
    theirs = next(large.train(0))
    assert torch.equal(ours, theirs.images)


def test_each_epoch_augments_anew(flat: Path) -> None:
    data = load(flat, batch_size=15)
    one, two = (batch.images[batch.index.argsort()] for epoch in (0, 1) for batch in data.train(epoch))
    assert (one != two).flatten(1).any(1).all()


@pytest.mark.parametrize("cache_limit_mb", [0, 16])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_equals_reading_the_files(flat: Path, cache_limit_mb: int, workers: int) -> None:
    data = load(flat, cache_limit_mb=cache_limit_mb, num_workers=workers)
    batches = data.evaluation("val", 24)
    assert [len(t) for _, t in batches] == [5, 1] == [len(batches[i][1]) for i in range(len(batches))]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.info.mean, data.info.std))
    expected = []
    for name in data._splits["val"].names:
        image = tv.resize(Image.open(flat / name), [27], interpolation=tv.InterpolationMode.BICUBIC)
        expected.append((tv.pil_to_tensor(tv.center_crop(image, [24, 24])) / 255 - mean) / std)
    read = torch.cat([images for images, _ in batches])
    torch.testing.assert_close(read, torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert torch.equal(batches[1][0], read[5:])
    limited = torch.cat([images for images, _ in data.evaluation("val", 24, 4)])
    assert torch.equal(limited, read[:4])
    assert data.evaluation("val", 16)[0][0].shape == (5, 3, 16, 16)


def test_cached_images_are_decoded_once(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy_on_reads(monkeypatch)
    data = load(flat)
    for resolution in (16, 24, 24):
        for _ in range(2):
            list(data.evaluation("val", resolution))
    assert len(calls) == 6
    first, second = next(iter(data.calibration(24, 10))), data.calibration(24, 10)[0]
    assert torch.equal(first, second)
    assert len(calls) == 16
    uncached = load(flat, cache_limit_mb=0)
    calls.clear()
    for _ in range(2):
        list(uncached.evaluation("val", 16))
    assert len(calls) == 12


def test_calibration_reads_training_images_only(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy_on_reads(monkeypatch)
    data = load(flat)
    batches = data.calibration(16, 11)
    assert [len(images) for images in batches] == [3, 4, 4]
    read_names = {str(path.relative_to(flat)) for path in calls}
    assert len(read_names) == 11
    assert read_names <= names(data, "train")
    again = load(flat, seed=4).calibration(16, 11)
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_in_one_line(flat: Path, workers: int) -> None:
    for path in flat.glob("*/*.png"):
        path.write_bytes(b"not an image")
    data = load(flat, num_workers=workers)
    for use in (lambda: next(data.train(0)), lambda: data.evaluation("test", 16)):
        with pytest.raises(
            UserError, match=r"^/.*\d\d\.png cannot be read as an image \(.*\): replace it, or [^\n]*\Z"
        ):
            use()


def test_errors_name_the_folder(flat: Path, nested: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root is missing"):
        load(None)
    with pytest.raises(UserError, match=r"data\.root=.*nowhere is not a folder"):
        load(tmp_path / "nowhere")
    (flat / "dog").mkdir()
    with pytest.raises(UserError, match=r"flat/dog holds no images"):
        load(flat)
    with pytest.raises(UserError, match=r"flat/ant holds no class folders"):
        load(flat / "ant")
    write_class(nested / "val" / "cow", 1)
    with pytest.raises(UserError, match=r"nested/val and .*nested/train differ \(cow\)"):
        load(nested)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"batch_size": 16}, r"train\.batch_size=16 .* 15 images"),
        ({"test_fraction": 0.7}, r"data\.test_fraction=0\.7 leaves no training images"),
        ({"crop_scale": [0.5, 0.1]}, r"data\.crop_scale=\[0\.5, 0\.1\]"),
        ({"test_resize": 20}, r"data\.test_resize=20"),
        ({"flip": "no"}, r"data\.flip='no'"),
        ({"num_workers": -1}, r"data\.num_workers=-1"),
        ({"std": [0, 1, 1]}, r"data\.std=\[0, 1, 1\]"),
    ],
)
def test_bad_values_name_the_key(flat: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        load(flat, **changes)


TORCHVISION = ["autoaugment", "randaugment", "trivialaugment", "augmix"]
TIMM = ["v0", "v0r", "original", "originalr-mstd0.5", "3a", "rand", "rand-m9-n3-p0.5-mstd101", "rand-tweights-mmax20"]
TIMM += ["rand-t3a-n1", "rand-t3aw-inc1", "augmix-m5-w4-d2", "augmix-a1-b1-mstd1"]


@pytest.mark.parametrize("name", TORCHVISION + TIMM)
def test_every_policy_changes_images_and_differs_between_epochs(flat: Path, name: str) -> None:
    plain, changed = load(flat), load(flat, auto_augment=name)
    images = [[batch.images for batch in data.train(epoch)] for data in (plain, changed) for epoch in (0, 1)]
    assert images[2][0].shape == (4, 3, 24, 24)
    if name != "rand-t3a-n1":  # with probability 1/2 one operation, which may do nothing
        assert (torch.cat(images[0]) != torch.cat(images[2])).flatten(1).any(1).float().mean() > 0.5
    assert not torch.equal(torch.cat(images[2]), torch.cat(images[3]))


def test_policies_in_timm_s_notation_are_timm_s_own(flat: Path) -> None:
    """The same draws from the same seeds as timm's transform, with the options that timm's training gives it."""
    from timm.data.transforms_factory import transforms_imagenet_train

    theirs = transforms_imagenet_train(24, auto_augment="v0", interpolation="random", separate=True)[1].transforms[-1]
    ours = augmentation_policy("v0", 24, folder.IMAGENET_MEAN)
    noise = torch.randint(0, 256, (3, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = tv.to_pil_image(noise)
    compared = 0
    for seed in range(60):
        with seeded_libraries(seed):
            result = ours(image).tobytes()
        with seeded_libraries(seed):
            try:
                expected = theirs(image).tobytes()
            except ValueError:  # newer versions of Pillow refuse to posterize to 0 bits: black
                assert not any(result)
                continue
        assert result == expected
        compared += 1
    assert compared > 40


BAD_POLICIES = ["magic", "", "V0", "v1", "v0-m9", "original-mstd", "rand-m9.5", "rand-x3", "rand-n0", "rand-tother"]


@pytest.mark.parametrize("name", [*BAD_POLICIES, "augmix-w0", "random-m9", "rand-p2", "rand_m9", 3, ["v0"], True])
def test_a_policy_that_timm_would_misread_is_refused(flat: Path, name: Any) -> None:
    with pytest.raises(UserError, match=r"data\.auto_augment=.*does not exist: choose null, autoaugment.* such as v0"):
        load(flat, auto_augment=name)


def test_imagenet_layout(nested: Path, flat: Path) -> None:
    data = imagenet.load(root=nested, **COMMON)
    assert data.info.name == "imagenet"
    assert data.sizes["test"] == 6
    for root in (flat, None):
        with pytest.raises(UserError, match=r"ILSVRC2012_img_val\.tar"):
            imagenet.load(root=root, **COMMON)
