"""What a course of phases is, and the plainest: a single one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from supernet.horizon import Horizon
from supernet.samplers.base import Slot
from supernet.schedule import Schedule
from supernet.space import Space


@dataclass(frozen=True)
class Phase:
    """A part of a run.

    Attributes:
        name: a word for the log.
        start: its first step.
        space: what samplers draw from in it: the run's whole space, or one narrowed by `Space.narrow`.
        num_random: random subnets a step, where it differs from the sampler's own.
        sort_channels: at its start, sort the supernet's channels (see `supernet.sorting`), momentum included.
        fresh_optimizer: at its start, forget momentum.
        keep_teacher: at its start, keep the largest subnet as it is then; from there on it teaches every slot,
            unless the run has a teacher from elsewhere.
        largest_only: nothing but the largest subnet is trained: no random subnets are drawn.
    """

    name: str
    start: int
    space: Space
    num_random: int | None = None
    sort_channels: int | None = None
    fresh_optimizer: bool = False
    keep_teacher: bool = False
    largest_only: bool = False


class Phases(Protocol):
    """Made of (space, horizon, schedule). Pure functions of the step, so that resuming needs no state."""

    def phase(self, step: int) -> Phase:
        """The phase that `step` lies in; the same object for every step of it."""

    def slots(self, step: int, slots: list[Slot]) -> list[Slot]:
        """What the sampler wants trained, as this phase trains it: left out, added, or weighted."""

    def lr(self, step: int) -> float:
        """The factor on the base learning rate."""


class Single:
    """One phase, nothing changed."""

    def __init__(self, space: Space, horizon: Horizon, schedule: Schedule) -> None:
        self.horizon, self.schedule = horizon, schedule
        self._phase = Phase("all", 0, space)

    def phase(self, step: int) -> Phase:
        return self._phase

    def slots(self, step: int, slots: list[Slot]) -> list[Slot]:
        return slots

    def lr(self, step: int) -> float:
        return self.schedule(step, self.horizon.steps_per_epoch, self.horizon.total_steps)
