"""How fast images arrive, against how fast a training step uses them.

    python -m benchmarks.data [--data digits|cifar10|fashion_mnist|folder] [--root <folder>] [--space mbv3_tiny]
                              [--workers 0 1 2] [--policy v0] [--batch 64] [--resolution 224] [--images 512]
                              [--repeats 5] [--steps 12] [--device cpu] [--threads 1] [--no-train]
                              [--json <file>]

Times the loader alone, an epoch of every arm in turns (of images in memory: `--steps` batches), in another order each
time; prints medians of images/s and of ms per batch. Then the training step alone, on one batch (the sandwich rule of
the default configuration), and a training of `--steps` steps with each arm, with the share of its time that it waited
for images; `--no-train` leaves both out. Arms of image folders are the numbers of worker processes, each with exact
decoding, with fast decoding, and with fast decoding and augmentation on the device (`data.fast_decode`,
`data.augment_on`). `folder` without `--root` makes `--images` JPEG files of 500 × 375 pixels, shapes and noise of about
80 kB each, and removes them at the end. On a CPU, workers, device and training share the cores: there the share of
waiting says more than the rates.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from benchmarks import arms
from supernet.build import make_data, make_space, pick_device
from supernet.data import Batch, Data
from supernet.data.stream import StreamData
from supernet.describe import rehearsal
from supernet.memory import keep_freed_memory
from supernet.net import Supernet
from supernet.runs import write_json
from supernet.trainer import Trainer
from supernet.waiting import WaitMeter

CLASSES = 4
VARIANTS = {
    "exact": (),
    "fast": ("data.fast_decode=true",),
    "fast, on the device": ("data.fast_decode=true", "data.augment_on=device"),
}


def write_pictures(root: Path, count: int) -> None:
    """JPEG files of 500 × 375 pixels below root/<class>/: ellipses, lines and noise, the same in every run."""
    for number in range(count):
        rng = np.random.default_rng(number)
        picture = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((500, 375), 3)
        draw = ImageDraw.Draw(picture)
        for _ in range(12):
            left, top, wide, high = (int(value) for value in rng.integers(0, 300, 4))
            colour = tuple(int(value) for value in rng.integers(0, 256, 3))
            draw.ellipse((left, top, left + wide, top + high), fill=colour)
            draw.line((left, high, wide, top), fill=colour[::-1], width=3)
        noisy = np.asarray(picture) + rng.normal(0, 14, (375, 500, 3))
        folder = root / f"class{number % CLASSES}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05}.jpg", quality=88)


@contextmanager
def pictures(options: argparse.Namespace) -> Iterator[Path | None]:
    """The folder of images that the benchmark reads, where it needs one."""
    if options.data != "folder" or options.root is not None:
        yield options.root
        return
    with tempfile.TemporaryDirectory() as made:
        write_pictures(Path(made), options.images)
        yield Path(made)


def configs(options: argparse.Namespace, root: Path | None) -> dict[str, dict[str, Any]]:
    """The configuration of every arm by its name."""
    shared = [f"data={options.data}", f"space={options.space}", f"train.batch_size={options.batch}"]
    shared += [f"device={options.device}", "train.log_every=1000000", "train.health_every=0"]
    shared += [f"data.root={root}"] if root is not None else []
    if options.data != "folder":
        return {"in memory": arms.composed(shared)}
    side = options.resolution
    shared += [f"data.size={side}", f"data.resolution=[{side}]", f"data.auto_augment={options.policy or 'null'}"]
    shared += ["data.cache_limit_mb=0"]
    return {
        f"{count} workers, {variant}": arms.composed([*shared, f"data.num_workers={count}", *overrides])
        for count, (variant, overrides) in itertools.product(options.workers, VARIANTS.items())
    }


def pass_over(data: Data, epoch: int, steps: int) -> float:
    """Seconds per batch of one pass, of at most `steps` batches where no worker would read on beyond them."""
    begin = time.perf_counter()
    kept = data.train(epoch) if isinstance(data, StreamData) else itertools.islice(data.train(epoch), steps)
    devices = [batch.images.device for batch in kept]
    _wait(devices[-1])
    return (time.perf_counter() - begin) / len(devices)


def measure(loaders: dict[str, Data], repeats: int, steps: int) -> dict[str, list[float]]:
    """Seconds per batch of every arm, `repeats` times; the first pass, which starts the workers, does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(repeats + 1):
        for name in np.random.default_rng(number).permutation(list(loaders)).tolist():
            found = pass_over(loaders[name], number, steps)
            if number:
                seconds[name].append(found)
    return seconds


