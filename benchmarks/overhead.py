"""What the methods add to the time of a training step.

    python -m benchmarks.overhead [--rounds 30] [--only mbv3_tiny|alphanet] [--threads 1] [--device cpu] [--json <file>]

Steps of the sandwich rule on `mbv3_tiny` (28 px, batch 64) and `alphanet` (192 px, batch 16), on random images: plain;
with path importance; with data importance; with both; with the adaptive alpha-divergence instead of the soft
cross-entropy. A round times one step of every arm, on the same batch, with the same network and the same subnets (path
importance draws its own, but then trains those of the plain arm), in another order each time. Prints the median over
rounds of the ratio to the plain step of the same round, with a 95% bootstrap interval of that median. What a new epoch
costs (the order of its images, the probabilities of its subnets) is timed apart and added in shares of a step, for an
epoch of 50,000 images. Times are wall-clock, on a GPU with the work waited for; on a CPU with one thread they are the
process's own CPU time, which other programs on the machine disturb less. Exits with 1 where both samplers add more
than 5%, or the loss more than 1%.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import arms
from supernet.build import make_space, pick_device
from supernet.data.base import Batch, Data, DataInfo
from supernet.describe import rehearsal
from supernet.net import Supernet
from supernet.paths.base import LossOf, WatchesGradients
from supernet.paths.base import Path as Subnet
from supernet.paths.importance import Importance
from supernet.paths.uniform import Uniform
from supernet.runs import environment, write_json
from supernet.space import Arch
from supernet.trainer import Trainer

IMAGES = 50_000  # in an epoch
BASELINE = "plain"
ARMS: Mapping[str, tuple[str, ...]] = {
    BASELINE: (),
    "path importance": ("path_sampler=importance",),
    "data importance": ("data_sampler=importance",),
    "path and data": ("path_sampler=importance", "data_sampler=importance"),
    "alpha": ("distill=alpha",),
}
LIMITS = {"path and data": 1.05, "alpha": 1.01}
SPACES = {"mbv3_tiny": (28, 64, 10), "alphanet": (192, 16, 1000)}  # px, batch size, classes
WARM_UP = 3


@dataclass(frozen=True)
class RandomData:
    """A `Data` of random images that offers what a trainer asks for, and any number of batches."""

    side: int
    batch_size: int
    classes: int
    device: torch.device

    @property
    def info(self) -> DataInfo:
        names = tuple(str(i) for i in range(self.classes))
        return DataInfo("random", self.classes, names, 3, self.side, (0.5,) * 3, (0.5,) * 3, (self.side,))

    @property
    def sizes(self) -> dict[str, int]:
        return {"train": IMAGES, "val": 1, "search": 1, "test": 1}

    def steps_per_epoch(self) -> int:
        return IMAGES // self.batch_size

    def split_record(self) -> dict[str, Any]:
        return {}

    def batches(self) -> Iterator[Batch]:
        """Endless, the same in every run."""
        rng = torch.Generator().manual_seed(0)
        while True:
            images = torch.randn(self.batch_size, 3, self.side, self.side, generator=rng)
            targets = torch.randint(self.classes, (self.batch_size,), generator=rng)
            index = torch.randint(IMAGES, (self.batch_size,), generator=rng)
            yield Batch(*(tensor.to(self.device) for tensor in (images, targets, index)))


class SameSubnets:
    """Path importance with all of its costs, that trains the subnets of uniform sampling."""

    def __init__(self, learner: Importance, uniform: Uniform) -> None:
        self.learner, self.uniform = learner, uniform

    def draw(self, step: int, count: int, loss_of: LossOf) -> list[Subnet]:
        self.learner.draw(step, count, loss_of)
        return self.uniform.draw(step, count, loss_of)

    def attach(self, weights: Mapping[str, Tensor]) -> None:
        self.learner.attach(weights)

    def wants(self, step: int) -> bool:
        return self.learner.wants(step)

    def observe(self, step: int, arch: Arch, gradients: Mapping[str, Tensor]) -> None:
        self.learner.observe(step, arch, gradients)


def trainers(name: str, data: RandomData, device: torch.device) -> dict[str, Trainer]:
    """One trainer for each arm, all of one network."""
    shared = (f"space={name}", f"space.resolution=[{data.side}]", f"train.batch_size={data.batch_size}")
    base = arms.composed(shared)
    space = make_space(base["space"], data.classes, 3)
    net = Supernet(space).to(device)
    made: dict[str, Trainer] = {}
    for arm, overrides in ARMS.items():
        config = arms.composed((*shared, *overrides, "train.log_every=1000000", f"device={device}"))
        trainer = rehearsal(config, net, cast(Data, data))
        learner = trainer.course.path_sampler
        if isinstance(learner, Importance):
            uniform = Uniform(space, trainer.seed, learner.horizon)
            trainer.course.path_sampler = SameSubnets(learner, uniform)
            assert isinstance(trainer.course.path_sampler, WatchesGradients)  # or it would learn nothing
        made[arm] = trainer
    net.train()
    return made


def measure(made: Mapping[str, Trainer], data: RandomData, rounds: int) -> dict[str, np.ndarray]:
    """Seconds of a step, [rounds] for each arm; rounds of the same number belong together."""
    seconds: dict[str, list[float]] = {arm: [] for arm in made}
    names = list(made)
    for number, batch in zip(range(WARM_UP + rounds), data.batches(), strict=False):
        for arm in np.random.default_rng(number).permutation(names).tolist():
            found = _seconds(lambda arm=arm, batch=batch: made[arm].train_step(batch), data.device)
            if number >= WARM_UP:
                seconds[arm].append(found)
    return {arm: np.array(values) for arm, values in seconds.items()}


def new_epoch(trainer: Trainer, data: RandomData, repeats: int = 5) -> float:
    """Median seconds that the beginning of an epoch costs: which images, and which subnets are likely."""
    course, steps = trainer.course, data.steps_per_epoch()
    draws = []
    for epoch in range(1, 1 + repeats):
        images = _seconds(lambda epoch=epoch: course.visits(epoch), data.device)
        first, second = (
            _seconds(lambda step=step: course.path_sampler.draw(step, 2, _no_loss), data.device)
            for step in (epoch * steps, epoch * steps + 1)
        )
        draws.append(images + max(0.0, first - second))
    return median(draws)


def _no_loss(arch: Arch) -> Tensor:
    raise AssertionError("no sampler here compares candidates")


def _seconds(call: Any, device: torch.device) -> float:
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = clock()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - begin


def median_interval(values: np.ndarray, samples: int = 2000) -> tuple[float, float, float]:
    """Median with a 95% bootstrap interval."""
    drawn = np.random.default_rng(0).choice(values, (samples, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


def compare(name: str, rounds: int, device: torch.device) -> dict[str, dict[str, float]]:
    """The figures of every arm on one space."""
    side, batch_size, classes = SPACES[name]
    data = RandomData(side, batch_size, classes, device)
    made = trainers(name, data, device)
    seconds = measure(made, data, rounds)
    plain = seconds[BASELINE]
    begin = new_epoch(made[BASELINE], data)
    facts = {}
    for arm, values in seconds.items():
        epoch = (new_epoch(made[arm], data) - begin) / data.steps_per_epoch() / float(np.median(plain))
        ratio, low, high = (value + epoch for value in median_interval(values / plain))
        facts[arm] = {"ms": 1e3 * float(np.median(values)), "ratio": ratio, "low": low, "high": high, "epoch": epoch}
    return facts


def main() -> int:
    """The exit code: 0 where all ratios are inside their limits."""
    options = _options()
    arms.use_threads(options.threads)
    device, console = (
        pick_device(options.device),
        Console(highlight=False, width=None if Console().is_terminal else 120),
    )
    found = {name: compare(name, options.rounds, device) for name in SPACES if options.only in ("", name)}
    for name, facts in found.items():
        title = f"{name}, {SPACES[name][0]} px, batch {SPACES[name][1]}, {device}"
        drawn = Table("arm", "step, ms", "ratio", "95% interval", "of it, new epochs", "limit", title=title)
        for arm, row in facts.items():
            limit = f"{LIMITS[arm]:.2f}" if arm in LIMITS else ""
            ends = (f"[{row['low']:.4f}, {row['high']:.4f}]", f"{row['epoch']:.4f}", limit)
            drawn.add_row(arm, f"{row['ms']:.2f}", f"{row['ratio']:.4f}", *(end.replace("[", r"\[") for end in ends))
        console.print(drawn)
    if options.json:
        write_json(options.json, {"environment": environment(), "rounds": options.rounds, "spaces": found})
    return 0 if inside(list(found.values())) else 1


def inside(found: Sequence[Mapping[str, Mapping[str, float]]]) -> bool:
    """Whether every ratio that has a limit is below it."""
    return all(facts[arm]["ratio"] <= limit for facts in found for arm, limit in LIMITS.items())


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser("python -m benchmarks.overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", choices=tuple(SPACES), default="")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the figures, with machine and versions")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
