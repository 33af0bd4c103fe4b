"""Splits, order, exact resume, evaluation and calibration of datasets held in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.data import Augment, MemoryData, resize
from supernet.data.base import Settings, epoch_order, even_chunks, generator
from supernet.data.splits import stratified
from supernet.errors import UserError

COMMON: dict[str, Any] = {
    "batch_size": 16,
    "eval_batch_size": 20,
    "seed": 0,
    "split_seed": 0,
    "val_fraction": 0.1,
    "search_fraction": 0.2,
    "resolution": [6, 8],
}
ALL = Augment(shift=2, flip=True, rotate=10, scale=0.1, erase=0.5, cutout=3)


def make(augment: Augment | None = None, with_test: bool = True, **changes: Any) -> MemoryData:
    """300 training images, each with its number written into its first two pixels, and 50 test images."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (350, 3, 8, 8), generator=rng, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(350) // 256
    images[:, 0, 0, 1] = torch.arange(350) % 256
    targets = torch.arange(350) % 5
    return MemoryData(
        images[:300],
        targets[:300],
        images[300:] if with_test else None,
        targets[300:] if with_test else None,
        name="made_up",
        class_names=list("abcde"),
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.2, 0.3),
        settings=Settings(**COMMON | changes),
        augment=augment,
        test_fraction=0.0 if with_test else 0.1,
    )


def numbers(images: Tensor) -> list[int]:
    """The numbers that `make` wrote into the images, read back from normalised ones."""
    raw = (images[:, 0, 0, :2] * 0.2 + 0.5) * 255
    return (raw[:, 0].round() * 256 + raw[:, 1].round()).int().tolist()


def split_numbers(data: MemoryData, split: str) -> list[int]:
    return [n for images, _ in data.evaluation(split, 8) for n in numbers(images)]


@pytest.mark.parametrize("with_test", [True, False])
def test_splits_partition_the_images(with_test: bool) -> None:
    data = make(with_test=with_test)
    parts = {split: split_numbers(data, split) for split in ("train", "val", "search", "test")}
    everything = [n for part in parts.values() for n in part]
    assert sorted(everything) == list(range(350 if with_test else 300))
    assert {split: len(part) for split, part in parts.items()} == dict(data.sizes)
    assert dict(data.sizes) == (
        {"train": 210, "val": 30, "search": 60, "test": 50}
        if with_test
        else {"train": 180, "val": 30, "search": 60, "test": 30}
    )
    if with_test:
        assert min(parts["test"]) == 300


def test_splits_depend_on_the_split_seed_alone() -> None:
    reference = make()
    assert make(seed=7, batch_size=5).split_record() == reference.split_record()
    assert split_numbers(make(seed=7), "val") == split_numbers(reference, "val")
    assert set(split_numbers(make(split_seed=1), "val")) != set(split_numbers(reference, "val"))


def test_a_made_test_set_does_not_depend_on_the_other_shares() -> None:
    one = split_numbers(make(with_test=False), "test")
    other = split_numbers(make(with_test=False, val_fraction=0.3, search_fraction=0.05), "test")
    assert one == other


def test_stratified_counts_and_totals() -> None:
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([1, 7, 50, 143]))
    index = stratified(labels, {"val": 0.15, "search": 0.1}, seed=3)
    assert sorted(torch.cat(list(index.values())).tolist()) == list(range(201))
    for name, fraction in (("val", 0.15), ("search", 0.1)):
        counts = torch.bincount(labels[index[name]], minlength=4)
        assert counts.sum() == round(201 * fraction)
        assert counts[0] == 0, "the only image of a class belongs to training"
        assert ((counts - torch.tensor([1, 7, 50, 143]) * fraction).abs() <= 1).all()
    # Lists are in random order: a prefix is not sorted by class.
    assert labels[index["train"]].diff().min() < 0


def test_no_class_loses_its_last_training_image() -> None:
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([1, 2, 10]))
    index = stratified(labels, {"val": 0.6, "search": 0.3}, seed=0)
    assert torch.bincount(labels[index["train"]], minlength=3).min() >= 1
    assert sorted(torch.cat(list(index.values())).tolist()) == list(range(13))


