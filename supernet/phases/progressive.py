"""Progressive shrinking: one kind of choice after the other becomes elastic (Once-for-All, ICLR 2020)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from supernet.construct import construct
from supernet.horizon import Horizon
from supernet.narrow import WORDS
from supernet.phases.base import Phase
from supernet.samplers.base import Slot
from supernet.schedule import Schedule, warmup
from supernet.sorting import check_stage
from supernet.space import Space


@dataclass(frozen=True)
class Stage:
    """One stage, as the YAML gives it.

    Attributes:
        name: a word for the log.
        epochs: its length; all stages together are stretched to the length of the run.
        lr: factor on the base learning rate.
        warmup_epochs: of the learning rate, in the unit of `epochs`; multiplies the schedule's own warm-up.
        num_random: random subnets a step; None: as many as the sampler says.
        options: what can be chosen, see `Space.narrow`: {"kernel": [7], "depth": "two_largest"}.
        others: a word of `Space.narrow` for the choices that `options` does not name, the resolution excepted.
        sort_channels: at its start, see `Phase`.
        keep_teacher: at its start, see `Phase`.
    """

    name: str
    epochs: float
    lr: float = 1.0
    warmup_epochs: float = 0.0
    num_random: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    others: str = "all"
    sort_channels: int | None = None
    keep_teacher: bool = False

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("lr", self.lr)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}={value}: must be positive")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs}: give 0 to the stage's {self.epochs:g} epochs")
        if self.num_random is not None and self.num_random < 1:
            raise ValueError(f"num_random={self.num_random}: give at least 1, or null for the sampler's own")
        if self.others not in WORDS:
            raise ValueError(f"others={self.others}: give one of {', '.join(WORDS)}")


class ProgressiveShrinking:
    """Stages of growing sub-spaces, each with a learning rate, a number of subnets and a fresh optimizer of its own.

    Epochs are those of the published course. A run of another length stretches all of it: stages, warm-ups, and
    what the schedule counts in epochs. Inside a stage the learning rate goes through the whole schedule, times the
    stage's factor and warm-up (from 1/n of it in the first of n steps).

    Args:
        stages: see `Stage`.

    Raises:
        ValueError: if there is no stage, or the run is too short for one.
        UserError: if a stage does not fit the space.
    """

    def __init__(self, space: Space, horizon: Horizon, schedule: Schedule, stages: Sequence[Mapping[str, Any]]) -> None:
        if not stages:
            raise ValueError("stages: give at least one")
        self.schedule = schedule
        self.stages = [_stage(data, i) for i, data in enumerate(stages)]
        total = sum(stage.epochs for stage in self.stages)
        self._steps_per_epoch = horizon.total_steps / total  # of the published course
        bounds = [round(end * self._steps_per_epoch) for end in accumulate(s.epochs for s in self.stages)]
        self._starts, self._ends = [0, *bounds[:-1]], bounds
        for stage, start, end in zip(self.stages, self._starts, self._ends, strict=True):
            if start == end:
                share = f"{stage.epochs:g} of {total:g} epochs"
                raise ValueError(
                    f"stage {stage.name!r} ({share}) has no step in a run of {horizon.total_steps}: train longer"
                )
        self._phases = [_phase(stage, start, space) for stage, start in zip(self.stages, self._starts, strict=True)]

    def phase(self, step: int) -> Phase:
        return self._phases[self._at(step)]

    def slots(self, step: int, slots: list[Slot]) -> list[Slot]:
        return slots

    def lr(self, step: int) -> float:
        at = self._at(step)
        stage, start, end = self.stages[at], self._starts[at], self._ends[at]
        scheduled = self.schedule(step - start, max(1, round(self._steps_per_epoch)), end - start)
        return stage.lr * warmup(step - start + 1, stage.warmup_epochs * self._steps_per_epoch, 0.0) * scheduled

    def _at(self, step: int) -> int:
        return bisect_right(self._starts, step) - 1


def _stage(data: Mapping[str, Any], index: int) -> Stage:
    stage: Stage = construct({**data, "_target_": "supernet.phases.progressive.Stage"}, f"phases.stages[{index}]")
    return stage


def _phase(stage: Stage, start: int, space: Space) -> Phase:
    rest = {gene.key: stage.others for gene in space.genes if gene.key not in ("resolution", *stage.options)}
    try:
        narrowed = space.narrow({**rest, **stage.options})
        if stage.sort_channels is not None:
            check_stage(space, stage.sort_channels)
    except ValueError as error:
        raise ValueError(f"stage {stage.name!r}: {error}") from None
    return Phase(
        stage.name,
        start,
        narrowed,
        stage.num_random,
        stage.sort_channels,
        fresh_optimizer=start > 0,
        keep_teacher=stage.keep_teacher,
    )
