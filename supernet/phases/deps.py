"""Delayed shrinking: the largest subnet alone first, then gently all the others (DepS, ECCV 2024)."""

from __future__ import annotations

from dataclasses import replace

from supernet.horizon import Horizon
from supernet.phases.base import Phase
from supernet.samplers.base import Slot
from supernet.schedule import Schedule
from supernet.sorting import check_stage
from supernet.space import Space


class DelayedShrinking:
    """Trains the largest subnet alone, then every slot of the sampler, the children weighted up over a ramp.

    With e_w the step at `delay`, k the length of the ramp and j = 1 .. k the number of a step in it, which ends
    just before e_w, the losses of all slots but the largest count by beta = j/k * multiplier * lr(e_w) / lr(t) in the
    ramp and by `multiplier` from e_w on. So beta * lr(t), the rate at which children learn, rises linearly to
    multiplier * lr(e_w) and then follows the schedule. beta multiplies the slots' own weights and never exceeds
    `multiplier`, which only matters where the learning rate itself still warms up. The largest subnet is in every
    step, first, also where the sampler has none, so that it can teach.

    Args:
        delay: e_w as a share of the run: 150 of 270 epochs are 0.5556. 0: BigNAS, every slot from the first step.
        ramp: k as a share of the run: 5 of 270 epochs are 0.0185. 0: a hard switch.
        multiplier: weight of the children after the ramp. 0: nothing but the largest subnet learns.
        sort_channels: sort the channels by importance once, when the ramp starts (see `supernet.sorting`).

    Raises:
        ValueError: if the settings make no sense.
    """

    def __init__(
        self,
        space: Space,
        horizon: Horizon,
        schedule: Schedule,
        delay: float = 0.5556,
        ramp: float = 0.0185,
        multiplier: float = 1.0,
        sort_channels: bool = False,
    ) -> None:
        if not 0 <= delay < 1:
            raise ValueError(f"delay={delay}: a share of the run, from 0 to below 1")
        if not 0 <= ramp <= delay:
            raise ValueError(f"ramp={ramp}: a share of the run that ends at delay={delay}: give 0 to {delay}")
        if not 0 <= multiplier < float("inf"):
            raise ValueError(f"multiplier={multiplier}: must not be negative, and finite")
        self.space, self.horizon, self.schedule, self.multiplier = space, horizon, schedule, multiplier
        self.full_weight = round(delay * horizon.total_steps)  # e_w, in steps
        self.ramp_steps = round(ramp * horizon.total_steps)
        self.start = self.full_weight - self.ramp_steps
        if sort_channels:
            if self.start == 0:
                raise ValueError("sort_channels=true: there is nothing to sort by before the first step; raise delay")
            check_stage(space, 0)
        self._full = Phase("full", 0, space, largest_only=True)
        self._shrinking = Phase("shrinking", self.start, space, sort_channels=0 if sort_channels else None)

    def phase(self, step: int) -> Phase:
        return self._full if step < self.start else self._shrinking

    def beta(self, step: int) -> float:
        """The weight of all slots but the largest."""
        if step < self.start:
            return 0.0
        if step >= self.full_weight:
            return self.multiplier
        risen = (step - self.start + 1) / self.ramp_steps * self.lr(self.full_weight)
        lr = self.lr(step)
        return self.multiplier * (risen / lr if risen < lr else 1.0)

    def slots(self, step: int, slots: list[Slot]) -> list[Slot]:
        if not any(slot.role == "largest" for slot in slots):
            slots = [Slot(self.space.largest(), "largest"), *slots]
        if step < self.start:
            return [slot for slot in slots if slot.role == "largest"]
        beta = self.beta(step)
        if beta == 1:
            return slots
        return [slot if slot.role == "largest" else replace(slot, weight=slot.weight * beta) for slot in slots]

    def lr(self, step: int) -> float:
        return self.schedule(step, self.horizon.steps_per_epoch, self.horizon.total_steps)
