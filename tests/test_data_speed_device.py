"""Augmentation on the device, faster decoding, and the next batch made ahead: same draws, same images."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps, JpegImagePlugin
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from supernet.data import folder
from supernet.data.ahead import prepared_ahead
from supernet.data.apply import apply
from supernet.data.base import Batch
from supernet.data.draws import Draws
from supernet.data.operations import Kind, Row, batched
from supernet.data.policies import augmentation_policy
from supernet.data.stream import StreamData
from supernet.data.transforms import RandomCrop
from supernet.data.workers import seeded_libraries
from supernet.errors import UserError

# Python 3.12 and later warn when a process with threads is forked; the workers only decode images.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

SIZE = 32
MEAN = (0.485, 0.456, 0.406)
AFFINE = {Kind.NEAREST, Kind.BILINEAR, Kind.BICUBIC}
SHARES: dict[str, Any] = {"split_seed": 0, "val_fraction": 0.1, "search_fraction": 0.1, "test_fraction": 0.1}
POLICIES = ["v0", "v0r", "original", "rand-n1-p1", "rand-m7-mstd0.5-inc1"]
POLICIES += ["autoaugment", "randaugment", "trivialaugment"]


def smooth(count: int, size: int, seed: int = 0) -> Tensor:
    """Blurred noise, uint8 `[count, 3, size, size]`: pixels differ little from their neighbours."""
    noise = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 1.4 - 0.2
    large = torch.nn.functional.interpolate(noise, size=size, mode="bicubic")
    return (large.clamp(0, 1) * 255).to(torch.uint8)


@pytest.fixture
def jpegs(tmp_path: Path) -> Path:
    """Three classes of ten pictures, many times larger than the crops of these tests, beside one that is no JPEG."""
    for number, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / name).mkdir()
        for i, image in enumerate(smooth(10, 400, number)):
            tv.to_pil_image(image).save(tmp_path / name / (f"{i}.png" if i == 4 else f"{i}.jpg"), quality=95)
    return tmp_path


def load(root: Path, **changes: Any) -> StreamData:
    options = {"batch_size": 4, "eval_batch_size": 5, "seed": 0, "resolution": [SIZE], "size": SIZE, "num_workers": 0}
    return folder.load(root=root, **SHARES | options | changes)


@pytest.mark.parametrize("name", POLICIES)
def test_the_device_does_what_the_workers_would(name: str) -> None:
    """Equal seeds: Pillow's pixels for everything but affine maps, and those nearly."""
    images, draws = smooth(50, SIZE), Draws(True, name, SIZE, MEAN)
    flip, policy = v2.RandomHorizontalFlip(), augmentation_policy(name, SIZE, MEAN)
    lists: list[list[Row]] = []
    expected = []
    for number, image in enumerate(images):
        with seeded_libraries(number):
            expected.append(tv.pil_to_tensor(policy(flip(tv.to_pil_image(image)))))
        with seeded_libraries(number):
            lists.append(draws())
    found = apply(images.clone(), batched(lists), draws.fill)
    seen: Counter[Kind] = Counter()
    for one, two, rows in zip(found, expected, lists, strict=True):
        kinds = [Kind(int(row[0])) for row in rows]
        seen.update(kinds)
        difference = (one.int() - two.int()).abs()
        affine = [kind for kind in kinds if kind in AFFINE]
        if not affine:
            assert not difference.any(), kinds
        elif set(kinds) - {Kind.FLIP} == set(affine):
            assert difference.float().mean() < 1.5, kinds
    assert 10 < seen[Kind.FLIP] < 40
    assert len(seen) >= 7
    assert set(seen) & AFFINE


def test_every_operation_equals_pillow_at_its_edges() -> None:
    """Flat channels, two values only, factors of nothing, of everything and beyond."""
    flat = torch.full((3, 8, 8), 77, dtype=torch.uint8)
    two = torch.tensor([0, 255], dtype=torch.uint8).repeat(3, 8, 4)
    noise = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    cases: list[tuple[Row, Any]] = [((Kind.FLIP,), ImageOps.mirror), ((Kind.INVERT,), ImageOps.invert)]
    cases += [((Kind.AUTOCONTRAST,), ImageOps.autocontrast), ((Kind.EQUALIZE,), ImageOps.equalize), ((0,), lambda i: i)]
    for factor in (0.0, 0.3, 1.0, 1.9):
        cases += [
            ((Kind.BRIGHTNESS, factor), lambda i, f=factor: ImageEnhance.Brightness(i).enhance(f)),
            ((Kind.CONTRAST, factor), lambda i, f=factor: ImageEnhance.Contrast(i).enhance(f)),
            ((Kind.COLOR, factor), lambda i, f=factor: ImageEnhance.Color(i).enhance(f)),
            ((Kind.SHARPNESS, factor), lambda i, f=factor: ImageEnhance.Sharpness(i).enhance(f)),
        ]
    cases += [((Kind.POSTERIZE, bits), lambda i, b=bits: ImageOps.posterize(i, b)) for bits in (1, 4, 8)]
    cases += [((Kind.POSTERIZE, 0), lambda i: Image.new("RGB", i.size))]
    cases += [((Kind.SOLARIZE, t), lambda i, t=t: ImageOps.solarize(i, t)) for t in (0, 77, 78, 256)]
    images = torch.stack([image for image in (flat, two, noise) for _ in cases])
    rows = [[row] for _ in range(3) for row, _ in cases]
    found = apply(images.clone(), batched(rows), torch.zeros(3, dtype=torch.uint8))
    expected = [tv.pil_to_tensor(made(tv.to_pil_image(image))) for image in (flat, two, noise) for _, made in cases]
    for one, two_, row in zip(found, expected, rows, strict=True):
        assert torch.equal(one, two_), row


