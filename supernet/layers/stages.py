"""Stages of blocks, run one after another; a subnet skips the last blocks of a stage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from supernet.layers.mixing import in_depth
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
            if plan is None:
                for block in stage.children():
                    x = block(x, None, drop_path)
            else:
                runs = [partial(_run, block, drop_path) for block in stage.children()]
                names = [f"stages.{s}.{b}" for b in range(len(runs))]
                x = in_depth(x, plan, names, runs)
        return x


def _run(block: nn.Module, drop_path: float, x: Tensor, spec: Any) -> Tensor:
    return block(x, spec, drop_path)
