"""Running means of the training losses, kept on the device and read once per logging interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from supernet.errors import UserError
from supernet.samplers.base import Slot

OverRanks = Callable[[Tensor], Tensor]


class LossMeter:
    """Means per role. Reading them is the only host-device synchronisation of the training loop.

    Args:
        over_ranks: makes means over all processes' images of means [N] over those of this one, see
            `supernet.reduce.mean_over`; every process has to read at the same steps.
    """

    def __init__(self, over_ranks: OverRanks | None = None) -> None:
        self._over_ranks = over_ranks
        self._losses: dict[str, list[Tensor]] = {}

    def add(self, slots: Sequence[Slot], losses: Sequence[Tensor]) -> None:
        """Remember one step's losses, without reading them."""
        for slot, loss in zip(slots, losses, strict=True):
            self._losses.setdefault(f"loss/{slot.role}", []).append(loss)

    def read(self, step: int) -> dict[str, float]:
        """{"loss/largest": mean, ...} since the last reading; starts anew.

        Raises:
            UserError: if a loss is NaN or infinite.
        """
        means = means_of(self._losses, self._over_ranks)
        self._losses.clear()
        bad = [role for role, mean in means.items() if not abs(mean) < float("inf")]
        if bad:
            raise UserError(not_finite(bad[0], step))
        return means


def means_of(values: Mapping[str, Sequence[Tensor]], over_ranks: OverRanks | None = None) -> dict[str, float]:
    """The means of scalars on a device, by name; waits for it once."""
    if not values:
        return {}
    means = torch.stack([torch.stack(list(found)).mean() for found in values.values()])
    if over_ranks is not None:
        means = over_ranks(means)
    return dict(zip(values, means.tolist(), strict=True))


def not_finite(what: str, step: int) -> str:
    """The line for a training that diverged."""
    return (
        f"{what} became NaN or infinite before step {step}: lower optim.lr, set train.clip_value=1, or use a longer "
        "schedule.warmup_epochs; a checkpoint written before is kept and still good"
    )