def test_operations_follow_one_another_and_lists_may_differ_in_length() -> None:
    images = smooth(4, 16)
    lists: list[list[Row]] = [[], [(Kind.INVERT,), (Kind.SOLARIZE_ADD, 30)], [(Kind.FLIP,)], [(Kind.NOTHING,)] * 3]
    found = apply(images.clone(), batched(lists), torch.zeros(3, dtype=torch.uint8))
    inverted = 255 - images[1].int()
    assert torch.equal(found[0], images[0])
    assert torch.equal(found[1].int(), torch.where(inverted < 128, (inverted + 30).clamp(max=255), inverted))
    assert torch.equal(found[2], images[2].flip(2))
    assert torch.equal(found[3], images[3])


@pytest.mark.parametrize("policy", [None, "v0", "trivialaugment"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_both_places_and_their_resumption(jpegs: Path, policy: str | None, workers: int) -> None:
    there = load(jpegs, auto_augment=policy, augment_on="device", num_workers=workers)
    here = load(jpegs, auto_augment=policy)
    device, host = list(there.train(1)), list(here.train(1))
    differences = []
    for one, two in zip(device, host, strict=True):
        assert torch.equal(one.targets, two.targets)
        assert torch.equal(one.index, two.index)
        differences += (one.images - two.images).abs().mean((1, 2, 3)).tolist()
    assert sum(value < 0.05 for value in differences) >= 0.8 * len(differences)
    if policy is None:
        assert max(differences) == 0
    for one, two in zip(there.train(1, 2), device[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(next(there.train(2)).images, device[0].images)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes at which JPEG files are decoded for fast crops."""
    sizes: list[tuple[int, int]] = []
    draft = JpegImagePlugin.JpegImageFile.draft

    def spied(image: Any, *arguments: Any) -> Any:
        result = draft(image, *arguments)
        sizes.append(image.size)
        return result

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", spied)
    return sizes


def test_fast_decoding_shows_the_same_crops(jpegs: Path, decoded: list[tuple[int, int]]) -> None:
    exact, fast = (load(jpegs, fast_decode=value, auto_augment="v0", size=64) for value in (False, True))
    plain, quick = (torch.cat([batch.images for batch in data.train(0)]) for data in (exact, fast))
    other = torch.cat([batch.images for batch in fast.train(1)])
    assert set(decoded) >= {(100, 100), (200, 200), (400, 400)}
    assert (plain - quick).abs().mean((1, 2, 3)).median() < 0.05
    assert not torch.equal(plain, quick)
    assert (plain - other).abs().mean((1, 2, 3)).median() > 0.3, "another epoch is another matter"
    both = load(jpegs, fast_decode=True, augment_on="device", auto_augment="v0", size=64)
    assert (torch.cat([b.images for b in both.train(0)]) - quick).abs().mean((1, 2, 3)).median() < 0.02
    assert torch.equal(torch.cat([batch.images for batch in fast.train(0, 1)]), quick[4:])
    for one, two in zip(exact.evaluation("val", 64), fast.evaluation("val", 64), strict=True):
        assert torch.equal(one[0], two[0]), "evaluation images stay exact"


@pytest.mark.parametrize(("side", "size", "expected"), [(93, 32, 47), (95, 24, 48), (96, 24, 24), (40, 32, 40)])
def test_fast_decoding_never_enlarges_what_it_reduced(
    tmp_path: Path, decoded: list[tuple[int, int]], side: int, size: int, expected: int
) -> None:
    """A whole image of 2.9 times the size is decoded at half its size, one of 4 times at a quarter."""
    tv.to_pil_image(smooth(1, side)[0]).save(tmp_path / "a.jpg", quality=95)
    whole = {"scale": (1.0, 1.0), "flip": False, "policy": None, "mean": MEAN}
    with seeded_libraries(0):
        one = RandomCrop(size, fast=True, **whole)(tmp_path / "a.jpg")[0]  # type: ignore[arg-type]
    with seeded_libraries(0):
        two = RandomCrop(size, **whole)(tmp_path / "a.jpg")[0]  # type: ignore[arg-type]
    assert decoded == [(expected, expected)]
    assert one.shape == two.shape == (3, size, size)
    assert (one.int() - two.int()).abs().float().mean() < 6


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_by_fast_decoding_too(jpegs: Path, workers: int) -> None:
    for path in jpegs.glob("*/*.jpg"):
        path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(UserError, match=r"^/.*\d\.jpg cannot be read as an image .*: replace it, or [^\n]*\Z"):
        list(load(jpegs, fast_decode=True, num_workers=workers).train(0))


@pytest.mark.parametrize("policy", ["augmix", "augmix-m3-w3", "3a", "rand-t3a"])
def test_policies_that_cannot_run_on_the_device_say_so(jpegs: Path, policy: str) -> None:
    with pytest.raises(UserError, match=rf"data\.auto_augment={policy} cannot run on the device .*augment_on=workers"):
        load(jpegs, auto_augment=policy, augment_on="device")
    assert len(next(load(jpegs, auto_augment=policy).train(0)).images) == 4


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"augment_on": "gpu"}, r"data\.augment_on='gpu'"),
        ({"fast_decode": 1}, r"data\.fast_decode=1"),
        ({"prefetch_factor": 0}, r"data\.prefetch_factor=0"),
        ({"augment_on": "device", "auto_augment": "v9"}, r"data\.auto_augment='v9' does not exist"),
        ({"augment_on": "device", "auto_augment": ["v0"]}, r"data\.auto_augment=\['v0'\] does not exist"),
    ],
)
def test_bad_values_name_the_key(jpegs: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        load(jpegs, **changes)


@pytest.mark.parametrize("policy", [None, "v0", "rand-m9-mstd0.5-inc1", "randaugment"])
def test_transforms_can_be_sent_to_workers_that_are_not_forked(jpegs: Path, policy: str | None) -> None:
    made = RandomCrop(SIZE, (0.2, 1.0), True, policy, MEAN, draws=Draws(True, policy, SIZE, MEAN))
    for one in (made, pickle.loads(pickle.dumps(made))):
        with seeded_libraries(3):
            image, rows = one(jpegs / "ant" / "0.jpg")
        if one is made:
            expected = image, rows
    assert torch.equal(image, expected[0])
    assert rows == expected[1]


def batches(log: list[str]) -> Iterator[int]:
    for number in range(5):
        log.append(f"read {number}")
        yield number


def prepare(number: int, device: str) -> Batch:
    tensor = torch.full((1000, 1000), float(number)).to(device, non_blocking=True)
    return Batch(tensor @ tensor, tensor[0].long(), tensor[1].long())


def test_nothing_is_made_ahead_on_a_cpu() -> None:
    log: list[str] = []
    for batch in prepared_ahead(batches(log), lambda number: prepare(number, "cpu"), torch.device("cpu")):
        log.append(f"use {int(batch.targets[0])}")
    assert log == [f"{what} {number}" for number in range(5) for what in ("read", "use")]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gets_the_same_batches_one_ahead() -> None:
    log: list[str] = []
    device = torch.device("cuda")
    for number, batch in enumerate(prepared_ahead(batches(log), lambda n: prepare(n, "cuda"), device)):
        assert len(log) == min(number + 2, 5)
        for _ in range(3):
            torch.empty(1000, 1000, device=device).fill_(-1)  # would reuse memory that was freed too early
        assert torch.equal(batch.images, torch.full((1000, 1000), 1000.0 * number**2, device=device))
        assert int(batch.targets[0]) == number
    assert len(log) == 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", POLICIES)
def test_a_gpu_augments_as_the_cpu(name: str) -> None:
    draws, lists = Draws(True, name, SIZE, MEAN), []
    for number in range(50):
        with seeded_libraries(number):
            lists.append(draws())
    operations, images = batched(lists), smooth(50, SIZE)
    here = apply(images.clone(), operations, draws.fill)
    sent = operations._replace(parameters=operations.parameters.cuda(), order=operations.order.cuda())
    there = apply(images.cuda(), sent, draws.fill.cuda()).cpu()
    same = [index for index, rows in enumerate(lists) if not AFFINE & {Kind(int(row[0])) for row in rows}]
    assert torch.equal(there[same], here[same])
    assert ((there.int() - here.int()).abs() > 2).float().mean() < 0.02
