"""Several processes that work on one thing: who they are, and how they exchange plain data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from supernet.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among `world` ones; number `rank` counts from 0, `local` within its machine.

    All exchanges are collective: every process has to make the same calls in the same order. What is exchanged is
    JSON, so nothing that arrives can run code; floats arrive bit for bit.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """The device of this process: "cuda" without a number becomes the GPU of its local rank."""
        is_open = device.type == "cuda" and device.index is None and self.world > 1
        return torch.device("cuda", self.local) if is_open else device

    def gather(self, value: Any) -> list[Any]:
        """The plain `value` of every process, by rank, in every process."""
        if self.world == 1:
            return [_plain(value)]
        import torch.distributed as dist

        mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(mine)]))
        longest = int(torch.stack(sizes).max())
        padded = torch.nn.functional.pad(mine, (0, longest - len(mine)))
        texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world)]
        dist.all_gather(texts, padded)
        return [json.loads(text[: int(n)].numpy().tobytes()) for text, n in zip(texts, sizes, strict=True)]

    def broadcast(self, value: Any) -> Any:
        """The plain `value` of the first process, in every process."""
        return self.gather(value if self.first else None)[0]

    def map(self, function: Callable[[T], Any], items: Sequence[T]) -> list[Any]:
        """Plain `function(item)` of every item, in order, in every process; each computes its share of them.

        Process r takes items r, r + world, ...; no item is left out where they do not divide evenly. The same in
        any number of processes, if `function` is the same everywhere.
        """
        shares = self.gather([function(item) for item in items[self.rank :: self.world]])
        return [shares[i % self.world][i // self.world] for i in range(len(items))]

    def barrier(self) -> None:
        """Wait for all processes."""
        self.gather(None)

    def close(self) -> None:
        """Leave the group; afterwards nothing can be exchanged."""
        if self.world > 1:
            import torch.distributed as dist

            dist.destroy_process_group()


ALONE = Ranks()


def join() -> Ranks:
    """Join the processes that torchrun started; `ALONE` where it did not start this one.

    Plain data goes through gloo on the CPU, tensors on GPUs through nccl where there is one.

    Raises:
        UserError: if the environment variables that torchrun sets are incomplete.
    """
    given = os.environ
    if int(given.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in given]
    if missing:
        raise UserError(f"WORLD_SIZE={given['WORLD_SIZE']}, but {missing[0]} is not set: start it with torchrun")
    import torch.distributed as dist

    ranks = Ranks(int(given["RANK"]), int(given["WORLD_SIZE"]), int(given.get("LOCAL_RANK", given["RANK"])))
    has_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    if has_gpus:
        torch.cuda.set_device(ranks.local % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpus else "gloo", rank=ranks.rank, world_size=ranks.world)
    return ranks


def _plain(value: Any) -> Any:
    """As it would arrive from another process."""
    return json.loads(json.dumps(value))
