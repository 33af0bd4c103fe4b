"""Which subnets are watched during training, and how they do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from supernet.distributed import ALONE, Ranks
from supernet.evaluate import calibrated_subnet, evaluate
from supernet.net import Supernet
from supernet.space import Arch, Space

if TYPE_CHECKING:
    from supernet.data import Data
    from supernet.log import RunLog

# Fixed, so that curves of runs with different seeds show the same subnets.
MONITOR_SEED = 20200913


def watched(space: Space, num_random: int) -> dict[str, Arch]:
    """smallest, random0.., largest; duplicates left out, so a space of one subnet has just `largest`."""
    rng = np.random.default_rng(MONITOR_SEED)
    named = {"largest": space.largest(), "smallest": space.smallest()}
    named |= {f"random{i}": space.sample(rng) for i in range(num_random)}
    unique = {arch: name for name, arch in reversed(named.items())}
    order = ["smallest", *(f"random{i}" for i in range(num_random)), "largest"]
    return {name: arch for name in order for arch, kept in unique.items() if kept == name}


def scores(
    net: Supernet,
    archs: Mapping[str, Arch],
    data: Data,
    splits: tuple[str, ...],
    calibration_images: int,
    limit: int | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """{"largest/val/top1": percent, "largest/val/loss": nats, ...}; every subnet calibrated once.

    `ranks` share the images of every subnet, and all get all numbers.
    """
    values: dict[str, float] = {}
    for name, arch in archs.items():
        subnet = calibrated_subnet(net, arch, data, calibration_images, ranks=ranks)
        for split in splits:
            result = evaluate(subnet, data.evaluation(split, net.space.resolution(arch), limit), ranks=ranks)
            values[f"{name}/{split}/top1"] = result.top1
            values[f"{name}/{split}/loss"] = result.loss
    return values


def final_scores(
    log: RunLog, space: Space, archs: Mapping[str, Arch], values: Mapping[str, float], splits: tuple[str, ...]
) -> dict[str, Any]:
    """The table at the end of a run, and the same for `results.json`. `values` are those of `scores`."""
    rows, subnets = [], {}
    for name, arch in archs.items():
        plan = space.plan(arch)
        metrics = {split: values[f"{name}/{split}/top1"] for split in splits}
        subnets[name] = {"arch": arch.to_json(), "macs": plan.macs, "params": plan.params, "top1": metrics}
        top1 = [f"{metrics[split]:.2f}" for split in splits]
        shown = name if len(archs) > 1 else "the subnet"
        rows.append([shown, f"{plan.macs / 1e6:.2f}", f"{plan.params / 1e6:.3f}", *top1])
    log.table("calibrated subnets", ["subnet", "MMACs", "M params", *(f"{split} top-1 %" for split in splits)], rows)
    return subnets
