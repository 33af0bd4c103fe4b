"""Two streams of training batches, for the weights and for the architecture parameters, off one pass over the data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from supernet.data.base import Batch, Data, check_split, generator
from supernet.errors import UserError

# Second words of random keys: data sets have the epoch there, which never gets so far.
PARTS, WEIGHTS, ARCH = 2**31, 2**31 + 1, 2**31 + 2


class Halves:
    """The images of the training split in two parts: one for the weights, the rest for the architecture parameters.

    An epoch visits every image for the weights once; the last incomplete batch is dropped. The other stream goes on
    from epoch to epoch and is shuffled anew whenever it is used up. Everything is a function of (seed, epoch, step). A
    data set serves one order at a time, so both kinds of batches come in turns out of one order: weights,
    architecture, weights, ... A split in two halves is DARTS' (Liu et al., 2019, section 3).

    Args:
        batch_size: that of `data`.
        portion: share of the training images that the weights learn from, above 0; 1: both streams run over all
            images, in orders of their own. Without effect where `arch_split` is "search".
        arch_split: "train": as above. "search": the weights have all training images, and the architecture
            parameters the held-out search split, without augmentation, at the size of the training images; for weights
            that have seen the training images already. It is held on the device in fp32.
        weights: false: the weights stay. Both batches of a step are then the same one, for the architecture parameters,
            and an epoch visits their images once.

    Attributes:
        steps_per_epoch: batches in an epoch.

    Raises:
        UserError: if a part holds less than one batch, or the search split no images.
    """

    def __init__(
        self,
        data: Data,
        seed: int,
        batch_size: int,
        portion: float = 0.5,
        arch_split: Literal["train", "search"] = "train",
        weights: bool = True,
    ) -> None:
        count = data.sizes["train"]
        assert data.steps_per_epoch() == count // batch_size
        if not 0 < portion <= 1:
            raise UserError(f"algorithm.train_portion={portion}: must be above 0 and at most 1")
        if arch_split == "search":
            check_split("search", data.sizes)
        self._data, self._seed, self._batch_size = data, seed, batch_size
        self._from_search, self._both = arch_split == "search", weights
        order = torch.randperm(count, generator=generator(seed, PARTS))
        first = count if self._from_search else round(portion * count)
        self._weights = order[:first]
        self._arch = order[first:] if first < count else order
        for part, name in ((self._weights, "the weights"), (self._arch, "the architecture parameters")):
            if len(part) < batch_size:
                raise UserError(
                    f"algorithm.train_portion={portion} leaves {len(part)} images for {name}, fewer than one batch of "
                    f"{batch_size}: choose another portion or smaller batches"
                )
        self.steps_per_epoch = first // batch_size
        if not weights:
            images = data.sizes["search"] if self._from_search else len(self._arch)
            self.steps_per_epoch = max(1, images // batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Batch, Batch]]:
        """Of every step from number `first_step` on: a batch for the weights, one for the architecture parameters.

        `index` are positions in the training split, or, of batches from the search split, in that.
        """
        if not self._both:
            yield from ((batch, batch) for batch in self._alone(epoch, first_step))
            return
        images = self.steps_per_epoch * self._batch_size
        weights = self._shuffled(WEIGHTS, self._weights, epoch)[:images]
        if self._from_search:
            yield from zip(self._passes(epoch, weights, first_step), self._held_out(epoch, first_step), strict=True)
            return
        arch = self._endless(self._arch, epoch * images, images)
        turns = torch.stack([part.view(-1, self._batch_size) for part in (weights, arch)], dim=1)
        batches = self._passes(epoch, turns.flatten(), 2 * first_step)
        yield from zip(batches, batches, strict=True)

    def _alone(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """Batches for the architecture parameters."""
        if self._from_search:
            return self._held_out(epoch, first_step)
        images = self.steps_per_epoch * self._batch_size
        return self._passes(epoch, self._endless(self._arch, epoch * images, images), first_step)

    def _passes(self, epoch: int, order: Tensor, first_batch: int) -> Iterator[Batch]:
        """Batches of the positions `order` [N], from number `first_batch` on.

        They come in as many passes over the data as are needed. A pass takes an order of as many positions as there are
        training images, so the last one is filled up.
        """
        per_pass, count = self._data.steps_per_epoch(), len(order) // self._batch_size
        passes = math.ceil(count / per_pass)
        for number in range(first_batch // per_pass, passes):
            first = max(first_batch - number * per_pass, 0)
            own = order[number * per_pass * self._batch_size :][: per_pass * self._batch_size]
            filled = torch.cat([own, own.new_zeros(self._data.sizes["train"] - len(own))])
            batches = self._data.train(epoch * passes + number, first, filled)
            yield from islice(batches, len(own) // self._batch_size - first)

    def _held_out(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """Batches of the search split; smaller ones where the whole split is smaller."""
        images, targets = self._search_split
        size = min(self._batch_size, len(targets))
        visits = size * self.steps_per_epoch
        order = self._endless(torch.arange(len(targets)), epoch * visits, visits).to(targets.device)
        for index in order.split(size)[first_step:]:
            yield Batch(images[index], targets[index], index)

    @cached_property
    def _search_split(self) -> tuple[Tensor, Tensor]:
        """Images [N, C, S, S] and targets [N]."""
        images, targets = zip(*self._data.evaluation("search", self._data.info.size), strict=True)
        return torch.cat(images), torch.cat(targets)

    def _endless(self, part: Tensor, start: int, count: int) -> Tensor:
        """Entries `start` to `start` + `count` of `part` shuffled again and again."""
        first, last = start // len(part), (start + count - 1) // len(part)
        rounds = torch.cat([self._shuffled(ARCH, part, number) for number in range(first, last + 1)])
        return rounds[start - first * len(part) :][:count]

    def _shuffled(self, stream: int, part: Tensor, number: int) -> Tensor:
        # Zeros at the end of a key do not count.
        return part[torch.randperm(len(part), generator=generator(self._seed, stream, 1 + number))]
