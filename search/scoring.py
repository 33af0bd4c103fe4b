"""How the candidates of a search are scored: batch sizes and precision, given or measured once and kept.

What was measured is kept in `scoring.json`, in the search's own folder, so that a resumed search goes on alike, and
beside the searches of the same supernet, so that all of them score alike on the same machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from search.ranking import kendall
from supernet.batch_size import fastest_sizes
from supernet.errors import UserError
from supernet.evaluate import evaluate_subnet
from supernet.passes import Passes
from supernet.runs import environment, read_json, write_json
from supernet.sharing.members import AnySupernet
from supernet.space import Arch, Space

if TYPE_CHECKING:
    from search.job import Job
    from supernet.data import Data
    from supernet.log import RunLog

FILE = "scoring.json"
AGREEMENT = 0.98  # Kendall's tau-b between the rankings of two precisions
COMPARED = 12  # random subnets that `eval_dtype=auto` is decided on
MIN_SPEED_UP = 1.05  # less is not worth other numbers


@dataclass(frozen=True)
class Precisions:
    """bfloat16 against float32 on the same subnets.

    `speed_up` is the ratio of seconds; `tau` Kendall's tau-b between the top-1, None where all are equal; `difference`
    the standard deviation of the differences in top-1, `standard_error` that of one top-1 on so many images, percent.
    """

    speed_up: float
    tau: float | None
    difference: float
    standard_error: float
    subnets: int

    @property
    def bfloat16(self) -> bool:
        """Whether bfloat16 is faster and ranks alike: by tau, or by differences within the sampling error."""
        alike = (self.tau is not None and self.tau >= AGREEMENT) or self.difference <= self.standard_error
        return self.speed_up >= MIN_SPEED_UP and alike


def compare_precisions(
    net: AnySupernet, archs: Sequence[Arch], data: Data, split: str, calibration_images: int, sizes: Mapping[int, int]
) -> Precisions:
    """Score every subnet in float32 and in bfloat16, in turns; the first subnet once more beforehand, to warm up."""
    ways = [Passes(sizes, dtype) for dtype in (torch.float32, torch.bfloat16)]
    top1: list[list[float]] = [[], []]
    seconds = [0.0, 0.0]
    for number, arch in enumerate([archs[0], *archs]):
        for i, passes in enumerate(ways):
            begin = time.perf_counter()
            found = evaluate_subnet(net, arch, data, split, calibration_images, passes).top1
            if number:
                top1[i].append(found)
                seconds[i] += time.perf_counter() - begin
    mean = float(np.mean(top1)) / 100
    error = 100 * (mean * (1 - mean) / data.sizes[split]) ** 0.5
    difference = float(np.std(np.array(top1[0]) - np.array(top1[1])))
    tau = kendall(*top1)
    return Precisions(seconds[0] / seconds[1], None if isnan(tau) else tau, difference, error, len(archs))


def scoring(job: Job, folder: Path, log: RunLog) -> tuple[Passes, dict[str, Any]]:
    """The forward passes of candidates, and how they were chosen. Collective: the first process measures for all."""
    settings, ranks = job.settings, job.ranks
    found: dict[str, Any] = ranks.broadcast(_settled(job, folder) if ranks.first else None)
    if ranks.first:
        _keep(job, folder, found)
    sizes = {int(side): size for side, size in found["sizes"].items()}
    if "precisions" in found:
        precisions = Precisions(**found["precisions"])
        agrees = "cannot be compared" if precisions.tau is None else f"agrees by τ-b {precisions.tau:.3f}"
        log.say(
            f"scoring in {found['dtype']}: bfloat16 is {precisions.speed_up:.2f} x as fast, its ranking of "
            f"{precisions.subnets} subnets {agrees}"
        )
    if settings.eval_batch == "auto" and sizes:
        log.say(f"images at a time, by resolution (measured): {sizes}")
    return Passes(sizes, getattr(torch, found["dtype"])), found


def _settled(job: Job, folder: Path) -> dict[str, Any]:
    """As the configuration says, or as it was measured before, or measured now."""
    conditions = _conditions(job)
    begun = _read(folder / FILE)
    if {**begun.get("conditions", {}), "device": ""} == {**conditions, "device": ""}:
        return begun  # a search goes on as it began, on another device too
    kept = _read(_shared(job)).get(json.dumps(conditions))
    return {"conditions": conditions, **kept} if kept else _measured(job, conditions)


def _measured(job: Job, conditions: Mapping[str, Any]) -> dict[str, Any]:
    settings, data, net = job.settings, job.images, job.run.net
    sides, sizes = _resolutions(job.budget.space), {}
    if isinstance(settings.eval_batch, int):
        sizes = dict.fromkeys(sides, settings.eval_batch)
    elif settings.eval_batch == "auto":
        dtype = torch.bfloat16 if settings.eval_dtype == "bfloat16" else torch.float32
        sizes = fastest_sizes(net, data, "search", sides, dtype)
    found = {"conditions": conditions, "sizes": {str(side): size for side, size in sizes.items()}}
    if settings.eval_dtype != "auto":
        return {**found, "dtype": settings.eval_dtype}
    archs = job.budget.space.sample(np.random.default_rng(settings.seed), n=COMPARED)
    precisions = compare_precisions(net, archs, data, "search", job.calibration_images, sizes)
    return {**found, "dtype": "bfloat16" if precisions.bfloat16 else "float32", "precisions": asdict(precisions)}


def _resolutions(space: Space) -> list[int]:
    sides = [gene.options for gene in space.genes if gene.key == "resolution"]
    return [int(side) for side in sides[0]] if sides else [space.resolution(space.largest())]


def _conditions(job: Job) -> dict[str, Any]:
    """What decides the measurement."""
    device, about = next(job.run.net.parameters()).device, environment()
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{about['cpu']}, {about['threads']} threads"
    )
    return {
        "device": name,
        "space": job.budget.space.name,
        "images": job.images.sizes["search"],
        "calibration_images": job.calibration_images,
        "eval_batch": job.settings.eval_batch,
        "eval_dtype": job.settings.eval_dtype,
        **({key: job.setup()[key] for key in ("weights", "data")} if job.settings.eval_dtype == "auto" else {}),
    }


def _shared(job: Job) -> Path:
    return job.root.parent / FILE


def _read(path: Path) -> dict[str, Any]:
    """What is kept in a file; nothing where there is none, or it is damaged."""
    try:
        kept = read_json(path)
    except UserError:
        return {}
    return kept if isinstance(kept, dict) else {}


def _keep(job: Job, folder: Path, found: Mapping[str, Any]) -> None:
    write_json(folder / FILE, found)
    shared, key = _read(_shared(job)), json.dumps(found["conditions"])
    if key not in shared:
        write_json(
            _shared(job), {**shared, key: {name: value for name, value in found.items() if name != "conditions"}}
        )
