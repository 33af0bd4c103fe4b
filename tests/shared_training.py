"""Trainings that one process or several can do, for tests: a few steps in double precision, and what they leave."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny_run import tiny_config
from torch import Tensor

from supernet.build import make_data
from supernet.calibrate import calibrate
from supernet.data import Batch
from supernet.distributed import ALONE, Ranks
from supernet.evaluate import evaluate
from supernet.log import RunLog
from supernet.setup import make_net, with_defaults
from supernet.teacher import largest_of
from supernet.trainer import Trainer

VIT = (
    "space=autoformer_tiny",
    "space.resolution=[8]",
    "space.patch=4",
    "space.embed_dim=[12,20]",
    "space.num_heads=[1,2]",
    "space.mlp_ratio=[1.5,2.0]",
    "space.layer_num=[1,2]",
    "space.head_dim=8",
    "space.super_dim=24",
    "space.super_mlp_ratio=3.0",
    "space.relative_position=1",
)


@dataclass(frozen=True)
class Case:
    """A few steps of some training. Batches of 25 images: no number of processes but 5 divides them."""

    overrides: tuple[str, ...]
    steps: int = 5
    synchronised: bool = True
    taught: bool = False  # by the largest subnet as it was at the start


LEARNING = ("path_sampler=importance", "path_sampler.warmup_epochs=0", "path_sampler.tau=0.5")
CASES = {
    "plain": Case(("train.ema_decay=0.9", "train.mixup=0.3", "train.cutmix=0.3", "train.clip_norm=0.5")),
    "watched": Case(("train.health_every=2", "train.label_smoothing=0.1")),
    "paths": Case((*LEARNING, "sampler=uniform", "sampler.num_random=2")),
    "sandwich of paths": Case((*LEARNING, "path_sampler.update_every=2")),
    "candidates": Case(("path_sampler=attentive", "path_sampler.prior_samples=200")),
    "images": Case(("data_sampler=importance", "data_sampler.mode=unbiased", "data_sampler.tau=0.5")),
    "recomputed": Case(("train.checkpoint_activations=true",)),
    "taught": Case((), taught=True),
    "groups": Case(("sharing=groups",)),
    "transformers": Case((*VIT, "train.micro_batch=4", "train.health_every=3"), synchronised=False),
}


def trained(name: str, folder: Path, ranks: Ranks = ALONE) -> dict[str, Any]:
    """The weights, and what learned, after the steps of a case."""
    case = CASES[name]
    sync = f"train.sync_batch_norm={str(case.synchronised).lower()}"
    # Learning from labels too: a subnet that equals its teacher would have gradients of rounding errors.
    base = ("train.batch_size=25", "train.dropout=0", "train.drop_path=0", "distill=ofa", sync)
    config = with_defaults(tiny_config(folder, *base, *case.overrides))
    data = make_data(config, torch.device("cpu"))
    net = make_net(config, data, torch.device("cpu")).double()
    log, rows = RunLog(folder, quiet=True), list[Any]()
    log.record = lambda kind, step, values: rows.append(dict(values))  # type: ignore[method-assign]
    trainer = Trainer(config, net, data, folder, log, ranks)
    trainer.net.train()
    trainer.shares.begin(trainer.net)
    if case.taught:
        trainer.teacher = largest_of(trainer.net)
        trainer.shares.synchronise(trainer.teacher.network)
    visits = trainer.course.visits(0)
    trainer.weights = visits.weights
    for _, batch in zip(range(case.steps), data.train(0, 0, visits.order, ranks), strict=False):
        trainer.train_step(Batch(batch.images.double(), batch.targets, batch.index))
    return {
        "model": trainer.net.state_dict(),
        "ema": None if trainer.ema is None else trainer.ema.module.state_dict(),
        "optimizer": trainer.optimizer.state_dict()["state"],
        "course": trainer.course.state_dict(),
        # Shares of images are means in single precision.
        "records": [{k: round(v, 6) if "agreement" in k else v for k, v in r.items() if k != "wait"} for r in rows],
    }


def scored(folder: Path, ranks: Ranks = ALONE) -> dict[str, Any]:
    """A subnet's statistics and its scores on all images of a split, in 7 batches for calibration and 5 for scores."""
    config = with_defaults(tiny_config(folder, "data.eval_batch_size=37"))
    data = make_data(config, torch.device("cpu"))
    net = make_net(config, data, torch.device("cpu"))
    arch = net.space.largest()
    subnet = calibrate(net.extract(arch), data.calibration(8, 250), ranks)
    metrics = evaluate(subnet, data.evaluation("val", 8), ranks=ranks)
    return {"statistics": subnet.state_dict(), "top1": metrics.top1, "loss": metrics.loss, "images": metrics.images}


def differences(one: Any, other: Any) -> float:
    """The largest difference of nested numbers and tensors; infinite where their structure differs."""
    if isinstance(one, Tensor):
        if one.shape != other.shape:
            return float("inf")
        unknown = one.isnan() & other.isnan()  # nothing was learned there yet
        gaps = torch.where(unknown, 0.0, (one.double() - other.double()).abs())
        return float(gaps.nan_to_num(nan=float("inf")).max()) if one.numel() else 0.0
    if isinstance(one, dict):
        return _largest(differences(one[k], other[k]) for k in one) if one.keys() == other.keys() else float("inf")
    if isinstance(one, list | tuple):
        return _largest(differences(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, bool | int | float) and one is not None:
        return 0.0 if one == other else abs(one - other)
    return 0.0 if one == other else float("inf")


def _largest(gaps: Iterable[float]) -> float:
    """0 of none; infinite where one is not a number."""
    return max((float("inf") if math.isnan(gap) else gap for gap in gaps), default=0.0)


def as_rank(rank: int, world: int, port: int) -> None:
    """Look like a process that torchrun started. Each group of processes has a port of its own."""
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody uses."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def started(target: Callable[..., None], world: int, *given: Any, seconds: float = 120) -> list[int | None]:
    """Run `target(rank, world, *given)` in new processes; their exit codes, None of one that takes too long."""
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=target, args=(rank, world, *given)) for rank in range(world)]
    for process in processes:
        process.start()
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes
