"""Clocks: how long one forward pass of a ready network takes on a device, and each of its layers inside it.

Calls are timed one by one, in short bursts of one network, the networks taking turns in random order: what slows the
machine for a while hits all of them alike. The first call of a burst is not counted, so that a network's weights are
where they would be if it ran alone.
"""

from __future__ import annotations

import copy
import gc
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from supernet.calibrate import calibrate
from supernet.errors import UserError
from supernet.runs import environment

if TYPE_CHECKING:
    import numpy as np

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
BURST = 4  # calls of one network in a row; the first is not counted


@dataclass(frozen=True)
class Setting:
    """Under what conditions is measured. `threads` (CPU only) None: as many as PyTorch uses now."""

    device: str = "cpu"
    batch: int = 1
    dtype: str = "float32"
    threads: int | None = None
    memory_format: str = "contiguous"

    def __post_init__(self) -> None:
        """Raises UserError for values that do not exist."""
        for name, known in (("dtype", DTYPES), ("memory_format", FORMATS)):
            if getattr(self, name) not in known:
                raise UserError(f"{name}={getattr(self, name)}: one of {', '.join(known)}")
        if self.batch < 1:
            raise UserError(f"batch={self.batch}: must be at least 1")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"threads={self.threads}: must be at least 1, or null")

    @property
    def cuda(self) -> bool:
        return torch.device(self.device).type == "cuda"

    @staticmethod
    def of(record: Mapping[str, Any]) -> Setting:
        """The setting of a `record`, such as a latency model's `info["conditions"]`."""
        names = ("device", "batch", "dtype", "threads", "memory_format")
        return Setting(**{name: record[name] for name in names})

    def record(self) -> dict[str, Any]:
        """The conditions as plain data, with the device and the software."""
        about = environment()
        facts: dict[str, Any] = {
            "device": self.device,
            "batch": self.batch,
            "dtype": self.dtype,
            "memory_format": self.memory_format,
            "threads": None if self.cuda else self.threads or torch.get_num_threads(),
            "device_name": about["cpu"],
            "torch": torch.__version__,
            "platform": platform.platform(),
        }
        if self.cuda:
            facts["device_name"] = torch.cuda.get_device_name(torch.device(self.device))
            facts |= {"cuda": torch.version.cuda, "driver": _driver(), "cudnn": torch.backends.cudnn.version()}
            facts["cudnn_benchmark"] = False
        return facts


class Timing(NamedTuple):
    """Milliseconds of one call: the median, the distance between the quartiles, and every single time."""

    median: float
    iqr: float
    raw: tuple[float, ...]


@contextmanager
def conditions(setting: Setting) -> Iterator[None]:
    """Everything is run in here. Threads, cuDNN's flags and the garbage collector are put back afterwards."""
    threads, collects = torch.get_num_threads(), gc.isenabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        if setting.threads is not None:
            torch.set_num_threads(setting.threads)
        torch.backends.cudnn.benchmark = False  # its choice of kernels would differ from run to run
        gc.disable()
        own = torch.cuda.device(setting.device) if setting.cuda else nullcontext()  # events belong to a device
        with own, torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark
        if collects:
            gc.enable()


class Ready:
    """A network in eval mode on the device, with a fixed input that it has run on."""

    def __init__(self, network: nn.Module, shape: Sequence[int], setting: Setting, calibrated: bool = False) -> None:
        """`shape` [C, S, S] of one image. Without `calibrated`, batch norms get the statistics of the input first."""
        self.setting = setting
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(max(setting.batch, 2), *shape, generator=generator)  # a variance needs two values
        device, memory = torch.device(setting.device), FORMATS[setting.memory_format]
        images = images.to(device).contiguous(memory_format=memory)
        network = network.to(device=device)
        network.to(memory_format=memory)
        if not calibrated:
            calibrate(network, [images])  # with arbitrary ones the activations could vanish into slow denormals
        self.network = network.to(DTYPES[setting.dtype]).eval()
        self.images = images[: setting.batch].to(DTYPES[setting.dtype])

    def __call__(self) -> Tensor:
        output: Tensor = self.network(self.images)
        return output

    def warm_up(self, calls: int, seconds: float = 0.0) -> None:
        """Run without timing, so many calls and so long; leaves nothing pending on the device."""
        start, count = time.perf_counter(), 0
        while count < calls or time.perf_counter() - start < seconds:
            self()
            count += 1
            _finish(self.setting)


