"""The two streams of batches of gradient-based search: who sees which image, how often, and after resuming."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from test_data_folder import load, write_class
from test_data_memory import ALL, make
from torch import Tensor

from search.gradient.batches import Halves
from supernet.data import Batch, Data
from supernet.errors import UserError

# Python 3.12 and later warn when a process with threads is forked; the workers only decode images.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

Steps = list[tuple[Batch, Batch]]


def memory(**changes: Any) -> Data:
    """210 training images in batches of 16 and 60 to search on, augmented in every way."""
    return make(ALL, **changes)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """20 images in the training split, as `load` splits them."""
    for hue, name in enumerate(("ant", "bee")):
        write_class(tmp_path / "images" / name, 20, 50 * hue)
    return tmp_path / "images"


def indices(steps: Steps, stream: int) -> list[int]:
    return [int(i) for step in steps for i in step[stream].index]


def same(actual: Steps, expected: Steps) -> bool:
    tensors: list[tuple[Tensor, Tensor]] = []
    for one, other in zip(actual, expected, strict=True):
        tensors += [pair for a, b in zip(one, other, strict=True) for pair in zip(a, b, strict=True)]
    return bool(tensors) and all(torch.equal(a, b) for a, b in tensors)


@pytest.mark.parametrize(("portion", "sizes"), [(0.5, (105, 105)), (0.8, (168, 42)), (0.3, (63, 147))])
def test_the_parts_are_disjoint_and_cover_everything(portion: float, sizes: tuple[int, int]) -> None:
    halves = Halves(memory(), 0, 16, portion)
    assert halves.steps_per_epoch == sizes[0] // 16
    epochs = [list(halves.epoch(epoch)) for epoch in range(40)]
    for epoch in epochs:
        assert len(epoch) == halves.steps_per_epoch
        assert all(len(batch.targets) == 16 for step in epoch for batch in step)
        visited = indices(epoch, 0)
        assert len(set(visited)) == len(visited)
    weights, arch = ({i for epoch in epochs for i in indices(epoch, stream)} for stream in (0, 1))
    assert (len(weights), len(arch)) == sizes
    assert weights | arch == set(range(210))


def test_the_stream_for_the_architecture_is_shuffled_anew_whenever_it_is_used_up() -> None:
    halves = Halves(memory(), 0, 16, 0.8)  # 42 images, 160 visits of them in an epoch
    visits = [i for epoch in range(3) for i in indices(list(halves.epoch(epoch)), 1)]
    rounds = [visits[start : start + 42] for start in range(0, len(visits) - 41, 42)]
    assert len(rounds) == 11
    assert all(sorted(one) == sorted(rounds[0]) for one in rounds)
    assert len(set(map(tuple, rounds))) == len(rounds)


def test_with_all_images_both_streams_have_orders_of_their_own() -> None:
    halves = Halves(memory(), 0, 16, 1.0)
    assert halves.steps_per_epoch == memory().steps_per_epoch() == 13
    epochs = [list(halves.epoch(epoch)) for epoch in range(2)]
    orders = [indices(epoch, stream) for epoch in epochs for stream in (0, 1)]
    assert all(len(set(order)) == 208 for order in (orders[0], orders[2]))
    assert len(set(orders[1])) == 208  # the first round of 210
    assert len(set(map(tuple, orders))) == 4


@pytest.mark.parametrize("portion", [0.5, 0.8, 1.0])
def test_images_belong_to_their_indices_and_are_augmented_anew(portion: float) -> None:
    data, plain = memory(), make()
    shown = next(iter(plain.train(0, 0, torch.arange(210))))  # images of the positions 0 to 15, as they are
    seen: dict[int, list[Tensor]] = {}
    for epoch in range(2):
        for step in Halves(plain, 0, 16, portion).epoch(epoch):
            for batch in step:
                for image, target, index in zip(*batch, strict=True):
                    if index < 16:
                        assert torch.equal(image, shown.images[index])
                        assert target == shown.targets[index]
        for step in Halves(data, 0, 16, portion).epoch(epoch):
            for image, index in zip(step[0].images, step[0].index, strict=True):
                seen.setdefault(int(index), []).append(image)
    twice = [images for images in seen.values() if len(images) == 2]
    assert len(twice) > 50
    assert sum(torch.equal(*images) for images in twice) < 5


@pytest.mark.parametrize("arch_split", ["train", "search"])
@pytest.mark.parametrize("portion", [0.3, 0.5, 0.8, 1.0])
def test_a_resumed_epoch_goes_on_as_if_it_had_not_stopped(portion: float, arch_split: Any) -> None:
    reference = list(Halves(memory(), 3, 16, portion, arch_split).epoch(2))
    halves = Halves(memory(), 3, 16, portion, arch_split)
    list(islice(halves.epoch(1), 2))
    for first in range(len(reference)):
        assert same(list(halves.epoch(2, first)), reference[first:])
    assert list(halves.epoch(2, len(reference))) == []
    others = Halves(memory(), 4, 16, portion, arch_split)
    assert not same(list(others.epoch(2)), reference)
    assert not same(list(halves.epoch(3)), reference)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("portion", "arch_split"), [(0.5, "train"), (0.7, "train"), (1.0, "train"), (1.0, "search")])
def test_image_files_read_by_workers(files: Path, workers: int, portion: float, arch_split: Any) -> None:
    whole = Halves(load(files), 0, 4, portion, arch_split)
    data = load(files, num_workers=workers)
    assert data.sizes["train"] == 20
    halves = Halves(data, 0, 4, portion, arch_split)
    steps = {0.5: 2, 0.7: 3, 1.0: 5}[portion]
    reference = list(whole.epoch(1))
    assert len(reference) == halves.steps_per_epoch == steps
    assert len(set(indices(reference, 0))) == 4 * steps
    if portion < 1:
        assert not set(indices(reference, 0)) & set(indices(reference, 1))
    next(halves.epoch(0))  # dropped, with batches on their way
    assert same(list(halves.epoch(1, 1)), reference[1:])
    assert same(list(halves.epoch(1)), reference)


def test_the_search_split_is_left_as_it_is_and_shuffled() -> None:
    data = memory()
    halves = Halves(data, 0, 16, 0.5, "search")
    assert halves.steps_per_epoch == 13  # all training images are for the weights
    images = torch.cat([images for images, _ in data.evaluation("search", 8)])
    targets = torch.cat([targets for _, targets in data.evaluation("search", 8)])
    visits: list[int] = []
    for epoch in range(2):
        for weights, arch in halves.epoch(epoch):
            assert len(weights.targets) == len(arch.targets) == 16
            assert torch.equal(arch.images, images[arch.index])
            assert torch.equal(arch.targets, targets[arch.index])
            visits += arch.index.tolist()
    assert sorted(visits[:60]) == sorted(visits[60:120]) == list(range(60))
    assert visits[:60] != visits[60:120]


def test_a_search_split_smaller_than_a_batch_is_one() -> None:
    halves = Halves(memory(batch_size=70), 0, 70, arch_split="search")
    assert [len(arch.targets) for _, arch in halves.epoch(0)] == [60, 60, 60]


@pytest.mark.parametrize(
    ("portion", "said"),
    [
        (0.0, r"train_portion=0\.0: must be above 0"),
        (1.5, r"train_portion=1\.5: must be above 0 and at most 1"),
        (0.05, "leaves 10 images for the weights, fewer than one batch of 16"),
        (0.99, "leaves 2 images for the architecture parameters"),
    ],
)
def test_portions_that_leave_no_batch_are_refused(portion: float, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Halves(memory(), 0, 16, portion)


def test_no_search_split_is_refused() -> None:
    with pytest.raises(UserError, match="holds no images"):
        Halves(memory(search_fraction=0.0), 0, 16, arch_split="search")
