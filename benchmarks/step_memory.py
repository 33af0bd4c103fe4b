"""Peak memory of a training step of four subnets, against that of the largest subnet's own step.

    python -m benchmarks.step_memory [--spaces mbv3_tiny alphanet autoformer_tiny] [--batch <n>] [--device cpu]
                                     [--threads 1] [--amp] [--limit 1.05] [--json <file>]

A step is what training does (`supernet.step`): the largest subnet, two random ones and the smallest, distilled from
the first; gradients, clipping, SGD with momentum. Every peak is measured in a process of its own, in the second step,
when gradients and momentum are there: the most that PyTorch allocates on top of what was there before the step, on a
CPU by its allocator's own records. All subnets have one resolution. Measured are the whole step and the step of the
largest subnet alone, each with plain blocks, with activations computed again in the backward pass
(`train.checkpoint_activations`), and with that in four micro-batches. `estimated` is what `train.micro_batch=auto`
expects, over the measured peak.

Exits with 1 where the step of four needs more than the limit times what the largest subnet's own step needs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import arms
from benchmarks.mixture import SETTINGS, peak_bytes
from supernet.build import build, pick_device
from supernet.distill import SoftCrossEntropy
from supernet.errors import UserError
from supernet.memory import keep_freed_memory
from supernet.micro_batch import estimate
from supernet.optim import zero_gradients
from supernet.recompute import checkpoint_activations
from supernet.runs import write_json
from supernet.samplers.base import Slot
from supernet.space import Space
from supernet.step import accumulate, update

BATCH = {"mbv3_tiny": 64, "alphanet": 16, "autoformer_tiny": 4}
PARTS = 4  # micro-batches
WAYS = {  # checkpoint activations, micro-batches
    "plain": (False, 1),
    "checkpoint_activations": (True, 1),
    f"and {PARTS} micro-batches": (True, PARTS),
}
STEPS = {"one": 1, "four": 4}  # subnets


def slots(space: Space, count: int) -> list[Slot]:
    """The largest subnet; of four, also two random ones and the smallest."""
    random = [Slot(arch, "random") for arch in space.sample(np.random.default_rng(0), 2)]
    return [Slot(space.largest(), "largest"), *random, Slot(space.smallest(), "smallest")][:count]


def each_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every image."""
    return F.cross_entropy(logits.float(), targets, reduction="none")


def measure(name: str, batch: int, way: str, subnets: int, amp: bool, device: torch.device) -> dict[str, float]:
    """Peak bytes, expected bytes of the largest subnet's pass, and seconds of one step."""
    known = SETTINGS[name]
    fixed = {} if name.startswith("autoformer") else {"resolution": [known.side]}
    net = build(name, num_classes=known.classes, in_channels=known.channels, **fixed)
    net = net.to(device).to(memory_format=torch.channels_last).train()
    zero_gradients(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    checkpointing, parts = WAYS[way]
    needs = estimate(net, autocast=amp)
    if checkpointing:
        checkpoint_activations(net.net)
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(batch, known.channels, known.side, known.side, generator=rng)
    images = images.to(device, memory_format=torch.channels_last)
    targets = torch.randint(known.classes, (batch,), generator=rng).to(device)
    size = -(-batch // parts)

    def step() -> None:
        loss = (each_loss, SoftCrossEntropy())
        accumulate(net, images, targets, slots(net.space, subnets), *loss, autocast=amp, micro_batch=size)
        update(optimizer, 0.01, clip_norm=1.0)

    step()
    begin = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - begin
    need = needs.recomputed if checkpointing else needs.plain
    return {"peak": peak_bytes(step, device), "estimate": need.bytes(size), "seconds": seconds}


def in_a_process_of_its_own(task: Mapping[str, Any], options: argparse.Namespace) -> dict[str, float]:
    """`measure` in a fresh process; its log of the profiler is dropped."""
    argv = [sys.executable, "-m", "benchmarks.step_memory", "--task", json.dumps(task)]
    argv += ["--device", options.device, "--threads", str(options.threads), *(["--amp"] if options.amp else [])]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def space_rows(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every way to run a step."""
    batch = options.batch or BATCH[name]
    rows = []
    for way in WAYS:
        task = {"name": name, "batch": batch, "way": way}
        found = {key: in_a_process_of_its_own({**task, "subnets": n}, options) for key, n in STEPS.items()}
        ratio = found["four"]["peak"] / found["one"]["peak"]
        rows.append({"way": way, "batch": batch, **found, "ratio": ratio})
    return rows


def table(name: str, rows: list[dict[str, Any]]) -> Table:
    columns = ("peak of one, MB", "peak of four, MB", "ratio", "of plain", "estimated", "step, s")
    drawn = Table("step", *columns, title=f"{name}, batch {rows[0]['batch']}")
    plain = rows[0]["four"]["peak"]
    for row in rows:
        one, four = row["one"], row["four"]
        cells = [f"{one['peak'] / 1e6:.1f}", f"{four['peak'] / 1e6:.1f}", f"{row['ratio']:.3f}"]
        cells += [f"{four['peak'] / plain:.2f}", f"{four['estimate'] / four['peak']:.2f}", f"{four['seconds']:.2f}"]
        drawn.add_row(row["way"], *cells)
    return drawn


def main() -> int:
    """The exit code: 0 where every step is inside the limit."""
    options = _options()
    arms.use_threads(options.threads)
    try:
        device = pick_device(options.device)
    except UserError as error:
        sys.exit(str(error))
    if options.task:
        if device.type == "cpu":
            keep_freed_memory()
        print(json.dumps(measure(**json.loads(options.task), amp=options.amp, device=device)))
        return 0
    console = Console(highlight=False, width=None if Console().is_terminal else 130)
    found = {}
    for name in options.spaces:
        found[name] = space_rows(name, options)
        console.print(table(name, found[name]))
    if options.json:
        about = {"environment": arms.machine(), "device": device.type, "threads": torch.get_num_threads()}
        write_json(options.json, {**about, "amp": options.amp, "limit": options.limit, "spaces": found})
    over = [f"{name}, {row['way']}" for name, rows in found.items() for row in rows if row["ratio"] > options.limit]
    if over:
        console.print(f"more than {options.limit} times the largest subnet's own step: {'; '.join(over)}", style="red")
    return 1 if over else 0


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser("python -m benchmarks.step_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--spaces", nargs="+", choices=tuple(BATCH), default=list(BATCH))
    parser.add_argument("--batch", type=int, help="default: each space's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--amp", action="store_true", help="bf16 autocast")
    parser.add_argument("--limit", type=float, default=1.05)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--task", help=argparse.SUPPRESS)  # one measurement, in a process that was started for it
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
