"""The batch size that is fastest to score images with, on this device and at this resolution: found by measuring.

Bigger is not faster: once the activations of a batch no longer fit into a CPU's cache, every layer waits for memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from supernet.calibrate import calibrate
from supernet.passes import Passes
from supernet.sharing.members import AnySupernet
from supernet.space import Arch, Space

if TYPE_CHECKING:
    from supernet.data import Data

SIZES = (16, 32, 64, 128, 256, 512)
MIN_IMAGES = 64  # to measure on, where the batch has them
CALIBRATION = 32  # images; the statistics do not matter for the time
GAIN = 0.95  # a smaller batch has to be faster by 5%: less is within what such a measurement varies


def fastest_sizes(
    net: AnySupernet,
    data: Data,
    split: str,
    resolutions: Sequence[int],
    dtype: torch.dtype = torch.float32,
    seconds: float = 2.0,
) -> dict[int, int]:
    """The most images at a time for `Passes.sizes`, by resolution, measured on one random subnet.

    Args:
        seconds: of measuring for each resolution, about.
    """
    found = {}
    for side in resolutions:
        arch = at_resolution(net.space, net.space.sample(np.random.default_rng(0)), side)
        subnet = net.extract(arch)
        passes = Passes(dtype=dtype)
        images, _ = data.evaluation(split, side)[0]
        with passes.precision(images.device):
            calibrate(subnet, [images[:CALIBRATION]])
        found[side] = best(batch_curve(subnet, images, dtype, seconds))
    return found


def best(curve: Mapping[int, float]) -> int:
    """The largest of the batch sizes of `curve`, unless a smaller one is 5% faster: then the fastest.

    Args:
        curve: seconds per image by batch size.
    """
    largest, fastest = max(curve), min(curve, key=lambda size: curve[size])
    return fastest if curve[fastest] < GAIN * curve[largest] else largest


@torch.no_grad()
def batch_curve(
    model: nn.Module, images: Tensor, dtype: torch.dtype = torch.float32, seconds: float = 2.0
) -> dict[int, float]:
    """Seconds per image by batch size: the smallest over rounds, in each of which all sizes take their turn.

    Sizes are those of `SIZES` that `images` [B, C, S, S] hold, and B itself; fewer images are used where a round over
    all of them would take more than a third of `seconds`, 64 at least. There are two rounds to four.
    """
    device, side = images.device, images.shape[-1]
    with Passes(dtype=dtype).precision(device):
        model(images[: SIZES[0]])  # the first pass makes memory and kernels ready
        alone = _seconds(model, Passes(), images[: SIZES[0]])
        room = int(seconds / 3 / alone * min(len(images), SIZES[0])) // (1 + len(SIZES))
        images = images[: max(MIN_IMAGES, room)]
        sizes = sorted({*(size for size in SIZES if size < len(images)), len(images)})
        curve = dict.fromkeys(sizes, float("inf"))
        begin, rounds = time.perf_counter(), 0
        while rounds < 2 or (rounds < 4 and time.perf_counter() - begin < seconds):
            rounds += 1
            for size in sizes:
                taken = _seconds(model, Passes({side: size}), images) / len(images)
                curve[size] = min(curve[size], taken)
    return curve


def at_resolution(space: Space, arch: Arch, side: int) -> Arch:
    """`arch` with another resolution; as it is where there is nothing to choose."""
    row = list(space.encode(arch))
    for i, gene in enumerate(space.genes):
        if gene.key == "resolution":
            row[i] = gene.options.index(side)
    return space.decode(row)


def _seconds(model: nn.Module, passes: Passes, images: Tensor) -> float:
    begin = time.perf_counter()
    logits = passes.logits(model, images)
    if logits.device.type == "cuda":
        torch.cuda.synchronize(logits.device)
    return time.perf_counter() - begin
