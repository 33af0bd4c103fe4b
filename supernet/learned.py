"""What parts of a training run offer that learn while it runs: state for checkpoints, figures for the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Learned(Protocol):
    """A sampler with a state. Restoring it in the middle of an epoch must give the very draws that would have been."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values; what `checkpoint.load` may read (`weights_only=True`)."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""

    def report(self) -> dict[str, float]:
        """Figures for the log, such as {"entropy": 0.9}; may wait for the device, so it is called rarely."""
