"""Large datasets: worker processes decode images, and augment them or leave it to the device, while that computes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from supernet.data.ahead import prepared_ahead
from supernet.data.apply import apply
from supernet.data.base import (
    SPLITS,
    Batch,
    DataInfo,
    Normalise,
    Settings,
    check_batch_size,
    check_int,
    check_split,
    checked_order,
    epoch_order,
    even_chunks,
    resize,
)
from supernet.data.files import Files
from supernet.data.operations import Operations, Row, batched
from supernet.data.splits import fingerprint
from supernet.data.workers import (
    deaths_noticed_later,
    leave_signals_to_main,
    seeded_libraries,
    stop_signals_held,
    worker_count,
)
from supernet.distributed import ALONE, Ranks
from supernet.errors import UserError

Transform = Callable[[Path], tuple[Tensor, list[Row]]]
Key = tuple[int, int, int]  # epoch, position in the split, visits of it earlier in the epoch
# uint8 image, target, position in the split, what the device is to do, why files before it could not be read
Item = tuple[Tensor, int, int, list[Row], list[str]]
INSTEAD = 8  # images tried in the place of an unreadable one


class Loaded(NamedTuple):
    """What a worker process makes of a batch: uint8 images `[B, 3, S, S]`, and int64 targets and positions `[B]`.

    `skipped` holds a message for each file that could not be read.
    """

    images: Tensor
    targets: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, as in Batch
    operations: Operations | None
    skipped: list[str]


class StreamData:
    """Image files read by worker processes. It implements the `Data` protocol.

    train_transform and test_transform turn a file into uint8 `[3, size, size]` and the operations that are left for
    the device; the first may draw from the global generators of torch (CPU), `random` and NumPy, which are seeded
    for each image by (seed, epoch, index), and at later visits in the same epoch by their number too. `fill` (uint8
    `[3]`) is the colour that those operations bring in from outside. Each worker process makes whole batches,
    `prefetch_factor` of them ahead. Evaluation images are decoded once and kept on the device as uint8 while they fit
    into `cache_limit_mb` (MB, for all splits together), else decoded again at each pass.

    An unreadable file raises UserError where it is needed. With `skip_bad`, another image of the split, drawn from
    (seed, position), takes its place, and a warning on stderr names the file when it is met for the first time.

    Raises UserError if a batch does not fit the training split, or for a bad value.
    """

    def __init__(
        self,
        splits: Mapping[str, Files],
        made: Sequence[str],
        info: DataInfo,
        settings: Settings,
        train_transform: Transform,
        test_transform: Transform,
        *,
        fill: Tensor | None = None,
        num_workers: int | None = None,
        prefetch_factor: int = 4,
        cache_limit_mb: int = 4096,
        skip_bad: bool = False,
    ) -> None:
        self.info = info
        self.sizes: Mapping[str, int] = {split: len(splits[split]) for split in SPLITS}
        check_batch_size(settings.batch_size, self.sizes["train"])
        check_int("data.cache_limit_mb", cache_limit_mb, minimum=0)
        self._settings = settings
        self._device = torch.device(settings.device)
        self._splits, self._made = dict(splits), tuple(made)
        self._num_workers = worker_count(num_workers)
        self._prefetch_factor = check_int("data.prefetch_factor", prefetch_factor, minimum=1)
        self._fill = self._send(torch.zeros(3, dtype=torch.uint8) if fill is None else fill)
        self._normalise = Normalise(info.mean, info.std, self._device)
        self._test_transform = test_transform
        self._skip_bad = skip_bad
        self._bad: set[str] = set()
        self._cache: dict[tuple[str, int], Tensor] = {}
        self._cache_left = cache_limit_mb * 2**20
        self._keys = _EpochKeys(self.sizes["train"], settings)
        self._train_loader = self._loader(self._images("train", train_transform), self._keys, persistent=True)

    def steps_per_epoch(self) -> int:
        """Number of training batches in an epoch; the incomplete last one is dropped."""
        return self.sizes["train"] // self._settings.batch_size

    def train(
        self, epoch: int, first_batch: int = 0, order: Tensor | None = None, ranks: Ranks = ALONE
    ) -> Iterator[Batch]:
        """Training batches of one epoch from number `first_batch` on; `order` as in `Data.train`.

        The order is a function of (seed, epoch) unless it is given, an image's augmentation of (seed, epoch,
        index, earlier visits in the order): a resumed epoch yields exactly the batches that the uninterrupted
        one would have. Each of `ranks` decodes its share of every batch. One epoch at a time: the workers serve the
        latest call.
        """
        self._keys.start(epoch, first_batch, order, ranks)
        yield from prepared_ahead(self._batches_of(self._train_loader), self._prepare, self._device)

    def evaluation(self, split: str, resolution: int, limit: int | None = None) -> Sequence[tuple[Tensor, Tensor]]:
        """Batches (images `[B, 3, R, R]`, targets `[B]`) of a split, resized when they are used.

        `limit` takes the first images of the split, which are a random subset. Raises UserError for an
        unknown or empty split and for a resolution below 1.
        """
        count = check_split(split, self.sizes, limit)
        check_int("data.resolution", resolution, minimum=1)
        size = self._settings.eval_batch_size
        chunks = [slice(i, min(i + size, count)) for i in range(0, count, size)]
        return self._batches(split, chunks, resolution)

    def calibration(self, resolution: int, num_images: int) -> Sequence[Tensor]:
        """The first `num_images` images of the training split (all of them if fewer), without augmentation.

        The split is in an order drawn from split_seed, so this subset is random, and the same in every run.
        Batches `[B, 3, R, R]` differ in size by at most one image.
        """
        check_int("data.resolution", resolution, minimum=1)
        count = min(check_int("num_images", num_images, minimum=1), self.sizes["train"])
        chunks = even_chunks(count, self._settings.eval_batch_size)
        return _ImagesOnly(self._batches("train", chunks, resolution))

    def split_record(self) -> dict[str, Any]:
        """Counts, split seed, a hash of each split's file names, and the names of held-out training files."""
        return {
            "dataset": self.info.name,
            "split_seed": self._settings.split_seed,
            "counts": dict(self.sizes),
            "sha256": {split: fingerprint(self._splits[split].names) for split in SPLITS},
            "held_out_of_training_images": {s: list(self._splits[s].names) for s in self._made},
        }

    def speed_advice(self) -> str:
        """What makes this loader faster, for a run that waits for it."""
        cores = worker_count(None)
        more = f"raise data.num_workers (now {self._num_workers}; this machine lets us use {cores} cores), "
        return (
            f"{more if self._num_workers < cores else ''}move flip and policy to the device "
            "(data.augment_on=device), decode faster (data.fast_decode=true), or store smaller image files"
        )

    def _prepare(self, loaded: Loaded) -> Batch:
        images = self._send(loaded.images)
        if loaded.operations is not None:
            parameters, order, counts = loaded.operations
            images = apply(images, Operations(self._send(parameters), self._send(order), counts), self._fill)
        return Batch(self._normalise(images), self._send(loaded.targets), self._send(loaded.index))

    def _batches(self, split: str, chunks: Sequence[slice], side: int) -> _Batches:
        files = self._splits[split]
        count = chunks[-1].stop
        finish = partial(self._finish, side)
        cached = self._cached(split, count)
        if cached is not None:
            targets = self._send(torch.tensor(files.targets[:count]))
            return _Batches(chunks, lambda some: ((cached[c], targets[c]) for c in some), finish)
        return _Batches(chunks, partial(self._decode, split), finish)

    def _cached(self, split: str, count: int) -> Tensor | None:
        """The first `count` images of a split, uint8 `[N, 3, S, S]`, or None if they do not fit."""
        for (name, size), images in self._cache.items():
            if name == split and size >= count:
                return images[:count]
        num_bytes = count * 3 * self.info.size**2
        if num_bytes > self._cache_left:
            return None
        images = torch.empty(count, 3, self.info.size, self.info.size, dtype=torch.uint8, device=self._device)
        size = self._settings.eval_batch_size
        chunks = [slice(i, min(i + size, count)) for i in range(0, count, size)]
        for chunk, (decoded, _) in zip(chunks, self._decode(split, chunks), strict=True):
            images[chunk] = decoded
        self._cache_left -= num_bytes
        self._cache[split, count] = images
        return images

    def _decode(self, split: str, chunks: Sequence[slice]) -> Iterator[tuple[Tensor, Tensor]]:
        dataset = self._images(split, self._test_transform)
        keys = [[(0, position, 0) for position in range(c.start, c.stop)] for c in chunks]
        for loaded in self._batches_of(self._loader(dataset, keys, persistent=False)):
            yield self._send(loaded.images), self._send(loaded.targets)

    def _images(self, split: str, transform: Transform) -> _Images:
        return _Images(self._splits[split], transform, self._settings.seed, INSTEAD if self._skip_bad else 0)

    def _batches_of(self, loader: DataLoader[Item | str]) -> Iterator[Loaded]:
        """The loader's batches; UserError if one is a message from a worker process, RuntimeError if one has ended."""
        for batch in _received(_start(loader)):
            if isinstance(batch, str):
                break
            for message in batch.skipped:
                self._warn_once(message)
            yield batch
        else:
            return
        # Raised outside the loop, so that the traceback does not keep the workers of this pass alive.
        raise UserError(batch)

    def _warn_once(self, message: str) -> None:
        if message not in self._bad:
            self._bad.add(message)
            line = f"warning: {message.partition(': replace it')[0]}: skipped, {len(self._bad)} so far"
            print(line, file=sys.stderr, flush=True)

    def _finish(self, side: int, images: Tensor) -> Tensor:
        return resize(self._normalise(images), side)

    def _send(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)

    def _loader(
        self, dataset: _Images, batches: Sequence[list[Key]] | _EpochKeys, *, persistent: bool
    ) -> DataLoader[Item | str]:
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=_collate,
            num_workers=self._num_workers,
            persistent_workers=persistent and self._num_workers > 0,
            prefetch_factor=self._prefetch_factor if self._num_workers else None,
            worker_init_fn=leave_signals_to_main,
            pin_memory=self._device.type == "cuda",
            # Without a generator of its own, each pass would draw from the global one.
            generator=torch.Generator(),
        )


