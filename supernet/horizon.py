"""How long a run is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Horizon:
    """A run, or a phase of one, in optimizer steps. Steps are counted from 0 over the whole run."""

    steps_per_epoch: int
    total_steps: int

    def epoch(self, step: int) -> int:
        """The epoch that `step` lies in, from 0."""
        return step // self.steps_per_epoch

    @property
    def epochs(self) -> float:
        """Length in epochs."""
        return self.total_steps / self.steps_per_epoch
