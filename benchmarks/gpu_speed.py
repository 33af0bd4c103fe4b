"""Sections `speed`, `compile`, `elastic` and `memory`: sandwich steps of random images, as a trainer makes them."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import arms
from benchmarks.gpu_report import Clock, Report, Setting, exact, one_line, wait
from benchmarks.mixture import peak_bytes
from benchmarks.overhead import RandomData
from supernet.build import build, make_space
from supernet.data.base import Batch, Data
from supernet.describe import rehearsal
from supernet.net import Supernet
from supernet.settings import TrainSettings
from supernet.trainer import Trainer

PLAIN, BF16 = "fp32 NCHW", "bf16 channels_last"
ARMS: dict[str, tuple[str, ...]] = {
    PLAIN: ("train.amp=false", "train.channels_last=false"),
    "TF32 NCHW": ("train.amp=false", "train.channels_last=false"),
    BF16: ("train.amp=true", "train.channels_last=true"),
}
BATCHES = (32, 64, 128, 256, 512)
FASTER, OUTSIDE, ELASTIC, SANDWICH = 3.0, 0.05, 1.05, 1.05  # the targets
WARM_UP, REPEATS = 2, 5
OOM = torch.OutOfMemoryError if hasattr(torch, "OutOfMemoryError") else torch.cuda.OutOfMemoryError


def space_of(setting: Setting) -> tuple[str, int, int]:
    """Name, side of the images in px, number of classes."""
    return ("mbv3_tiny", 28, 10) if setting.quick else ("alphanet", 224, 1000)


def trainer_of(setting: Setting, batch_size: int, overrides: Sequence[str] = ()) -> tuple[Trainer, Batch]:
    """A trainer that writes nowhere, and a batch for it. Nothing is logged, no health is watched."""
    name, side, classes = space_of(setting)
    shared = (f"space={name}", f"space.resolution=[{side}]", f"train.batch_size={batch_size}")
    quiet = ("train.log_every=1000000", "train.health_every=0", f"device={setting.device}")
    config = arms.composed((*shared, *quiet, *overrides))
    data = RandomData(side, batch_size, classes, setting.device)
    torch.manual_seed(0)
    net = Supernet(make_space(config["space"], classes, 3)).to(setting.device)
    trainer = rehearsal(config, net, cast(Data, data))
    net.train()
    return trainer, next(data.batches())


def seconds(call: Callable[[], object], device: torch.device, repeats: int = REPEATS, warm_up: int = WARM_UP) -> float:
    """The median of single calls, each waited for."""
    found = []
    for number in range(warm_up + repeats):
        wait(device)
        begin = time.perf_counter()
        call()
        wait(device)
        if number >= warm_up:
            found.append(time.perf_counter() - begin)
    return median(found)


def speed(setting: Setting, report: Report, clock: Clock) -> None:
    """Images a second by batch size and arm until memory or time runs out; the share of time outside kernels."""
    found: dict[str, dict[int, float]] = {arm: {} for arm in ARMS}
    full: set[str] = set()
    for batch_size in (32,) if setting.quick else BATCHES:
        for arm in [arm for arm in ARMS if arm not in full]:
            if clock.spent(5.0):
                full.add(arm)
                continue
            try:
                found[arm][batch_size] = _images_per_second(setting, arm, batch_size)
            except OOM:
                full.add(arm)
            gc.collect()  # trainers refer to themselves
            torch.cuda.empty_cache()
    best: dict[str, int] = {}
    for arm, rates in found.items():
        if rates:
            best[arm] = max(rates, key=lambda size: rates[size])
            each = ", ".join(f"{size}: {rate:.0f}" for size, rate in rates.items())
            report.add(f"{arm}, images/s by batch size", each, images_per_second=found, best=best)
    if PLAIN in best and BF16 in best:
        ratio = found[BF16][best[BF16]] / found[PLAIN][best[PLAIN]]
        passed = ratio >= FASTER if setting.limited else None
        report.add(f"{BF16} against {PLAIN}, best of each", f"{ratio:.2f} x", f">= {FASTER:g} x", passed, ratio=ratio)
    if setting.cuda and BF16 in best:
        trainer, batch = trainer_of(setting, best[BF16], ARMS[BF16])
        share = outside_kernels(lambda: trainer.train_step(batch), setting.device)
        passed = share < OUTSIDE if setting.limited else None
        report.add("time outside kernels", f"{100 * share:.1f}%", f"< {100 * OUTSIDE:g}%", passed, outside=share)


def _images_per_second(setting: Setting, arm: str, batch_size: int) -> float:
    trainer, batch = trainer_of(setting, batch_size, ARMS[arm])

    def timed() -> float:
        return batch_size / seconds(lambda: trainer.train_step(batch), setting.device)

    if arm == PLAIN:
        with exact():
            return timed()
    return timed()


def outside_kernels(call: Callable[[], object], device: torch.device, steps: int = 3) -> float:
    """1 - time in kernels and copies / wall-clock time. The profiler slows the host, so that time is taken without."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    alone = seconds(lambda: [call() for _ in range(steps)], device)  # in a row, as in training
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            call()
        wait(device)
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events() or ()
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]
    return 1.0 - 1e-6 * covered(spans) / alone


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def compile_(setting: Setting, report: Report, clock: Clock) -> None:
    """Steps with `train.compile`, in turns with eager ones, at the best eager batch size."""
    if "compile" not in {field.name for field in dataclasses.fields(TrainSettings)}:
        report.add("train.compile", "left out: there is no such setting")
        return
    batch_size = setting.earlier("speed").get("best", {}).get(BF16, 32 if setting.quick else 256)
    arm = ARMS[BF16 if setting.cuda else PLAIN]
    eager, batch = trainer_of(setting, batch_size, arm)
    for mode in ("blocks", "extremes"):
        if clock.spent(10.0):
            report.add(mode, "left out: no time")
            continue
        try:
            trainer, _ = trainer_of(setting, batch_size, (*arm, f"train.compile={mode}"))
            begin = time.perf_counter()
            for _ in range(3):  # other subnets each time: what is compiled later would be missed
                trainer.train_step(batch)
            wait(setting.device)
            warm = time.perf_counter() - begin
            times: dict[str, list[float]] = {"eager": [], mode: []}
            for _ in range(REPEATS):
                for name, one in (("eager", eager), (mode, trainer)):
                    step = one.step
                    times[name].append(seconds(partial(one.train_step, batch), setting.device, 1, 0))
                    one.step = step + 1
        except Exception as error:  # the other mode may do
            report.add(mode, one_line(error), "runs", False)
            continue
        ratio = median(a / b for a, b in zip(times["eager"], times[mode], strict=True))
        rate = batch_size / median(times[mode])
        value = f"{rate:.0f} images/s, {ratio:.2f} x eager; first 3 steps {warm:.0f} s"
        report.facts[mode] = {"ratio": ratio, "images": rate, "warm_up": warm}
        report.add(f"{mode}, batch {batch_size}", value)


