"""A guard against trainings that fall apart while their losses stay finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Reaction = Literal["stop", "warn", "off"]


class CollapseGuard:
    """Watches the mean top-1 of the watched subnets.

    Take chance as 0 and every image right as 1. A training has collapsed when that mean once was at least 1/4, and then
    lay below 1/10 of its best at two evaluations in a row. One that has learned nothing yet, or is noisy, does not
    fulfil this.

    Args:
        num_classes: chance is 100 / num_classes percent.
    """

    def __init__(self, num_classes: int) -> None:
        self.chance = 100.0 / num_classes
        self.best, self.strikes = 0.0, 0

    def collapsed(self, top1: float) -> bool:
        """Takes the mean top-1 (percent) of one evaluation; whether the training has collapsed by now."""
        learned = self.best - self.chance >= 0.25 * (100 - self.chance)
        low = top1 - self.chance < 0.1 * (self.best - self.chance)
        self.strikes = self.strikes + 1 if learned and low else 0
        self.best = max(self.best, top1)
        return self.strikes >= 2

    def message(self, top1: float, step: int, kept: str) -> str:
        """The line for the user. `kept` names the checkpoint of the best evaluation."""
        return (
            f"training collapsed before step {step}: mean top-1 of the watched subnets fell from {self.best:.2f}% to "
            f"{top1:.2f}% (chance is {self.chance:.2f}%); lower optim.lr or set train.clip_value=1, and start from "
            f"init_from={kept}, which is still good (train.collapse=warn goes on instead)"
        )

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"best": self.best, "strikes": self.strikes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.best, self.strikes = state["best"], state["strikes"]
