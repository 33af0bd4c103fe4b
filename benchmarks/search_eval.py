"""What scoring the candidates of a search costs, and what makes it cheaper.

    python -m benchmarks.search_eval [--space mbv3_tiny] [--data digits] [--resolution 28] [--batch 500] [--device cpu]
                                     [--dtype float32] [--memory-format channels_last] [--threads 1] [--repeats 9]
                                     [--calibration 512] [--images 500] [--subnets 8] [--checkpoint <run>]
                                     [--parts overhead batch dtype prefix] [--limit 1.15] [--json <file>]

overhead: random subnets are timed, in turns, (a) with the whole of what a search does for a candidate: extract,
calibrate, evaluate, read the score; (b) with the same forward passes alone, on a network that is extracted already.
Exits with 1 where the ratio of the sums over all subnets is above the limit. batch: time per image of evaluation and of
calibration by batch size. dtype: bfloat16 against float32, time and ranking; with random weights all subnets score
alike, so the ranking needs `--checkpoint`, a training run whose supernet and data are taken. prefix: generations of an
evolution, scored subnet by subnet and together; the search sees made-up scores, random sums over its choices.

With --data random, images are noise. Times are wall-clock; of overhead and prefix, on a CPU with one thread, they are
the process's own CPU time, which other programs on the machine disturb less. Everything is timed in turns within one
run; --calibration and --images are the images of a candidate. There is no --compile: every candidate would be compiled
anew.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks import arms
from search.algorithm import Trial
from search.constraint import Constraint
from search.evaluator import SupernetEvaluator
from search.evolution import Evolution
from search.scoring import compare_precisions
from supernet.batch_size import SIZES, batch_curve, best
from supernet.build import make_data, make_space, open_run, pick_device
from supernet.calibrate import calibrate
from supernet.data import Data
from supernet.data.base import even_chunks
from supernet.evaluate import calibrated_subnet, evaluate_subnet
from supernet.memory import keep_freed_memory
from supernet.net import Supernet
from supernet.passes import Passes
from supernet.runs import environment, write_json
from supernet.space import Arch, Space

PARTS = ("overhead", "batch", "dtype", "prefix")
GENERATIONS = (0, 3, 6, 9)  # of 20 subnets each: those of a search of 200 evaluations


class RandomImages:
    """The part of `Data` that evaluation reads: noise, the same at each call."""

    def __init__(self, images: int, calibration: int, batch: int, channels: int, device: torch.device) -> None:
        self.sizes: Mapping[str, int] = {"search": images}
        self._calibration, self._batch, self._shape, self._device = calibration, batch, channels, device
        self._draw = cache(self._drawn)

    def _drawn(self, count: int, side: int) -> Sequence[tuple[Tensor, Tensor]]:
        rng = torch.Generator().manual_seed(count)
        images = torch.randn(count, self._shape, side, side, generator=rng).to(self._device)
        targets = torch.randint(10, (count,), generator=rng).to(self._device)
        return [(images[chunk], targets[chunk]) for chunk in even_chunks(count, self._batch)]

    def evaluation(self, split: str, resolution: int, limit: int | None = None) -> Sequence[tuple[Tensor, Tensor]]:
        return self._draw(self.sizes[split], resolution)

    def calibration(self, resolution: int, num_images: int) -> Sequence[Tensor]:
        return [images for images, _ in self._draw(num_images, resolution)]


@torch.no_grad()
def forward_passes(
    subnet: nn.Module, calibration: Sequence[Tensor], evaluation: Sequence[tuple[Tensor, Tensor]], passes: Passes
) -> None:
    """The passes that a score needs, and nothing else."""
    norms = [module for module in subnet.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
    with passes.precision(calibration[0].device):
        for images in calibration:
            subnet(images)
        for norm in norms:
            norm.eval()
        for images, _ in evaluation:
            subnet(images)


def timed(
    ways: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device, warm_up: int = 2
) -> dict[str, Any]:
    """Median seconds of every way, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    for repeat in range(repeats + warm_up):
        for name, way in ways.items():
            _wait(device)
            begin = clock()
            way()
            _wait(device)
            if repeat >= warm_up:
                seconds[name].append(clock() - begin)
    return {name: median(values) for name, values in seconds.items()}


