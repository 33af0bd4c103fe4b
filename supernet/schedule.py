"""Learning-rate schedules: pure functions of the step, so that resuming needs no state.

Each returns the factor on the base learning rate at step t of T, and warms up linearly from `warmup_start` to 1
over the first `warmup_epochs`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """lr = base * schedule(step, steps_per_epoch, total_steps)."""

    def __call__(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        """The factor at `step`, counted from 0 in optimizer steps."""


def warmup(step: int, warmup_steps: float, start: float) -> float:
    """start -> 1 linearly over `warmup_steps`."""
    if step >= warmup_steps:
        return 1.0
    return start + (1.0 - start) * step / warmup_steps


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 to `final` over the whole run, the warm-up multiplied on top (AttentiveNAS, AlphaNet)."""

    warmup_epochs: float = 0.0
    warmup_start: float = 0.001
    final: float = 0.0

    def __post_init__(self) -> None:
        _check(self.warmup_epochs, self.warmup_start, self.final)

    def __call__(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        cosine = self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * step / total_steps))
        return warmup(step, self.warmup_epochs * steps_per_epoch, self.warmup_start) * cosine


@dataclass(frozen=True)
class ExponentialTail:
    """Times `decay` every `decay_epochs`, but never below `floor`: the constant tail of BigNAS.

    BigNAS (Yu et al., ECCV 2020, section 3.2) ends on 5% of the initial rate.
    """

    decay: float = 0.97
    decay_epochs: float = 2.4
    floor: float = 0.05
    warmup_epochs: float = 0.0
    warmup_start: float = 0.001

    def __post_init__(self) -> None:
        _check(self.warmup_epochs, self.warmup_start, self.floor)
        if not 0 < self.decay <= 1 or self.decay_epochs <= 0:
            raise ValueError(f"decay={self.decay} must be in (0, 1] and decay_epochs={self.decay_epochs} positive")

    def __call__(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        decayed = max(self.decay ** (step / (self.decay_epochs * steps_per_epoch)), self.floor)
        return warmup(step, self.warmup_epochs * steps_per_epoch, self.warmup_start) * decayed


@dataclass(frozen=True)
class Polynomial:
    """(1 - t / T) ** `power` from 1 to `final`: power 1 is the linear decay of SPOS (Guo et al., ECCV 2020)."""

    power: float = 1.0
    warmup_epochs: float = 0.0
    warmup_start: float = 0.001
    final: float = 0.0

    def __post_init__(self) -> None:
        _check(self.warmup_epochs, self.warmup_start, self.final)
        if self.power <= 0:
            raise ValueError(f"power={self.power}: must be positive")

    def __call__(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        decayed = self.final + (1.0 - self.final) * (1.0 - step / total_steps) ** self.power
        return warmup(step, self.warmup_epochs * steps_per_epoch, self.warmup_start) * decayed


def _check(warmup_epochs: float, warmup_start: float, floor: float) -> None:
    if warmup_epochs < 0 or not 0 <= warmup_start <= 1 or not 0 <= floor <= 1:
        raise ValueError(
            f"warmup_epochs={warmup_epochs} must not be negative; warmup_start={warmup_start} and the lowest "
            f"factor {floor} must lie in [0, 1]"
        )