def interleaved(subjects: Sequence[Ready], rounds: int, rng: np.random.Generator) -> list[list[float]]:
    """Milliseconds of single calls, a list for each subject: `rounds` bursts, in a new random order each round."""
    times: list[list[float]] = [[] for _ in subjects]
    for _ in range(rounds):
        for position in rng.permutation(len(subjects)):
            times[position] += _burst(subjects[position])
    return times


def layer_times(subject: Ready, names: Sequence[str], calls: int) -> dict[str, float]:
    """Median milliseconds of the submodules `names` inside the network's own forward pass.

    Each is timed where it runs: its input just written by the layer before, its weights as cold as they are there.
    """
    import numpy as np

    marks: dict[str, list[tuple[Any, Any]]] = {name: [] for name in names}
    begun: dict[str, Any] = {}
    now = _event if subject.setting.cuda else time.perf_counter

    def before(name: str) -> Callable[..., None]:
        def note(*_: Any) -> None:
            begun[name] = now()

        return note

    def after(name: str) -> Callable[..., None]:
        def note(*_: Any) -> None:
            marks[name].append((begun[name], now()))

        return note

    hooks = []
    for name in names:
        module = subject.network.get_submodule(name)
        hooks += [module.register_forward_pre_hook(before(name)), module.register_forward_hook(after(name))]
    try:
        for _ in range(calls + 1):
            subject()
        _finish(subject.setting)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: float(np.median([_between(*pair) for pair in marks[name][1:]])) for name in names}


def summary(raw: Sequence[float]) -> Timing:
    """Median and interquartile range of single times."""
    import numpy as np

    low, middle, high = np.percentile(raw, [25, 50, 75]).tolist()
    return Timing(middle, high - low, tuple(raw))


def measure_subnet(
    subnet: nn.Module, resolution: int, setting: Setting, channels: int = 3, min_calls: int = 30
) -> tuple[float, float]:
    """(median, interquartile range) in ms of a subnet's forward pass, end to end, alone on the device.

    A copy of it is measured, in eval mode and with the statistics that it holds, on inputs of `resolution` px.
    """
    with conditions(setting):
        ready = Ready(copy.deepcopy(subnet), (channels, resolution, resolution), setting, calibrated=True)
        ready.warm_up(10)
        raw: list[float] = []
        while len(raw) < min_calls or sum(raw) < 500:  # half a second at least: a millisecond net needs more calls
            raw += _burst(ready)
    timing = summary(raw)
    return timing.median, timing.iqr


def _burst(subject: Ready) -> list[float]:
    """Milliseconds of the calls of one burst."""
    pairs: list[tuple[Any, Any]] = []
    for _ in range(BURST):
        if subject.setting.cuda:
            begin = _event()
            subject()
            pairs.append((begin, _event()))
        else:
            start = time.perf_counter()
            subject()
            pairs.append((start, time.perf_counter()))
    _finish(subject.setting)
    return [_between(*pair) for pair in pairs[1:]]


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(begin: Any, end: Any) -> float:
    return (end - begin) * 1e3 if isinstance(begin, float) else float(begin.elapsed_time(end))


def _finish(setting: Setting) -> None:
    if setting.cuda:
        torch.cuda.synchronize(torch.device(setting.device))


def _driver() -> str | None:
    """The version of NVIDIA's driver, where its tool tells it."""
    import subprocess

    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip()
