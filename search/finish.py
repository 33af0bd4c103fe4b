"""The end of a search: finalists re-scored on fresh data, the winner tested once and exported."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from search.algorithm import Trial, best_of
from search.history import is_complete
from search.job import Job
from search.latency.timing import Setting, measure_subnet
from supernet.evaluate import Metrics, calibrated_subnet, evaluate, evaluate_subnet
from supernet.export import export
from supernet.log import RunLog
from supernet.space import Arch

EXPORT = "subnet"  # folder of the exported winner
COMPARED = 32  # images on which the exported file is compared with the supernet


def rescore(job: Job, trials: Sequence[Trial], log: RunLog, label: str) -> tuple[Trial, dict[Arch, Metrics]]:
    """The winner, and the finalists' metrics on the validation split, which played no part in the search.

    Finalists are the best distinct subnets inside the budget by the search split. The best of them on the
    validation split wins; among equals the one with fewer MACs.
    """
    excess = job.budget.excess([trial.arch for trial in trials])
    feasible = [t for t, violation in zip(trials, excess, strict=True) if not violation and is_complete(t)]
    finalists = best_of(feasible, job.settings.finalists)
    with log.progress(len(finalists), f"{label}: finalists") as progress:

        def scores(trial: Trial) -> dict[str, Any]:
            metrics = validate(job, trial.arch)
            progress.advance(1)
            return metrics._asdict()

        found = job.ranks.map(scores, finalists)
    validated = {trial.arch: Metrics(**metrics) for trial, metrics in zip(finalists, found, strict=True)}
    winner = min(finalists, key=lambda trial: (-validated[trial.arch].top1, trial.metrics["macs"]))
    return winner, validated


def ship(job: Job, arch: Arch, scores: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """extract -> calibrate -> test once -> export to `folder/subnet`; returns what is known about the subnet.

    `scores` are metrics by split that are known already. Without data nothing is scored, and the exported file is
    compared on noise.
    """
    net, data, settings = job.run.net, job.data, job.settings
    resolution = net.space.resolution(arch)
    subnet = calibrated_subnet(net, arch, data, job.calibration_images)
    metrics = dict(scores)
    if settings.test and data is not None:
        metrics["test"] = evaluate(subnet, data.evaluation("test", resolution))._asdict()
    largest = net.space.plan(net.space.largest())
    price = job.budget.costs(arch)
    measured = measured_latency(job, subnet, resolution)
    provenance = {
        "checkpoint": str(job.run.source),
        "step": job.run.step,
        "search": str(folder),
        "seed": settings.seed,
        "calibration_images": job.calibration_images,
    }
    if data is not None:
        images = data.evaluation("val", resolution)[0][0][:COMPARED]
    else:
        noise = torch.Generator().manual_seed(settings.seed)
        images = torch.randn(4, job.info.channels, resolution, resolution, generator=noise)
        images = images.to(next(net.parameters()).device)
    differences = export(subnet, arch, net, folder / EXPORT, job.info, images, metrics, provenance, settings.formats)
    return {
        "arch": arch.to_json(),
        **price,
        "macs_of_largest": price["macs"] / largest.macs,
        "params_of_largest": price["params"] / largest.params,
        **({"measured_latency": measured} if measured else {}),
        "metrics": metrics,
        "export": str(folder / EXPORT),
        "largest_difference_after_export": differences,
    }


def measured_latency(job: Job, subnet: torch.nn.Module, resolution: int) -> dict[str, Any] | None:
    """The subnet's latency end to end, under the conditions of the latency model; None where they are not had here.

    It is within the budget if it is inside, give or take the distance between the quartiles of the measurement.
    """
    conditions = job.latency.info.get("conditions") if job.latency else None
    if not conditions:
        return None
    setting = Setting.of(conditions)
    if setting.cuda and not torch.cuda.is_available():
        return None
    if setting.record()["device_name"] != conditions["device_name"]:
        return None
    device = next(subnet.parameters()).device
    median, iqr = measure_subnet(subnet, resolution, setting, job.info.channels)
    subnet.to(device)
    low, high = job.budget.windows.get("latency_ms", (-math.inf, math.inf))
    within = low - iqr <= median <= high + iqr
    return {"median_ms": median, "iqr_ms": iqr, "within_budget": within, "conditions": dict(conditions)}


def validate(job: Job, arch: Arch) -> Metrics:
    """Metrics of one subnet on the validation split."""
    return evaluate_subnet(job.run.net, arch, job.images, "val", job.calibration_images)
