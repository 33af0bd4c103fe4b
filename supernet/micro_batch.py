"""Batches in parts, for memory: which parts, what a step needs, and what is chosen where it does not fit.

Every slot of a step runs its micro-batches one after another, and their gradients add up to those of the whole batch.
That changes rounding only, where images do not see each other (layer norms). Batch norms normalise each micro-batch
with its own statistics, as every data-parallel training does with each device's share of a batch. Dropout and
drop-path draw anew for every micro-batch, from the generator that the step seeded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from supernet.errors import UserError
from supernet.memory import Kept, free_memory, kept_for_backward
from supernet.recompute import nothing_recomputed, recomputed_blocks

if TYPE_CHECKING:
    from supernet.sharing.members import AnySupernet

FEW = 2  # images that estimates run with: batch norms want more than one value per channel
SHARE = 0.9  # of the free memory that is used: workspaces, fragments, other resolutions of the batch
COPIES = 5  # of the weights: gradients, a slot's own, two moments, moving average


def micro_batches(count: int, size: int | None) -> list[slice]:
    """`count` images in the fewest parts of at most `size`, as equal as can be; None: in one."""
    parts = 1 if size is None else -(-count // size)
    bounds = [count * i // parts for i in range(parts + 1)]
    return [slice(begin, end) for begin, end in pairwise(bounds)]


@dataclass(frozen=True)
class Need:
    """Bytes of a forward and backward pass: `fixed` and `per_image`, weights and their gradients left out."""

    fixed: float
    per_image: float

    def bytes(self, images: int) -> float:
        """Of a pass of so many images."""
        return self.fixed + self.per_image * images

    def fitting(self, free: float) -> int:
        """How many images fit."""
        return max(0, int((free - self.fixed) // self.per_image))


@dataclass(frozen=True)
class Estimate:
    """What the pass of a network's largest subnet needs, in bytes.

    Attributes:
        plain: as it is.
        recomputed: with `supernet.recompute.checkpoint_activations`.
        beside: gradients, optimizer and moving average, whatever the batch.
        batch_norm: whether images see each other.
    """

    plain: Need
    recomputed: Need
    beside: int
    batch_norm: bool


@dataclass(frozen=True)
class Choice:
    """How a step is fitted into memory: `checkpoint_activations` and `micro_batch` of the training's settings."""

    checkpoint_activations: bool
    micro_batch: int | None


def estimate(net: AnySupernet, autocast: bool = False, dropout: float = 0.0, drop_path: float = 0.0) -> Estimate:
    """What the largest subnet needs at its resolution, from two forward passes of a few images.

    Counted is what autograd keeps; see `_most_held`. Leaves no trace in `net` and in the states of random generators.
    """
    from supernet.sharing.members import member_of  # which imports the training step

    weight = next(net.parameters())
    largest = net.space.largest()
    side, channels = net.space.resolution(largest), net.space.description["in_channels"]
    member = member_of(net, largest)
    blocks = recomputed_blocks(member.net)
    was_training = net.training
    net.train()
    found = []
    devices = [weight.device] if weight.device.type == "cuda" else []
    with torch.random.fork_rng(devices), nothing_recomputed(member.net):
        for count in (FEW, 2 * FEW):
            images = torch.randn(count, channels, side, side, device=weight.device, dtype=weight.dtype)
            with torch.autocast(weight.device.type, torch.bfloat16, enabled=autocast):
                found.append(kept_for_backward(net, partial(net, images, largest, dropout, drop_path), blocks))
    net.train(was_training)
    return Estimate(
        plain=_need([_most_held(kept, recomputed=False) for kept in found]),
        recomputed=_need([_most_held(kept, recomputed=True) for kept in found]),
        beside=COPIES * sum(p.numel() * p.element_size() for p in net.parameters()),
        batch_norm=has_batch_norm(member),
    )


def _most_held(kept: Kept, recomputed: bool) -> int:
    """The most bytes at any time of a backward pass, rather too many.

    To what is kept comes as much as the greediest block keeps, for gradients on their way through it; and what it keeps
    itself, where it was computed again.
    """
    greediest = max(kept.inside, default=0)
    inside = greediest if recomputed else sum(kept.inside)
    return kept.outside + kept.inputs + inside + greediest


