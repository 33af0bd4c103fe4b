"""Sections `evaluation` and `latency`: candidates scored a minute, and how well latency can be predicted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_report import Clock, Report, Setting, wait
from search.evaluator import SupernetEvaluator
from search.latency.fit import LEAST
from search.latency.mode import MODEL
from search.latency.mode import main as measure_latency
from supernet.build import build
from supernet.data.base import Batch, Data, DataInfo, even_chunks
from supernet.errors import UserError
from supernet.runs import read_json

CANDIDATES_A_MINUTE = 60.0
CALIBRATION, VALIDATION = 4096, 10_000  # images
MAPE, TAU = 5.0, 0.85  # of a latency model on a GPU, as `benchmarks.latency` has them


@dataclass(frozen=True)
class KeptImages:
    """A `Data` of random images for searches: kept on the device, the same for every candidate."""

    side: int
    classes: int
    sizes: Mapping[str, int]
    batch_size: int
    device: torch.device
    memory_format: torch.memory_format = torch.channels_last
    kept: dict[str, tuple[tuple[Tensor, Tensor], ...]] = field(default_factory=dict)

    @property
    def info(self) -> DataInfo:
        names = tuple(str(i) for i in range(self.classes))
        return DataInfo("random", self.classes, names, 3, self.side, (0.5,) * 3, (0.25,) * 3, (self.side,))

    def steps_per_epoch(self) -> int:
        return 1

    def train(self, epoch: int, first_batch: int = 0, order: Tensor | None = None) -> Iterator[Batch]:
        raise AssertionError("a search does not train")

    def evaluation(self, split: str, resolution: int, limit: int | None = None) -> Sequence[tuple[Tensor, Tensor]]:
        if split not in self.kept:
            rng = torch.Generator(self.device).manual_seed(len(self.kept))
            self.kept[split] = tuple(self._batch(c.stop - c.start, rng) for c in self._chunks(self.sizes[split]))
        return self.kept[split]

    def calibration(self, resolution: int, num_images: int) -> Sequence[Tensor]:
        return [images for images, _ in self.evaluation("train", resolution)]

    def split_record(self) -> dict[str, Any]:
        return {}

    def _chunks(self, count: int) -> list[slice]:
        return even_chunks(count, self.batch_size)

    def _batch(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        images = torch.randn(count, 3, self.side, self.side, generator=rng, device=self.device)
        targets = torch.randint(self.classes, (count,), generator=rng, device=self.device)
        return images.contiguous(memory_format=self.memory_format), targets


def evaluation(setting: Setting, report: Report, clock: Clock) -> None:
    """Random candidates, each extracted, calibrated and evaluated as in a search; in fp32 and in bf16."""
    name, side, classes = ("mbv3_tiny", 28, 10) if setting.quick else ("alphanet", 224, 1000)
    calibration, validation = (256, 512) if setting.quick else (CALIBRATION, VALIDATION)
    sizes = {"train": calibration, "val": validation, "search": validation, "test": 0}
    data = KeptImages(side, classes, sizes, 128 if setting.quick else 512, setting.device)
    net: Any = build(name, num_classes=classes, resolution=[side])
    net = net.to(setting.device, memory_format=torch.channels_last)
    archs = net.space.sample(np.random.default_rng(0), n=32)
    best = 0.0
    for dtype, share in (("bf16", 0.5), ("fp32", 1.0)):
        if clock.spent(5.0):
            break
        until = clock.left * (1 - share)
        evaluator = SupernetEvaluator(net, cast(Data, data), calibration, lambda arch: {})
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=dtype == "bf16"):
            evaluator(archs[:1])
            wait(setting.device)
            begin, count = time.perf_counter(), 0
            for arch in archs[1 : 4 if setting.quick else None]:
                evaluator([arch])
                count += 1
                if clock.left < until + 3.0:
                    break
            wait(setting.device)
        rate = 60 * count / (time.perf_counter() - begin)
        best = max(best, rate)
        report.facts[dtype] = rate
        report.add(f"{dtype}, candidates a minute", f"{rate:.0f} (of {count})")
    if not best:
        report.add("candidates a minute", "left out: no time")
        return
    images = f"{calibration:,} + {validation:,} images at {side} px"
    passed = best >= CANDIDATES_A_MINUTE if setting.limited else None
    report.add(f"candidates a minute, {images}", f"{best:.0f}", f">= {CANDIDATES_A_MINUTE:g}", passed)


def latency(setting: Setting, report: Report, clock: Clock) -> None:
    """A short measurement of random subnets and a model of it, tested on subnets that it has not seen."""
    space: str = "mbv3_tiny" if setting.quick else "alphanet"
    batch = 1 if setting.quick else 64
    subnets, held = (LEAST + 6, 8) if setting.quick else (120, 60)
    config = {
        "mode": "latency",
        "runs_dir": str(setting.folder / "latency"),
        "space": space,
        "device": str(setting.device),
        "batch": batch,
        "dtype": "bfloat16" if setting.cuda else "float32",
        "memory_format": "channels_last",
        "minutes": max(0.1, (clock.left - 15.0) / 60),
        "subnets": subnets,
        "held_out": held,
    }
    try:
        measure_latency(config)
    except UserError as error:
        report.add(f"{space}, batch {batch}", str(error), "a model", False)
        return
    (file,) = (setting.folder / "latency" / "latency").glob(f"*/{MODEL}")
    found = read_json(file)["info"]["held_out"]
    mape, tau = found["mape"], found["kendall_tau"]
    passed = mape <= MAPE and tau >= TAU if setting.limited else None
    value = f"MAPE {mape:.2f}%, tau {tau:.3f} on {held} held-out subnets"
    report.add(f"{space}, batch {batch}", value, f"<= {MAPE:g}%, >= {TAU}", passed, held_out=found)
