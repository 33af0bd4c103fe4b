"""A training step never waits for a GPU: nothing that would be on one is read by the host, or copied to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import tiny_config
from torch import Tensor

from benchmarks.gpu_syncs import METHODS, QUIET, PretendDevice, unexpected, watched
from supernet.build import make_data
from supernet.describe import rehearsal
from supernet.meter import LossMeter
from supernet.setup import make_net, with_defaults
from supernet.trainer import Trainer

FIRST = 9  # the second step of the third epoch: every method has learned something, and DepS trains children
CPU = torch.device("cpu")


def trainer_of(folder: Path, *overrides: str) -> Trainer:
    config = with_defaults(tiny_config(folder, *QUIET, *overrides))
    data = make_data(config, CPU)
    trainer = rehearsal(config, make_net(config, data, CPU), data)
    trainer.net.train()
    assert trainer.steps_per_epoch == 4
    return trainer


def waits_of(trainer: Trainer, first: int = FIRST) -> list[str]:
    """What step `first` waits for."""
    batches = trainer._batches()
    while trainer.step < first:
        trainer.train_step(next(batches))
    batch = next(batches)
    with watched(trainer, *batch) as found:
        trainer.train_step(batch)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_training_step_waits_for_nothing(method: str, tmp_path: Path) -> None:
    one_bin = ("path_sampler.bin_width=1e9",) if method == "attentive" else ()  # so that there is always a choice
    waits = waits_of(trainer_of(tmp_path, *METHODS[method], *one_bin))
    assert unexpected(waits) == []
    # The losses of the candidates of a step are read together.
    assert len(waits) == (1 if method == "attentive" else 0)


def test_watching_a_step_waits_when_it_is_read_only(tmp_path: Path) -> None:
    """The health meter looks at gradients on the device; `read` alone waits, once for all its figures."""
    trainer = trainer_of(tmp_path, "train.health_every=1")
    waits = waits_of(trainer)
    assert len(waits) == 1
    assert waits[0].startswith("supernet/meter.py")


def test_path_importance_waits_once_an_epoch(tmp_path: Path) -> None:
    waits = waits_of(trainer_of(tmp_path, "path_sampler=importance"), first=8)
    assert len(waits) == 1
    assert waits[0].startswith("supernet/paths/importance.py")


def test_a_read_in_the_loop_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def add(meter: LossMeter, slots: Sequence[object], losses: Sequence[Tensor]) -> None:
        assert losses[0].item() > 0

    monkeypatch.setattr(LossMeter, "add", add)
    waits = waits_of(trainer_of(tmp_path), first=1)
    assert len(waits) >= 1
    assert waits[0].startswith("tests/test_no_sync.py")


WAITING: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x[0].item(),
    "float": lambda x: float(x.sum()),
    "if": lambda x: bool((x > 0).all()),
    "tolist": lambda x: (x * 2).tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    'to("cpu")': lambda x: x.to("cpu"),
    "nonzero": lambda x: x.nonzero(),
    "where of one argument": lambda x: torch.where(x > 0),
    "a mask": lambda x: x[x > 0],
    "assignment by a mask": lambda x: x.clone().index_put_((x > 0,), torch.zeros((), dtype=x.dtype)),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x + 1),
    "copy to the host": lambda x: torch.empty(4).copy_(x),
    "tensors of both sorts": lambda x: x + torch.ones(4),
    "an index on the host": lambda x: x[torch.tensor([0, 1])],
    "in the backward pass": lambda x: _hooked(x),
}


def _hooked(x: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    leaf.register_hook(lambda gradient: print(gradient[0].item()))
    (leaf * 2).sum().backward()


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_is_found(name: str) -> None:
    x = torch.arange(4.0)
    with PretendDevice([x]) as device:
        WAITING[name](x)
        assert device.waits


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x[torch.arange(2, device=x.device)],
        lambda x: torch.where(x > 0, x, 0.0),
        lambda x: x.to(torch.float64) * torch.tensor(2.0, dtype=torch.float64),
        lambda x: x + torch.ones(4).to(x.device),
        lambda x: x * torch.rand(()).item(),  # drawn by the host, for the host
        lambda x: torch.arange(3).tolist(),
        lambda x: x.copy_(torch.ones(4)),
        lambda x: torch.nn.functional.one_hot(x.long(), 4),
        lambda x: x.softmax(0).sort().values.cumsum(0),
    ],
)
def test_what_does_not_wait_is_not_found(call: Callable[[Tensor], Any]) -> None:
    x = torch.arange(4.0)
    with PretendDevice([x]) as device:
        call(x)
        assert device.waits == []
