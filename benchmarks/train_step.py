"""How fast a training step is, and where its time goes.

    python -m benchmarks.train_step [--space alphanet] [--resolution 192] [--batch 16] [--threads 2] [--rounds 7]
                                    [--dtype float32] [--memory-format channels_last] [--compile off,extremes]
                                    [--device cpu] [--clock wall] [--archs 10] [--json <file>]

Three tables. (1) A sandwich step, as `train.py` takes it, on random images: plain eager PyTorch in NCHW (no fused
optimizer, PyTorch's own depthwise gradients); this project's; with `train.compile`; and, for comparison, forward and
backward passes of the four subnets extracted beforehand. Every round runs one step of each arm with the same images
and subnets, in another order; ratios are medians over rounds. (2) Forward and backward of random subnets inside the
supernet, against the same subnets extracted. (3) The largest subnet's passes by kind of operation, and what it would
take if all of it ran as fast as this device multiplies large matrices.

`--clock cpu` takes the processor time of the process instead of wall-clock time, which other programs on the machine
disturb less; with several threads it does not show what waiting for each other costs. Exits with 1 if a ratio of (1)
or (2) misses its limit: step / extracted at most 1.08; plain / step at least 2, plain / compiled at least 2.4 (on a
CPU); elastic / extracted at most 1.05 (median over subnets).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks import arms
from benchmarks.overhead import RandomData, median_interval
from supernet.build import make_space, pick_device
from supernet.data.base import Batch, Data, resize
from supernet.describe import rehearsal
from supernet.layers import conv
from supernet.memory import keep_freed_memory
from supernet.net import Supernet
from supernet.optim import zero_gradients
from supernet.runs import environment, write_json
from supernet.trainer import Trainer

WARM_UP = 2
PLAIN, OURS, EXTRACTED = "plain NCHW", "step", "extracted"
LIMITS = {"step / extracted": 1.08, "plain / step": 2.0, "plain / compiled": 2.4, "elastic / extracted": 1.05}
FORMATS = {"channels_last": torch.channels_last, "nchw": torch.contiguous_format}
CLASSES = 1000
Arms = dict[str, Callable[[Batch], Any]]


class Clock:
    """Seconds of a call: wall-clock time with the device waited for, or the processor time of this process."""

    def __init__(self, kind: str, device: torch.device) -> None:
        self.read: Callable[[], float] = time.process_time if kind == "cpu" else time.perf_counter
        self.device = device

    def __call__(self, call: Callable[[], Any]) -> float:
        self._wait()
        begin = self.read()
        call()
        self._wait()
        return self.read() - begin

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextmanager
def pytorch_gradients() -> Iterator[None]:
    """Depthwise convolutions take PyTorch's own backward pass."""
    own = conv.slow_gradient
    conv.slow_gradient = lambda x, weight, groups: False  # type: ignore[assignment]
    try:
        yield
    finally:
        conv.slow_gradient = own


def trainer_of(options: argparse.Namespace, data: RandomData, *overrides: str) -> Trainer:
    """A trainer with initial weights of its own; the same for the same space."""
    amp = str(options.dtype == "bfloat16").lower()
    shared = (f"space={options.space}", f"space.resolution=[{data.side}]", f"train.batch_size={data.batch_size}")
    rest = (f"device={options.device}", f"train.amp={amp}", "train.log_every=1000000", "train.health_every=0")
    config = arms.composed((*shared, *rest, *overrides))
    torch.manual_seed(0)
    net = Supernet(make_space(config["space"], data.classes, 3)).to(data.device)
    trainer = rehearsal(config, net, cast(Data, data))
    net.train()
    return trainer


def step_arms(options: argparse.Namespace, data: RandomData) -> tuple[Arms, dict[str, Any]]:
    """What each arm does with a batch, and what compiling cost."""
    last = f"train.channels_last={str(options.memory_format == 'channels_last').lower()}"
    plain = trainer_of(options, data, "train.channels_last=false", "optim.fused=false")
    ours = trainer_of(options, data, last)

    def plainly(batch: Batch) -> None:
        with pytorch_gradients():
            plain.train_step(batch)

    found: Arms = {PLAIN: plainly, OURS: ours.train_step}
    found[EXTRACTED] = extracted_passes(ours, options)
    compiling = {}
    for mode in options.compile:
        trainer = trainer_of(options, data, last, f"train.compile={mode}")
        warm = trainer.warm_up()
        compiling[mode] = {"graphs": warm.graphs, "seconds": warm.seconds}
        found[f"compile={mode}"] = trainer.train_step
    return found, compiling