def elastic(setting: Setting, report: Report, clock: Clock) -> None:
    """Forward and backward of random subnets: inside the supernet, and extracted, in turns."""
    name, side, classes = space_of(setting)
    memory = torch.channels_last
    net: Any = build(name, num_classes=classes, resolution=[side]).train()
    net = net.to(setting.device, memory_format=memory)
    batch_size = 128 if setting.limited else 8
    images = torch.randn(batch_size, 3, side, side, device=setting.device).contiguous(memory_format=memory)
    targets = torch.arange(batch_size, device=setting.device) % classes
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    ratios = []
    for arch in net.space.sample(np.random.default_rng(0), n=3 if setting.quick else 10):
        if clock.spent(2.0):
            break
        alone = net.extract(arch)
        for parameter in alone.parameters():
            parameter.grad = torch.zeros_like(parameter)
        ratios.append(_ratio(partial(net, images, arch), partial(alone, images), targets, setting))
    if not ratios:
        report.add("elastic / extracted", "left out: no time")
        return
    middle = median(ratios)
    value = f"{middle:.3f} (median of {len(ratios)}), {min(ratios):.3f} to {max(ratios):.3f}"
    report.add(
        "elastic / extracted", value, f"<= {ELASTIC}", middle <= ELASTIC if setting.limited else None, all=ratios
    )


def _ratio(inside: Callable[[], Tensor], alone: Callable[[], Tensor], targets: Tensor, setting: Setting) -> float:
    """The median over rounds of the time of one way over that of the other."""

    def step(forward: Callable[[], Tensor]) -> None:
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=setting.cuda):
            logits = forward()
        F.cross_entropy(logits.float(), targets).backward()

    rounds = []
    for number in range(2 + 7):
        one, other = (seconds(partial(step, way), setting.device, 1, 0) for way in (inside, alone))
        rounds += [one / other] if number > 1 else []
    return median(rounds)


def memory(setting: Setting, report: Report, clock: Clock) -> None:
    """The peak of a sandwich step over that of the largest subnet's own step; and with recomputed activations."""
    size = 32 if setting.quick else 128
    recompute = "train.checkpoint_activations=true"
    cases = {"largest alone": ("sampler=largest",), "sandwich": ()}
    if "checkpoint_activations" in {field.name for field in dataclasses.fields(TrainSettings)}:
        cases |= {f"{name}, recomputed": (*extra, recompute) for name, extra in list(cases.items())}
    peaks: dict[str, float] = {}
    for name, extra in cases.items():
        if clock.spent(3.0):
            report.add(name, "left out: no time")
            return
        trainer, batch = trainer_of(setting, size, (*(ARMS[BF16] if setting.cuda else ARMS[PLAIN]), *extra))
        trainer.train_step(batch)  # momentum, kernels' own memory
        peaks[name] = peak_bytes(partial(trainer.train_step, batch), setting.device) / 2**20
        report.add(f"peak, {name}", f"{peaks[name]:,.1f} MiB", peaks=peaks)
        del trainer, batch
    for name in [name for name in peaks if name.startswith("sandwich")]:
        ratio = peaks[name] / peaks[name.replace("sandwich", "largest alone")]
        passed = ratio <= SANDWICH if setting.limited else None
        report.add(f"{name} / largest", f"{ratio:.3f}", f"<= {SANDWICH}", passed)