def _need(few_and_twice: list[int]) -> Need:
    few, twice = few_and_twice
    per_image = (twice - few) / FEW
    return Need(few - FEW * per_image, per_image)


def choose(needs: Estimate, free: float, batch: int, checkpointing: bool = False) -> Choice:
    """The cheapest way to fit a batch into `free` bytes that changes least.

    As it is, where it fits; else with activations computed again, which changes no number; else also in micro-batches.

    Args:
        checkpointing: activations are computed again in any case.

    Raises:
        UserError: if not even the smallest micro-batch fits.
    """
    usable = SHARE * free - needs.beside
    if needs.plain.bytes(batch) <= usable:
        return Choice(checkpointing, None)
    fitting = needs.recomputed.fitting(usable)
    if fitting >= batch:
        return Choice(True, None)
    least = 2 if needs.batch_norm else 1
    if fitting < min(least, batch):
        need, have = (needs.recomputed.bytes(least) + needs.beside) / SHARE / 2**20, free / 2**20
        raise UserError(
            f"train.micro_batch=auto: the largest subnet needs about {need:,.0f} MiB for micro-batches of {least}, "
            f"and {have:,.0f} MiB are free; choose a smaller space or resolution, or another device"
        )
    even = micro_batches(batch, fitting)
    return Choice(True, max(part.stop - part.start for part in even))


def settled(config: Mapping[str, Any], net: AnySupernet, processes: int = 1) -> dict[str, Any]:
    """The configuration with what `train.micro_batch=auto` chooses as plain values: a resumed run repeats them.

    Where the system does not tell how much memory is free, nothing changes. `processes` share every batch, and on a CPU
    the memory.

    Raises:
        UserError: if the largest subnet does not fit.
    """
    train = config["train"]
    if train.get("micro_batch") != "auto":
        return dict(config)
    device = next(net.parameters()).device
    free, batch = free_memory(device), -(-train["batch_size"] // processes)
    checkpointing = train.get("checkpoint_activations", False)
    choice = Choice(checkpointing, None)
    if free is not None:
        own = free / processes if device.type == "cpu" else free
        choice = choose(_estimate_for(train, net), own, batch, checkpointing)
    return {**config, "train": {**train, **asdict(choice)}}


def memory_line(config: Mapping[str, Any], net: AnySupernet) -> str:
    """What a step needs, what is free, and what `train.micro_batch=auto` would choose: one line to print."""
    train, free = config["train"], free_memory(next(net.parameters()).device)
    batch, needs = train["batch_size"], _estimate_for(train, net)
    plain, again = ((need.bytes(batch) + needs.beside) / 2**20 for need in (needs.plain, needs.recomputed))
    line = (
        f"memory for a pass of the largest subnet, weights aside: about {plain:,.0f} MiB for {batch} images, "
        f"{again:,.0f} with train.checkpoint_activations=true"
    )
    if free is None:
        return line
    try:
        choice = choose(needs, free, batch, train.get("checkpoint_activations", False))
    except UserError as error:
        return f"{line}; {error}"
    settings = ", ".join(f"{key}={json.dumps(value)}" for key, value in asdict(choice).items())
    return f"{line}; {free / 2**20:,.0f} MiB are free: train.micro_batch=auto would choose {settings}"


def statistics_note(config: Mapping[str, Any], net: nn.Module) -> str | None:
    """One line where batch norms see less than a whole batch."""
    size, batch = config["train"].get("micro_batch"), config["train"]["batch_size"]
    if not isinstance(size, int) or size >= batch or not has_batch_norm(net):
        return None
    return f"train.micro_batch={size}: batch norms see {size} images at a time instead of {batch}"


def _estimate_for(train: Mapping[str, Any], net: AnySupernet) -> Estimate:
    return estimate(net, train["amp"], train["dropout"], train["drop_path"])


def has_batch_norm(net: nn.Module) -> bool:
    """Whether images of a batch see each other."""
    return any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