def extracted_passes(trainer: Trainer, options: argparse.Namespace) -> Callable[[Batch], Any]:
    """Forward and backward of a step's subnets, each a network of its own. They are made outside the clock."""
    made: dict[Any, nn.Module] = {}
    space = trainer.net.space

    def run(batch: Batch) -> Callable[[], None]:
        archs = [slot.arch for slot in trainer.course.slots(trainer.step, no_loss)]
        for arch in archs:
            if arch not in made:
                made[arch] = trainer.net.extract(arch).train()
                zero_gradients(made[arch])
        for arch in [arch for arch in made if arch not in archs]:
            del made[arch]
        images = [shaped(resize(batch.images, space.resolution(arch)), options) for arch in archs]

        def passes() -> None:
            for arch, image in zip(archs, images, strict=True):
                train_pass(made[arch], (image,), batch.targets, options)

        return passes

    return run


def train_pass(net: Callable[..., Tensor], inputs: tuple[Any, ...], targets: Tensor, options: Any) -> None:
    """Forward and backward of a cross-entropy."""
    with torch.autocast(targets.device.type, torch.bfloat16, enabled=options.dtype == "bfloat16"):
        logits = net(*inputs)
    F.cross_entropy(logits.float(), targets).backward()


def shaped(images: Tensor, options: argparse.Namespace) -> Tensor:
    return images.contiguous(memory_format=FORMATS[options.memory_format])


def no_loss(arch: Any) -> Tensor:
    raise AssertionError("no sampler here compares candidates")


def time_steps(
    found: Mapping[str, Callable[[Batch], Any]], data: RandomData, rounds: int, clock: Clock
) -> dict[str, np.ndarray]:
    """Seconds [rounds] of every arm; rounds of the same number belong together."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for number, batch in zip(range(WARM_UP + rounds), data.batches(), strict=False):
        passes = found[EXTRACTED](batch)  # the step that the trainers take next
        for arm in np.random.default_rng(number).permutation(list(found)).tolist():
            call = passes if arm == EXTRACTED else lambda arm=arm, batch=batch: found[arm](batch)
            spent = clock(call)
            if number >= WARM_UP:
                seconds[arm].append(spent)
    return {arm: np.array(values) for arm, values in seconds.items()}


def elastic_ratios(options: argparse.Namespace, data: RandomData, clock: Clock) -> list[dict[str, float]]:
    """For random subnets: passes inside the supernet, and of the same subnet extracted."""
    net = Supernet(make_space(arms.composed((f"space={options.space}",))["space"], data.classes, 3)).to(data.device)
    net.to(memory_format=FORMATS[options.memory_format])  # type: ignore[call-overload]
    zero_gradients(net)
    space, batch = net.space, next(data.batches())
    images = shaped(batch.images, options)
    rows = []
    for arch in space.sample(np.random.default_rng(0), n=options.archs):
        alone = net.extract(arch).train()
        zero_gradients(alone)
        ways = {
            "elastic": lambda arch=arch: train_pass(net, (images, arch), batch.targets, options),
            "alone": lambda alone=alone: train_pass(alone, (images,), batch.targets, options),
        }
        seconds: dict[str, list[float]] = defaultdict(list)
        for number in range(1 + options.rounds):
            for way in list(ways)[:: 1 if number % 2 else -1]:
                spent = clock(ways[way])
                if number:
                    seconds[way].append(spent)
        ratio = median(np.array(seconds["elastic"]) / np.array(seconds["alone"]))
        rows.append({"macs": space.plan(arch).macs, "ms": 1e3 * median(seconds["alone"]), "ratio": ratio})
    return rows


KINDS = (("batch norm", "batch_norm"), ("activation", "silu"), ("activation", "hardswish"), ("activation", "relu"))


def where_the_time_goes(options: argparse.Namespace, data: RandomData) -> dict[str, dict[str, float]]:
    """Seconds, calls and MACs of the largest subnet's passes, by kind of operation."""
    from torch.profiler import ProfilerActivity, profile

    trainer = trainer_of(options, data, f"train.channels_last={str(options.memory_format == 'channels_last').lower()}")
    batch, arch = next(data.batches()), trainer.net.space.largest()
    images = shaped(batch.images, options)
    for _ in range(2):
        train_pass(trainer.net, (images, arch), batch.targets, options)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        train_pass(trainer.net, (images, arch), batch.targets, options)
    kinds: dict[str, dict[str, float]] = defaultdict(lambda: {"ms": 0.0, "calls": 0, "macs": 0.0})
    for event in found.key_averages(group_by_input_shape=True):
        kind, macs = _kind(event.key, event.input_shapes)
        kinds[kind]["ms"] += event.self_cpu_time_total / 1e3
        kinds[kind]["calls"] += event.count
        kinds[kind]["macs"] += macs * event.count
    return dict(kinds)


def _kind(name: str, shapes: Sequence[Any]) -> tuple[str, float]:
    """The kind of an operation, and MACs of one call where it is a convolution."""
    back = name == "aten::convolution_backward"
    if back or name == "aten::mkldnn_convolution":
        weight, out = (shapes[2], shapes[0]) if back else (shapes[1], None)
        kind = "dense convolution" if weight[1] > 1 else "depthwise convolution"
        side = out[2] * out[3] if out else 0
        macs = 2.0 * out[0] * side * weight[0] * weight[1] * weight[2] * weight[3] if out else 0.0
        return f"{kind}, {'backward' if back else 'forward'}", macs
    return next((kind for kind, part in KINDS if part in name), "the rest"), 0.0


