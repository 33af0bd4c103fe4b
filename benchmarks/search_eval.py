"""What scoring a candidate costs beside its forward passes.

    python -m benchmarks.search_eval [--data digits] [--subnets 8] [--repeats 9] [--device cpu] [--threads 1]
                                     [--calibration 512] [--limit 1.15] [--json <file>]

Takes random subnets of `mbv3_tiny` and times, in turns, (a) the whole of what a search does for a candidate: extract,
calibrate, evaluate, read the score; (b) the same forward passes alone, on a network that is extracted already: the
calibration batches with batch statistics, the validation batches in eval mode. Prints the medians and their ratio, and
exits with 1 where the ratio of the sums over all subnets is above the limit. The weights are random: they do not
matter for the time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from supernet.build import make_data, make_space, pick_device
from supernet.data import Data
from supernet.evaluate import calibrated_subnet, evaluate_subnet
from supernet.net import Supernet
from supernet.runs import config_dir, environment, write_json
from supernet.space import Arch


@torch.no_grad()
def forward_passes(
    subnet: nn.Module, calibration: Sequence[Tensor], evaluation: Sequence[tuple[Tensor, Tensor]]
) -> None:
    """The passes that a score needs, and nothing else."""
    norms = [module for module in subnet.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
    for images in calibration:
        subnet(images)
    for norm in norms:
        norm.eval()
    for images, _ in evaluation:
        subnet(images)


def measure(net: Supernet, data: Data, arch: Arch, calibration_images: int, repeats: int) -> tuple[float, float]:
    """Median seconds of one candidate: scored, and its forward passes alone; measured in turns."""
    side = net.space.resolution(arch)
    calibration, evaluation = data.calibration(side, calibration_images), data.evaluation("search", side)
    subnet = calibrated_subnet(net, arch, data, calibration_images)
    device = next(net.parameters()).device
    ways: list[Callable[[], Any]] = [
        lambda: evaluate_subnet(net, arch, data, "search", calibration_images),
        lambda: forward_passes(subnet, calibration, evaluation),
    ]
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 2):  # two rounds to warm up
        for way, found in zip(ways, seconds, strict=True):
            _wait(device)
            begin = time.perf_counter()
            way()
            _wait(device)
            if repeat > 1:
                found.append(time.perf_counter() - begin)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def main() -> int:
    """The exit code: 0 where the ratio is inside the limit."""
    options = _options()
    torch.set_num_threads(options.threads)
    device, console = pick_device(options.device), Console(highlight=False)
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        overrides = [f"data={options.data}", f"train.calibration_images={options.calibration}"]
        config: Any = OmegaConf.to_container(compose("train", overrides), resolve=True)
    data = make_data(config, device)
    info = data.info
    space = make_space({**config["space"], "resolution": list(info.resolution)}, info.num_classes, info.channels)
    net = Supernet(space).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    table = Table("subnet", "MMACs", "scored, ms", "forward passes, ms", "ratio", title=str(device))
    rows = []
    for number, arch in enumerate(space.sample(np.random.default_rng(0), n=options.subnets)):
        scored, alone = measure(net, data, arch, options.calibration, options.repeats)
        macs = space.plan(arch).macs
        rows.append({"macs": macs, "scored": scored, "alone": alone, "ratio": scored / alone})
        table.add_row(
            str(number), f"{macs / 1e6:.2f}", f"{scored * 1e3:.1f}", f"{alone * 1e3:.1f}", f"{scored / alone:.3f}"
        )
    ratio = sum(row["scored"] for row in rows) / sum(row["alone"] for row in rows)
    console.print(table)
    images = f"{options.calibration} calibration and {data.sizes['search']:,} validation images of {info.name}"
    console.print(f"ratio over all subnets: {ratio:.3f} (limit {options.limit}); {images}")
    if options.json:
        write_json(options.json, {"environment": environment(), "images": images, "ratio": ratio, "rows": rows})
    return 0 if ratio <= options.limit else 1


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser("python -m benchmarks.search_eval", description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="a file of configs/data")
    parser.add_argument("--subnets", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calibration", type=int, default=512, help="calibration images")
    parser.add_argument("--limit", type=float, default=1.15)
    parser.add_argument("--json", type=Path, help="file for the figures, with machine and versions")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