def overhead(net: Supernet, data: Data, archs: Sequence[Arch], options: argparse.Namespace) -> dict[str, Any]:
    """Every subnet scored, and its forward passes alone."""
    rows, device = [], next(net.parameters()).device
    passes: Passes = options.passes
    for arch in archs:
        side = net.space.resolution(arch)
        images = (data.calibration(side, options.calibration), data.evaluation("search", side))
        subnet = calibrated_subnet(net, arch, data, options.calibration)
        ways: dict[str, Callable[[], Any]] = {
            "scored": partial(evaluate_subnet, net, arch, data, "search", options.calibration, passes),
            "alone": partial(forward_passes, subnet, *images, passes),
        }
        rows.append({"macs": net.space.plan(arch).macs, **timed(ways, options.repeats, device)})
    scored, alone = (sum(row[name] for row in rows) for name in ("scored", "alone"))
    return {"rows": rows, "ratio": scored / alone, "subnets_per_minute": 60 * len(rows) / scored}


def batches(net: Supernet, data: Data, arch: Arch, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per image by batch size: of evaluation, and of calibration, whose batches are the data's own."""
    side = net.space.resolution(arch)
    images = torch.cat([images for images, _ in data.evaluation("search", side)])[: max(SIZES)]
    subnet = calibrate(net.extract(arch), [images[:32]])
    evaluated = batch_curve(subnet, images, options.passes.dtype, seconds=10.0)
    images = images[: max(evaluated)]
    ways = {str(size): partial(calibrate, subnet, images.split(size)) for size in evaluated}
    calibrated = timed(ways, 2, images.device, warm_up=1)
    return {
        "evaluation": {str(size): seconds for size, seconds in evaluated.items()},
        "calibration": {size: seconds / len(images) for size, seconds in calibrated.items()},
        "chosen": best(evaluated),
    }


def prefix(net: Supernet, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """Generations of an evolution scored one by one and together: seconds, and the share of MACs that is saved."""
    space, device = net.space, next(net.parameters()).device
    budget, rows = Constraint(macs=0.5).on(space), []
    evolved = population(space, Evolution(budget, 0))
    for number in GENERATIONS:
        archs = evolved[number]

        def scored(reuse_mb: float, archs: Sequence[Arch] = archs) -> list[Trial]:
            how = {"passes": options.passes, "reuse_mb": reuse_mb}
            return SupernetEvaluator(net, data, options.calibration, budget.costs, **how)(archs)

        found = timed({"alone": partial(scored, 0.0), "together": partial(scored, 1024.0)}, 2, device, warm_up=1)
        plans = [space.plan(arch) for arch in archs]
        unique = {(p.resolution, p.layers[: i + 1]): p.layers[i][1].macs for p in plans for i in range(len(p.layers))}
        saved = 1 - sum(unique.values()) / sum(plan.macs for plan in plans)
        rows.append({"generation": number, **found, "macs_saved": saved})
    alone, together = (sum(row[name] for row in rows) for name in ("alone", "together"))
    return {"rows": rows, "speed_up": alone / together}


def population(space: Space, search: Evolution) -> list[list[Arch]]:
    """What a search asks for, generation by generation; scores are random sums over what is chosen, and noise."""
    rng = np.random.default_rng(0)
    worth = [np.sort(rng.exponential(size=len(gene.options))) * rng.exponential() for gene in space.genes]
    generations = []
    for _ in range(max(GENERATIONS) + 1):
        archs = search.ask(search.batch)
        scores = [sum(w[i] for w, i in zip(worth, space.encode(arch), strict=True)) for arch in archs]
        search.tell([Trial(a, {"top1": s + 0.3 * rng.normal()}) for a, s in zip(archs, scores, strict=True)])
        generations.append(archs)
    return generations


def main() -> int:
    """The exit code: 0 where the overhead is inside the limit."""
    options = _options()
    arms.use_threads(options.threads)
    device, console = pick_device(options.device), Console(highlight=False)
    if device.type == "cpu":
        keep_freed_memory()
    net, data = _opened(options, device)
    archs = net.space.sample(np.random.default_rng(0), n=options.subnets)
    found: dict[str, Any] = {}
    if "overhead" in options.parts:
        found["overhead"] = overhead(net, data, archs, options)
    if "batch" in options.parts:
        found["batch"] = batches(net, data, archs[0], options)
    if "dtype" in options.parts:
        found["dtype"] = asdict(compare_precisions(net, archs, data, "search", options.calibration, {}))
    if "prefix" in options.parts:
        found["prefix"] = prefix(net, data, options)
    images = f"{options.calibration} calibration and {data.sizes['search']:,} evaluation images"
    title = f"{net.space.name}, {images}, {device}, {options.dtype}, {options.memory_format}"
    for table in _tables(found, options.limit):
        table.title = title
        console.print(table)
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items() if key not in ("json", "passes")}
        write_json(options.json, {"environment": environment(), "settings": settings, "images": images, **found})
    return 0 if "overhead" not in found or found["overhead"]["ratio"] <= options.limit else 1


def _opened(options: argparse.Namespace, device: torch.device) -> tuple[Supernet, Data]:
    """The supernet and its images."""
    order = getattr(torch, "contiguous_format" if options.memory_format == "contiguous" else options.memory_format)
    if options.checkpoint is not None:
        run = open_run(options.checkpoint, device)
        return run.net.to(memory_format=order), make_data(run.config, device)
    sides = [] if options.resolution is None else [f"data.resolution=[{options.resolution}]"]
    overrides = [f"space={options.space}", *([] if options.data == "random" else [f"data={options.data}"])]
    batch = [] if options.batch is None else [f"data.eval_batch_size={options.batch}"]
    config = arms.composed([*overrides, *sides, *batch])
    if options.data != "random":
        data = make_data(config, device)
        classes, channels = data.info.num_classes, data.info.channels
    else:
        count, batch_size = options.images, options.batch or min(options.images, 500)
        data = cast(Data, RandomImages(count, options.calibration, batch_size, 3, device))
        classes, channels = 10, 3
    asked = {} if options.resolution is None else {"resolution": [options.resolution]}
    net = Supernet(make_space({**config["space"], **asked}, classes, channels))
    return net.to(device=device, memory_format=order), data  # type: ignore[call-overload]


def _tables(found: Mapping[str, Any], limit: float) -> list[Table]:
    tables = []
    if "overhead" in found:
        table = Table("subnet", "MMACs", "scored, ms", "forward passes, ms", "ratio")
        for number, row in enumerate(found["overhead"]["rows"]):
            times = (f"{row['scored'] * 1e3:.1f}", f"{row['alone'] * 1e3:.1f}", f"{row['scored'] / row['alone']:.3f}")
            table.add_row(str(number), f"{row['macs'] / 1e6:.2f}", *times)
        total, rate = found["overhead"]["ratio"], found["overhead"]["subnets_per_minute"]
        table.caption = f"ratio over all subnets {total:.3f} (limit {limit}); {rate:.1f} subnets per minute"
        tables.append(table)
    if "batch" in found:
        table = Table("batch size", "evaluation, ms per image", "calibration, ms per image")
        for size, seconds in found["batch"]["evaluation"].items():
            table.add_row(size, f"{seconds * 1e3:.3f}", f"{found['batch']['calibration'][size] * 1e3:.3f}")
        table.caption = f"chosen for evaluation: {found['batch']['chosen']}"
        tables.append(table)
    if "dtype" in found:
        row = found["dtype"]
        table = Table("bfloat16: speed-up", "Kendall's τ-b", "sd of differences, %", "standard error of top-1, %")
        tau = "-" if row["tau"] is None else f"{row['tau']:.3f}"
        table.add_row(f"{row['speed_up']:.2f}", tau, f"{row['difference']:.2f}", f"{row['standard_error']:.2f}")
        tables.append(table)
    if "prefix" in found:
        table = Table("generation", "one by one, s", "together, s", "speed-up", "MACs saved")
        for row in found["prefix"]["rows"]:
            times = (f"{row['alone']:.2f}", f"{row['together']:.2f}", f"{row['alone'] / row['together']:.2f}")
            table.add_row(str(row["generation"]), *times, f"{row['macs_saved']:.0%}")
        table.caption = f"speed-up over these generations: {found['prefix']['speed_up']:.2f}"
        tables.append(table)
    return tables


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser("python -m benchmarks.search_eval", description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="mbv3_tiny", help="a file of configs/space")
    parser.add_argument("--data", default="digits", help="a file of configs/data, or random")
    parser.add_argument("--resolution", type=int, help="px; without: those of the data or the space")
    parser.add_argument("--batch", type=int, help="of the data's evaluation and calibration batches")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--memory-format", choices=("channels_last", "contiguous"), default="channels_last")
    parser.add_argument("--subnets", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calibration", type=int, default=512, help="calibration images")
    parser.add_argument("--images", type=int, default=500, help="evaluation images, with --data random")
    parser.add_argument("--checkpoint", type=Path, help="a training run whose supernet and data are taken")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--limit", type=float, default=1.15)
    parser.add_argument("--json", type=Path, help="file for the figures, with machine and versions")
    options = parser.parse_args()
    options.passes = Passes(dtype=getattr(torch, options.dtype))
    return options


if __name__ == "__main__":
    sys.exit(main())
