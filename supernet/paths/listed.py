"""Training a given list of subnets, in turn or at random (Deeper Insights, Zhang et al., 2020, trains 64 in turn)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from supernet.horizon import Horizon
from supernet.paths.base import LossOf, Path
from supernet.sharing.make import read_archs
from supernet.space import Arch, Space
from supernet.window import enumerate_archs

Order = Literal["cyclic", "shuffled", "random"]
MOST = 10_000  # subnets of a space that is trained as a whole


class Listed:
    """Every draw is the next of a list of subnets.

    In a cyclic or shuffled order all subnets have been drawn equally often after each round, which can span several
    steps, as long as the number of random subnets a step stays the same. What the list holds twice counts twice.

    Args:
        space: what the subnets belong to.
        seed: of the run.
        horizon: not used.
        archs: the subnets in their readable form, or a JSON file of them (a list of archs, or of rows with `arch`);
            None: all of the space.
        order: "cyclic": that of the list, again and again; "shuffled": a new one in every round; "random": every draw
            is one of them, independently.
        members: the subnets themselves, given by code in place of `archs`.

    Raises:
        ValueError: if there are none, or more than 10,000 in a space without a list, or one is not of the space.
        UserError: if `archs` cannot be read.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        horizon: Horizon,
        archs: str | tuple[Mapping[str, Any], ...] | None = None,
        order: Order = "cyclic",
        *,
        members: Sequence[Arch] | None = None,
    ) -> None:
        if order not in ("cyclic", "shuffled", "random"):
            raise ValueError(f"order={order!r}: choose cyclic, shuffled or random")
        self.space, self.seed, self.order = space, seed, order
        if members is not None:
            self.members = [space.decode(space.encode(arch)) for arch in members]
        elif archs is not None:
            self.members = read_archs(space, archs)
        elif space.size() > MOST:
            raise ValueError(
                f"archs=null: space {space.name!r} has {space.size():,} subnets, more than {MOST:,}: give a JSON list "
                "of those to train"
            )
        else:
            self.members = list(enumerate_archs(space))
        if not self.members:
            raise ValueError("archs: the list holds no subnet")

    def draw(self, step: int, count: int, loss_of: LossOf) -> list[Path]:
        total = len(self.members)
        draws = range(step * count, (step + 1) * count)
        if self.order == "random":
            rngs = (np.random.default_rng((self.seed, step, slot)) for slot in range(count))
            return [Path(self.members[rng.integers(total)]) for rng in rngs]
        if self.order == "cyclic":
            return [Path(self.members[draw % total]) for draw in draws]
        rounds = {draw // total for draw in draws}
        orders = {number: np.random.default_rng((self.seed, number)).permutation(total) for number in rounds}
        return [Path(self.members[orders[draw // total][draw % total]]) for draw in draws]
