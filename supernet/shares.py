"""How the processes of a training share its batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from supernet.distributed import Ranks
from supernet.errors import UserError
from supernet.layers.synchronised import synchronise
from supernet.micro_batch import has_batch_norm
from supernet.reduce import copy_from_first, mean_over, row_before, sum_over

if TYPE_CHECKING:
    from supernet.settings import TrainSettings


class Shares:
    """This process's share of every batch, and what its numbers say about the whole one.

    Args:
        ranks: the processes.
        settings: of the training; the batch size is that of all processes together.
        net: the supernet.

    Attributes:
        images: how many images of a batch are this process's.
        total: how many there are.

    Raises:
        UserError: if batches are too small, or settings do not go together with several processes.
    """

    def __init__(self, ranks: Ranks, settings: TrainSettings, net: nn.Module) -> None:
        self.ranks, self.total = ranks, settings.batch_size
        own = ranks.share(self.total)
        self.images: int = own.stop - own.start
        self._synchronised = ranks.world > 1 and settings.sync_batch_norm
        self._mixes = bool(settings.mixup or settings.cutmix)
        if ranks.world > 1:
            _check(ranks.world, settings, has_batch_norm(net))

    def begin(self, net: nn.Module) -> None:
        """Before the first step: equal weights in all processes, and batch norms as the settings say."""
        copy_from_first(self.ranks, [*net.parameters(), *net.buffers()])  # other machines may have rounded otherwise
        self.synchronise(net)

    def synchronise(self, net: nn.Module) -> None:
        """Let the batch norms of `net`, which may be a teacher, see the whole batch if the settings say so."""
        if self._synchronised:
            synchronise(net)

    def mixed(
        self,
        mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        images: Tensor,
        targets: Tensor,
        seed: int,
        step: int,
    ) -> tuple[Tensor, Tensor]:
        """This process's share of a batch after `mix`, which mixes every image with the one before it.

        Seeds torch's generators, for what is mixed and for dropout and drop-path after it. Of several processes each
        then has a seed of its own, so that no two images of a batch get the same dropout.
        """
        torch.manual_seed(_fold(seed, step))
        if self.ranks.world == 1:
            return mix(images, targets)
        if self._mixes:
            images, targets = (torch.cat([row_before(self.ranks, rows), rows]) for rows in (images, targets))
            images, targets = (rows[1:] for rows in mix(images, targets))
        torch.manual_seed(_fold(seed, step, 1 + self.ranks.rank))
        return images, targets

    def mean(self, means: Tensor) -> Tensor:
        """Means over the images of a batch from those over this process's share, any shape. All have to ask."""
        return mean_over(self.ranks, means, self.images / self.total)

    def sum_gradients(self, net: nn.Module) -> None:
        """Sum the gradients of all processes."""
        sum_over(self.ranks, [weight.grad for weight in net.parameters() if weight.grad is not None])


def shares_note(config: Mapping[str, Any], net: nn.Module, ranks: Ranks) -> str | None:
    """One line about what several processes do with a batch."""
    if ranks.world == 1:
        return None
    batch, world = config["train"]["batch_size"], ranks.world
    least, most = batch // world, -(-batch // world)
    each = str(most) if least == most else f"{least} or {most}"
    line = f"{world} processes, each with {each} of a batch's {batch} images"
    if not has_batch_norm(net):
        return line
    if config["train"].get("sync_batch_norm"):
        return f"{line}; batch norms see all of them (train.sync_batch_norm=true)"
    return f"{line}; batch norms see a process's own (train.sync_batch_norm=true: all of them)"


def _check(world: int, settings: TrainSettings, has_norms: bool) -> None:
    batch, least = settings.batch_size, settings.batch_size // world
    if not least:
        raise UserError(
            f"train.batch_size={batch}: too few images for {world} processes, each needs one of every batch"
        )
    if has_norms and least == 1 and not settings.sync_batch_norm:
        raise UserError(
            f"train.batch_size={batch}: batch norms need at least 2 images in each of {world} processes; set "
            f"train.batch_size={2 * world} or more, or train.sync_batch_norm=true"
        )
    if not (has_norms and settings.sync_batch_norm):
        return
    if settings.compile != "off":
        raise UserError(f"train.compile={settings.compile}: does not go with train.sync_batch_norm=true, drop one")
    if settings.micro_batch is not None and batch % world:
        raise UserError(
            f"train.batch_size={batch}: with train.micro_batch and train.sync_batch_norm=true it must be a multiple of "
            f"the {world} processes"
        )


def _fold(*numbers: int) -> int:
    """One 63-bit seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