def matmul_rate(device: torch.device, clock: Clock, size: int = 2048) -> float:
    """Multiply-adds a second of large fp32 matrices."""
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    _ = a @ b
    return size**3 / min(clock(lambda: a @ b) for _ in range(5))


def main() -> int:
    """The exit code: 0 where all ratios are inside their limits."""
    options = _options()
    arms.use_threads(options.threads)
    keep_freed_memory()
    device, console = pick_device(options.device), Console(highlight=False)
    data, clock = RandomData(options.resolution, options.batch, CLASSES, device), Clock(options.clock, device)
    found, compiling = step_arms(options, data)
    seconds = time_steps(found, data, options.rounds, clock)
    ratios = {"step / extracted": seconds[OURS] / seconds[EXTRACTED], "plain / step": seconds[PLAIN] / seconds[OURS]}
    for mode in compiling:
        ratios[f"plain / compile={mode}"] = seconds[PLAIN] / seconds[f"compile={mode}"]
    rows = elastic_ratios(options, data, clock)
    elastic = median(row["ratio"] for row in rows)
    shares = where_the_time_goes(options, data) if device.type == "cpu" else {}
    rate = matmul_rate(device, clock)
    title = f"{options.space}, {options.resolution} px, batch {options.batch}, {options.dtype}, {device}"
    _print_steps(console, f"{title}, {options.threads} threads", seconds, ratios, compiling)
    console.print(f"elastic / extracted, {len(rows)} random subnets: median {elastic:.3f} (limit 1.05)")
    console.print("  " + " ".join(f"{row['ratio']:.3f}" for row in rows))
    _print_shares(console, shares, rate)
    facts = {
        "options": {key: str(value) for key, value in vars(options).items()},
        "seconds": {arm: values.tolist() for arm, values in seconds.items()},
        "ratios": {name: median_interval(values) for name, values in ratios.items()},
        "compiling": compiling,
        "elastic": rows,
        "shares": shares,
        "matmul MACs/s": rate,
    }
    if options.json:
        write_json(options.json, {"environment": environment(), **facts})
    return 0 if inside({name: float(np.median(values)) for name, values in ratios.items()}, elastic) else 1


def inside(ratios: Mapping[str, float], elastic: float) -> bool:
    """Whether the ratios meet their limits; of several ways to compile the best counts."""
    compiled = [value for name, value in ratios.items() if name.startswith("plain / compile=")]
    return (
        ratios["step / extracted"] <= LIMITS["step / extracted"]
        and ratios["plain / step"] >= LIMITS["plain / step"]
        and (not compiled or max(compiled) >= LIMITS["plain / compiled"])
        and elastic <= LIMITS["elastic / extracted"]
    )


def _print_steps(console: Console, title: str, seconds: Any, ratios: Any, compiling: Mapping[str, Any]) -> None:
    table = Table("arm", "ms a step", "ratio", "95% interval of its median", title=title)
    for arm, values in seconds.items():
        table.add_row(arm, f"{1e3 * np.median(values):.0f}", "", "")
    for name, values in ratios.items():
        middle, low, high = median_interval(values)
        table.add_row(name, "", f"{middle:.3f}", f"{low:.3f} to {high:.3f}")
    console.print(table)
    for mode, cost in compiling.items():
        console.print(f"compile={mode}: {cost['graphs']} graphs, {cost['seconds']:.0f} s to compile")


def _print_shares(console: Console, shares: Mapping[str, Mapping[str, float]], rate: float) -> None:
    if not shares:
        return
    total = sum(row["ms"] for row in shares.values())
    table = Table("largest subnet's passes", "ms", "share", "GMAC/s", title=f"matmul: {rate / 1e9:.0f} GMAC/s")
    for kind, row in sorted(shares.items(), key=lambda item: -item[1]["ms"]):
        speed = f"{row['macs'] / row['ms'] / 1e6:.0f}" if row["macs"] else ""
        table.add_row(kind, f"{row['ms']:.0f}", f"{row['ms'] / total:.1%}", speed)
    console.print(table)


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser("python -m benchmarks.train_step", description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="alphanet", help="a file of configs/space")
    parser.add_argument("--resolution", type=int, default=192, help="px")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--memory-format", choices=tuple(FORMATS), default="channels_last")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", type=_modes, default=(), help="also with these: blocks, extremes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--archs", type=int, default=10, help="random subnets of the second table")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", type=Path, help="file for the figures, with machine and versions")
    return parser.parse_args()


def _modes(text: str) -> tuple[str, ...]:
    return tuple(mode for mode in text.split(",") if mode and mode != "off")


if __name__ == "__main__":
    sys.exit(main())