@pytest.mark.parametrize("augment", [Augment(), ALL])
def test_training_is_a_function_of_seed_and_epoch(augment: Augment) -> None:
    epoch = list(make(augment).train(3))
    again = make(augment)
    list(again.train(0))
    torch.manual_seed(99)
    assert len(epoch) == again.steps_per_epoch() == 210 // 16
    for one, two in zip(epoch, again.train(3), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    for data, number in ((make(augment, seed=1), 3), (again, 4)):
        assert not torch.equal(next(data.train(number)).index, epoch[0].index)
    before = torch.get_rng_state()
    next(again.train(0))
    assert torch.equal(before, torch.get_rng_state()), "the global generator must stay untouched"


def test_resuming_within_an_epoch_is_exact() -> None:
    data = make(ALL)
    epoch = list(data.train(2))
    for first in (0, 1, 7, len(epoch)):
        rest = list(make(ALL).train(2, first))
        assert len(rest) == len(epoch) - first
        for one, two in zip(epoch[first:], rest, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_given_order_decides_the_visits_and_nothing_else() -> None:
    default = list(make(ALL).train(2))
    same = list(make(ALL).train(2, order=epoch_order(210, seed=0, epoch=2)))
    for one, two in zip(default, same, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    order = torch.randint(210, (210,), generator=torch.Generator().manual_seed(0))
    plain = make()
    positions = split_numbers(plain, "train")
    for batch, index in zip(plain.train(2, order=order), order.split(16), strict=False):
        assert torch.equal(batch.index, index)
        assert numbers(batch.images) == [positions[i] for i in index]
    moved = Augment(shift=2)
    whole, rest = (list(make(moved).train(2, first, order)) for first in (0, 5))
    for one, two in zip(whole[5:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_repeated_visits_are_augmented_differently() -> None:
    batches = list(make(Augment(shift=2), batch_size=105).train(0, order=torch.full((210,), 7)))
    images = torch.cat([batch.images for batch in batches])
    assert all(batch.index.eq(7).all() for batch in batches)
    assert len(images.flatten(1).unique(dim=0)) > 20  # of 25 shifts


def test_an_order_of_the_wrong_form_is_refused() -> None:
    order = epoch_order(210, 0, 0)
    for wrong in (order[1:], order.int(), order.to("meta")):
        with pytest.raises(AssertionError):
            next(make().train(0, order=wrong))


def test_batches_hold_each_image_once_and_index_finds_it() -> None:
    data = make()
    order = split_numbers(data, "train")
    seen: list[int] = []
    for images, targets, index in data.train(0):
        assert images.shape == (16, 3, 8, 8)
        assert images.dtype == torch.float32
        assert numbers(images) == [order[i] for i in index]
        assert [n % 5 for n in numbers(images)] == targets.tolist()
        seen += index.tolist()
    assert len(set(seen)) == len(seen) == 208


def test_batches_of_one_epoch_are_augmented_differently() -> None:
    data = make(Augment(shift=2), batch_size=210)
    first, second = next(data.train(0)), next(data.train(1))
    one = first.images[first.index.argsort()]
    two = second.images[second.index.argsort()]
    assert (one != two).flatten(1).any(1).float().mean() > 0.9


def test_evaluation_matches_a_plain_computation_and_is_cached() -> None:
    data = make()
    batches = data.evaluation("test", 6)
    assert [len(t) for _, t in batches] == [20, 20, 10]
    again = data.evaluation("test", 6)
    assert all(a[0].data_ptr() == b[0].data_ptr() for a, b in zip(batches, again, strict=True))
    native = torch.cat([images for images, _ in data.evaluation("test", 8)])
    expected = F.interpolate(native, size=(6, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(torch.cat([images for images, _ in batches]), expected)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.2, 0.3])
    pixels = (native * std.view(3, 1, 1) + mean.view(3, 1, 1)) * 255
    torch.testing.assert_close(pixels, pixels.round().clamp(0, 255), atol=1e-3, rtol=0)


@pytest.mark.parametrize("limit", [1, 20, 33, 50, 1000])
def test_limit_is_a_prefix(limit: int) -> None:
    data = make()
    full = torch.cat([images for images, _ in data.evaluation("test", 8)])
    part = data.evaluation("test", 8, limit)
    assert torch.equal(torch.cat([images for images, _ in part]), full[:limit])
    assert sum(len(targets) for _, targets in part) == min(limit, 50)
    assert all(len(targets) for _, targets in part)


def test_calibration_uses_training_images_only() -> None:
    data = make(ALL)
    batches = data.calibration(8, 90)
    assert [len(images) for images in batches] == [18] * 5
    used = [n for images in batches for n in numbers(images)]
    assert len(set(used)) == 90
    assert set(used) <= set(split_numbers(data, "train"))
    assert not set(used) & {n for s in ("val", "search", "test") for n in split_numbers(data, s)}
    assert all(a is b for a, b in zip(batches, data.calibration(8, 90), strict=True))
    other_run = make(ALL, seed=5).calibration(8, 90)
    assert all(torch.equal(a, b) for a, b in zip(batches, other_run, strict=True))
    assert sum(len(images) for images in data.calibration(6, 10_000)) == data.sizes["train"]


def test_even_chunks() -> None:
    for num, size in ((1, 5), (5, 5), (6, 5), (101, 10), (99, 100)):
        chunks = even_chunks(num, size)
        assert [i for c in chunks for i in range(num)[c]] == list(range(num))
        lengths = {c.stop - c.start for c in chunks}
        assert max(lengths) <= size
        assert max(lengths) - min(lengths) <= 1
        assert len(chunks) == -(-num // size)


def test_resize() -> None:
    images = torch.rand(2, 3, 8, 8)
    assert resize(images, 8) is images
    assert resize(images[..., :4], 8).shape == (2, 3, 8, 8)
    assert resize(images, 5).shape == (2, 3, 5, 5)
    torch.testing.assert_close(resize(torch.full((1, 1, 8, 8), 0.7), 5), torch.full((1, 1, 5, 5), 0.7))


def test_generator_streams_differ_by_key() -> None:
    keys = [(0,), (0, 0, 1), (0, 1), (1, 0), (0, 0, 2), (2**31, 5)]
    draws = [torch.rand(4, generator=generator(*key)) for key in keys]
    assert len({tuple(d.tolist()) for d in draws}) == len(keys)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"val_fraction": 1.0}, r"data\.val_fraction=1\.0"),
        ({"search_fraction": -0.1}, r"data\.search_fraction=-0\.1"),
        ({"val_fraction": "half"}, r"data\.val_fraction='half'"),
        ({"val_fraction": 0.5, "search_fraction": 0.5}, r"data\.val_fraction=0\.5 \+ data\.search_fraction"),
        ({"batch_size": 211}, r"train\.batch_size=211 .* 210 images"),
        ({"batch_size": 0}, r"train\.batch_size=0"),
        ({"batch_size": 1.5}, r"train\.batch_size=1\.5"),
        ({"eval_batch_size": True}, r"data\.eval_batch_size=True"),
        ({"resolution": []}, r"data\.resolution=\[\]"),
        ({"resolution": [8, 0]}, r"data\.resolution=0"),
        ({"resolution": "28"}, r"data\.resolution='28'"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_settings_name_the_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        make(**changes)


def test_bad_requests() -> None:
    data = make(val_fraction=0)
    with pytest.raises(UserError, match="split 'valid' does not exist: choose one of train, val"):
        data.evaluation("valid", 8)
    with pytest.raises(UserError, match=r"data\.val_fraction"):
        data.evaluation("val", 8)
    with pytest.raises(UserError, match=r"data\.resolution=0"):
        data.evaluation("test", 0)
    with pytest.raises(UserError, match=r"data\.resolution=-4"):
        data.calibration(-4, 10)
    with pytest.raises(UserError, match="limit=0"):
        data.evaluation("test", 8, 0)