class _EpochKeys:
    """Batches of keys that tell persistent workers what to load; `start` picks the epoch and its order."""

    def __init__(self, num_images: int, settings: Settings) -> None:
        self._num_images = num_images
        self._size, self._seed = settings.batch_size, settings.seed
        self._epoch = self._first_batch = 0
        self._order: Tensor | None = None
        self._own = slice(0, self._size)  # of every batch

    def start(self, epoch: int, first_batch: int, order: Tensor | None, ranks: Ranks) -> None:
        self._epoch, self._first_batch, self._own = epoch, first_batch, ranks.share(self._size)
        self._order = None if order is None else checked_order(order, self._num_images)

    def __len__(self) -> int:
        return max(self._num_images // self._size - self._first_batch, 0)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, size, first, order = self._epoch, self._size, self._first_batch, self._order
        order = epoch_order(self._num_images, self._seed, epoch) if order is None else order
        positions, earlier = order.tolist(), _earlier_visits(order).tolist()
        for batch in range(first, self._num_images // size):
            chosen = slice(batch * size + self._own.start, batch * size + self._own.stop)
            yield [(epoch, *key) for key in zip(positions[chosen], earlier[chosen], strict=True)]


def _earlier_visits(order: Tensor) -> Tensor:
    """How often each entry of `order` [N] came before it; int64 [N]."""
    by_position, places = order.sort(stable=True)
    earlier = torch.arange(len(order)) - torch.searchsorted(by_position, by_position)
    return torch.empty_like(order).scatter_(0, places, earlier)


class _Images(Dataset[Item | str]):
    """Decodes and transforms one image at a time.

    In place of an unreadable file, up to `instead` others are tried, the same ones at every visit. If none can be read,
    the item is the message for the user: as an exception it would arrive from the worker wrapped in a traceback.
    """

    def __init__(self, files: Files, transform: Transform, seed: int, instead: int = 0) -> None:
        self._files, self._transform, self._seed, self._instead = files, transform, seed, instead

    def __getitem__(self, key: Key) -> Item | str:
        epoch, position, earlier = key
        again = (earlier,) if earlier else ()  # first visits draw the same numbers in every order
        skipped: list[str] = []
        for place in self._candidates(position):
            try:
                with seeded_libraries(self._seed, epoch, 1 + place, *again):
                    image, rows = self._transform(self._files.root / self._files.names[place])
                return image, self._files.targets[place], place, rows, skipped
            except UserError as error:
                skipped.append(str(error))
        return skipped[0] if not self._instead else f"{skipped[0]} (tried, as were {self._instead} others in its place)"

    def _candidates(self, position: int) -> Iterator[int]:
        yield position
        if self._instead:
            rng = np.random.default_rng((self._seed, position))
            yield from rng.integers(len(self._files), size=self._instead).tolist()


class _Batches(Sequence[tuple[Tensor, Tensor]]):
    """Evaluation batches made when they are asked for: `read` yields (uint8 images, targets) per chunk."""

    def __init__(
        self,
        chunks: Sequence[slice],
        read: Callable[[Sequence[slice]], Iterator[tuple[Tensor, Tensor]]],
        finish: Callable[[Tensor], Tensor],
    ) -> None:
        self._chunks, self._read, self._finish = chunks, read, finish

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in self._read(self._chunks):
            yield self._finish(images), targets

    @overload
    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]: ...
    @overload
    def __getitem__(self, item: slice) -> _Batches: ...
    def __getitem__(self, item: int | slice) -> tuple[Tensor, Tensor] | _Batches:
        if isinstance(item, slice):
            return _Batches(self._chunks[item], self._read, self._finish)
        return next(iter(_Batches([self._chunks[item]], self._read, self._finish)))


class _ImagesOnly(Sequence[Tensor]):
    """The images alone of evaluation batches."""

    def __init__(self, batches: _Batches) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Tensor]:
        return (images for images, _ in self._batches)

    @overload
    def __getitem__(self, item: int) -> Tensor: ...
    @overload
    def __getitem__(self, item: slice) -> _ImagesOnly: ...
    def __getitem__(self, item: int | slice) -> Tensor | _ImagesOnly:
        return _ImagesOnly(self._batches[item]) if isinstance(item, slice) else self._batches[item][0]


def _collate(items: list[Item | str]) -> Loaded | str:
    """Put images into a batch; if a message is among the items, return that."""
    images = []
    for item in items:
        if isinstance(item, str):
            return item
        images.append(item)
    lists = [item[3] for item in images]
    pixels, targets, index = default_collate([item[:3] for item in images])
    skipped = [message for item in images for message in item[4]]
    return Loaded(pixels, targets, index, batched(lists) if any(lists) else None, skipped)


def _start(loader: DataLoader[Item | str]) -> Iterator[Any]:
    with stop_signals_held(), deaths_noticed_later():
        return iter(loader)


def _received(batches: Iterator[Any]) -> Iterator[Any]:
    """What the worker processes send; torch's words for all that the end of one of them looks like."""
    try:
        yield from batches
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # of the sockets that hand memory over
        raise RuntimeError("a DataLoader worker exited unexpectedly") from error
