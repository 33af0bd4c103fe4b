"""What the sections of `benchmarks.gpu` share: settings, a clock, and checks that are on the disk as soon as made."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from supernet.data.base import Settings
from supernet.data.memory import MemoryData
from supernet.runs import read_json, write_json


@dataclass(frozen=True)
class Setting:
    """Where and how large.

    Attributes:
        quick: sizes at which all sections together take a minute or two on a CPU; figures then mean nothing.
        folder: for runs, and for the results of every section.
    """

    device: torch.device
    quick: bool
    folder: Path

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def limited(self) -> bool:
        """Whether targets of speed and memory count: they are those of a GPU at full size."""
        return self.cuda and not self.quick

    def earlier(self, section: str) -> dict[str, Any]:
        """The facts that a section before this one has reported; empty if it has not run."""
        file = self.folder / f"{section}.json"
        found: dict[str, Any] = read_json(file)["facts"] if file.is_file() else {}
        return found


@dataclass(frozen=True)
class Check:
    """One line of the table. `passed` None: a figure without a target."""

    section: str
    name: str
    value: str
    target: str = ""
    passed: bool | None = None


@dataclass
class Report:
    """The checks of one section, and facts for the file; written at every change, so that none is lost."""

    section: str
    file: Path
    checks: list[Check] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, value: str, target: str = "", passed: bool | None = None, **facts: Any) -> None:
        """A line; and facts, by name, that replace earlier ones."""
        check = Check(self.section, name, value, target, None if passed is None else bool(passed))
        self.checks.append(check)
        self.facts |= facts
        verdict = {None: "", True: "ok", False: "FAILED"}[check.passed]
        print(f"{self.section}: {name}: {value} {f'({target})' if target else ''} {verdict}", flush=True)
        self.save()

    def save(self) -> None:
        """Write the file."""
        write_json(self.file, {"checks": [asdict(check) for check in self.checks], "facts": self.facts})


class Clock:
    """The time that a section has."""

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.perf_counter()

    def spent(self, need: float = 0.0) -> bool:
        """Whether there is no time for something that takes `need` seconds."""
        return self.left <= need


def read_checks(file: Path) -> list[Check]:
    """The checks that a section has written so far."""
    return [Check(**row) for row in read_json(file)["checks"]] if file.is_file() else []


def wait(device: torch.device) -> None:
    """Until the device has nothing to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def relative(found: Tensor, reference: Tensor) -> float:
    """||found - reference|| / ||reference||, in fp64 on the CPU."""
    found, reference = found.detach().double().cpu(), reference.detach().double().cpu()
    return float((found - reference).norm() / reference.norm().clamp(min=1e-300))


def random_images(device: torch.device, count: int, side: int, batch: int, classes: int = 10) -> MemoryData:
    """Random images of 3 channels in memory, as training, validation, search and test splits."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, side, side), generator=rng, dtype=torch.uint8)
    targets = torch.arange(count) % classes
    names = [str(i) for i in range(classes)]
    common = {"seed": 0, "split_seed": 0, "val_fraction": 0.1, "search_fraction": 0.1}
    settings = Settings(batch_size=batch, eval_batch_size=250, resolution=[side], device=device, **common)  # type: ignore[arg-type]
    return MemoryData(images, targets, name="random", class_names=names, settings=settings, test_fraction=0.1)


@contextmanager
def exact() -> Iterator[None]:
    """Products in plain fp32, not in TF32, which a GPU's convolutions use unless told otherwise."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


@contextmanager
def deterministic() -> Iterator[None]:
    """The same kernels and the same order of sums in every run, as far as there are such kernels."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def one_line(error: BaseException) -> str:
    """An exception as the table shows it."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"
