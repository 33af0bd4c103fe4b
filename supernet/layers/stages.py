"""Stages of blocks, run one after another; a subnet skips the last blocks of a stage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from supernet.specs import Plan


class Stages(nn.ModuleList):
    """The blocks "stages.<s>.<b>" of a plan, under these names.

    Args:
        block: makes one of its spec; called as `block(x, spec, drop_path)`.
    """

    def __init__(self, plan: Plan, block: Callable[[Any], nn.Module]) -> None:
        blocks: dict[int, list[nn.Module]] = defaultdict(list)
        for name, spec in plan.layers:
            if name.startswith("stages."):
                blocks[int(name.split(".")[1])].append(block(spec))
        super().__init__(nn.ModuleList(blocks[stage]) for stage in sorted(blocks))

    def forward(self, x: Tensor, plan: Plan | None = None, drop_path: float = 0.0) -> Tensor:
        """[B, C, S, S] -> [B, C', S', S'] through the blocks of `plan`; None: all of them, as they are."""
        for s, stage in enumerate(self):
            for b, block in enumerate(stage.children()):
                spec = plan.get(f"stages.{s}.{b}") if plan else None
                if plan is None or spec is not None:
                    x = block(x, spec, drop_path)
        return x
