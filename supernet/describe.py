"""What a run is about to do, in numbers: printed at its start, and all that `dry_run=true` does."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supernet.cost import cost
from supernet.distributed import ALONE, Ranks
from supernet.layout import with_format
from supernet.log import RunLog
from supernet.memory import peak_memory_mb
from supernet.micro_batch import memory_line, settled
from supernet.net import Supernet

if TYPE_CHECKING:
    from supernet.data import Data
    from supernet.trainer import Trainer

TIMED_STEPS = 3


def describe(net: Supernet, data: Data) -> str:
    """One paragraph: size of the space, ranges of MACs and parameters, images per split."""
    space = net.space
    small, large = cost(space.plan(space.smallest())), cost(space.plan(space.largest()))
    total = sum(p.numel() for p in net.parameters())
    sizes = ", ".join(f"{name} {count:,}" for name, count in data.sizes.items())
    return (
        f"space {space.name}: {space.size():,} subnets ({len(space.genes)} genes), "
        f"{small.macs / 1e6:.2f} to {large.macs / 1e6:.2f} MMACs, "
        f"{small.params / 1e6:.3f} to {large.params / 1e6:.3f} M parameters, supernet {total / 1e6:.3f} M\n"
        f"data {data.info.name}: {data.info.num_classes} classes, {sizes} images"
    )


def rehearsal(config: dict[str, Any], net: Supernet, data: Data, ranks: Ranks = ALONE) -> Trainer:
    """A trainer that writes nowhere.

    Raises:
        UserError: if a part of the configuration is wrong.
    """
    from supernet.trainer import Trainer

    nowhere = Path(os.devnull)
    return Trainer(config, net, data, nowhere, RunLog(nowhere, quiet=True), ranks)


def dry_run(config: dict[str, Any], net: Supernet, data: Data) -> None:
    """Print `describe`, what a step needs, and what a few real ones say about time and memory. Writes no file."""
    print(describe(net, data))
    print(memory_line(config, net))
    config = settled(with_format(config, net, data.info.channels), net)
    print("timing a few steps ...", flush=True)
    trainer = rehearsal(config, net, data)
    seconds = []
    for _, batch in zip(range(TIMED_STEPS), data.train(0), strict=False):
        start = time.perf_counter()
        trainer.train_step(batch)
        _ = trainer.meter.read(trainer.step)  # waits for the device
        seconds.append(time.perf_counter() - start)
    per_step = min(seconds)
    print(
        f"{trainer.total_steps:,} steps of {config['train']['batch_size']} images "
        f"({trainer.steps_per_epoch} an epoch), {per_step * 1e3:.0f} ms each: about "
        f"{per_step * trainer.total_steps / 60:.1f} min without evaluations; "
        f"peak memory so far {peak_memory_mb(next(net.parameters()).device):,.0f} MB"
    )