def step_seconds(trainer: Trainer, batch: Batch, repeats: int) -> float:
    """Median seconds of a training step on a batch that is there already."""
    device, seconds = batch.images.device, []
    for number in range(repeats + 2):
        _wait(device)
        begin = time.perf_counter()
        trainer.train_step(batch)
        _wait(device)
        if number > 1:
            seconds.append(time.perf_counter() - begin)
    return median(seconds)


def waiting(trainer: Trainer, data: Data, steps: int) -> float:
    """Percent of the time of a short training that passes before the next batch is there."""
    meter = WaitMeter()
    for batch in meter.watch(itertools.islice(data.train(1000), steps)):
        trainer.train_step(batch)
        _wait(batch.images.device)  # otherwise the host would run ahead of a GPU, and wait in vain
    return meter.read()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def train(
    options: argparse.Namespace, composed: dict[str, dict[str, Any]], loaders: dict[str, Data]
) -> dict[str, float]:
    """Percent waited in a short training of every arm, and under "step" the seconds of a step alone."""
    first, config = next(iter(loaders.values())), next(iter(composed.values()))
    space_config = {**config["space"], "resolution": list(first.info.resolution)}
    space = make_space(space_config, first.info.num_classes, first.info.channels)
    net = Supernet(space).to(pick_device(options.device))
    net.train()
    trainers = {name: rehearsal(composed[name], net, data) for name, data in loaders.items()}
    found = {"step": step_seconds(next(iter(trainers.values())), next(iter(first.train(0))), options.repeats)}
    return found | {name: waiting(trainers[name], data, options.steps) for name, data in loaders.items()}


def benchmark(options: argparse.Namespace, root: Path | None) -> tuple[float | None, dict[str, dict[str, float]]]:
    """Seconds of a step alone, and the figures of every arm."""
    composed = configs(options, root)
    loaders = {name: make_data(config, pick_device(options.device)) for name, config in composed.items()}
    seconds = {name: median(values) for name, values in measure(loaders, options.repeats, options.steps).items()}
    rows = {name: {"images_per_s": options.batch / value, "ms": 1e3 * value} for name, value in seconds.items()}
    if not options.train:
        return None, rows
    trained = train(options, composed, loaders)
    for name, row in rows.items():
        row |= {"steps": seconds[name] / trained["step"], "wait": trained[name]}
    return trained["step"], rows


def main() -> int:
    """The exit code."""
    options = _options()
    arms.use_threads(options.threads)
    console = Console(highlight=False, width=None if Console().is_terminal else 120)
    keep_freed_memory()
    with pictures(options) as root:
        step, rows = benchmark(options, root)
    title = f"{options.data}, batch {options.batch}, {options.device}, {options.threads} threads"
    table = Table("arm", "images/s", "ms a batch", "in steps", "wait, %", title=title)
    for name, row in rows.items():
        trained = () if step is None else (f"{row['steps']:.3f}", f"{row['wait']:.1f}")
        table.add_row(name, f"{row['images_per_s']:,.0f}", f"{row['ms']:.2f}", *trained)
    console.print(table)
    if step is not None:
        console.print(f"training step of {options.space}: {1e3 * step:.1f} ms, {options.batch / step:,.0f} images/s")
    if options.json:
        shown = {key: value for key, value in vars(options).items() if key not in ("json", "root")}
        write_json(options.json, {"environment": arms.machine(), "options": shown, "step": step, "arms": rows})
    return 0


def _options(words: Sequence[str] | None = None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser("python -m benchmarks.data", description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="a file of configs/data")
    parser.add_argument("--root", type=Path, help="data.root")
    parser.add_argument("--space", default="mbv3_tiny", help="a file of configs/space")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="of image folders")
    parser.add_argument("--policy", default="v0", help="of image folders; empty: none")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--resolution", type=int, default=224, help="pixels, of image folders")
    parser.add_argument("--images", type=int, default=512, help="to make where no folder is given")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="of a training; batches of a pass over images in memory")
    parser.add_argument("--no-train", dest="train", action="store_false", help="the loader alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the figures, with machine and versions")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
