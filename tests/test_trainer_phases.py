"""What the trainer does for its parts: the start of a phase, image weights, lists that are kept."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_trainer_steps import small_trainer
from tiny_run import only_run, tiny_config

from supernet.build import make_space
from supernet.data_samplers.base import Visits
from supernet.errors import UserError
from supernet.job import main
from supernet.phases.base import Phase
from supernet.runs import read_json
from supernet.trainer import Trainer

PLAIN = (
    "sampler=largest",
    "optim.weight_decay=0",
    "optim.momentum=0",
    "optim.nesterov=false",
    "train.label_smoothing=0",
)


def momentum(trainer: Trainer) -> list[torch.Tensor]:
    return [state["momentum_buffer"].clone() for state in trainer.optimizer.state.values()]


def test_a_phase_begins_once_and_before_its_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, batches = small_trainer(tmp_path, "phases=deps", "phases.delay=0.25", "phases.ramp=0")
    entered: list[tuple[int, str]] = []
    monkeypatch.setattr(Trainer, "_enter", lambda self, phase: entered.append((self.step, phase.name)))
    for batch in [*batches, *batches]:
        made.train_step(batch)
    assert entered == [(3, "shrinking")]


def test_delayed_shrinking_keeps_the_momentum_of_the_full_network(tmp_path: Path) -> None:
    made, batches = small_trainer(tmp_path, "phases=deps", "phases.delay=0.25", "phases.ramp=0")
    for batch in batches[:3]:
        made.train_step(batch)
    before = momentum(made)
    made._enter(made.course.phases.phase(3))
    assert all(torch.equal(one, other) for one, other in zip(momentum(made), before, strict=True))
    assert any(buffer.any() for buffer in before)


def test_a_phase_can_forget_momentum_keep_a_teacher_and_sort(tmp_path: Path) -> None:
    made, batches = small_trainer(tmp_path, "train.zero_gamma=none", "train.ema_decay=0.5")
    made.train_step(batches[0])
    space, largest = made.net.space, made.net.space.largest()
    x = torch.randn(4, 1, 8, 8, dtype=torch.double)
    before, averaged = made.net(x, largest), made.scored_net(x, largest)
    block = made.net.net.get_submodule("stages.0.1")
    made._enter(Phase("sorted", 1, space, sort_channels=0, keep_teacher=True))
    importance = block.project.conv.weight.abs().sum((0, 2, 3))  # type: ignore[union-attr]
    assert (importance.diff() <= 0).all()
    torch.testing.assert_close(made.net(x, largest), before)
    torch.testing.assert_close(made.scored_net(x, largest), averaged)
    assert made.optimizer.state
    assert made.teacher is not None
    torch.testing.assert_close(made.teacher(x), before)
    made.train_step(batches[1])
    assert made.teacher(x).sub(before).abs().max() < 1e-9, "the teacher stays as it was"
    assert made.net(x, largest).sub(before).abs().max() > 1e-4
    made._enter(Phase("fresh", 2, space, fresh_optimizer=True))
    assert not made.optimizer.state


def test_the_weights_of_images_reach_the_loss(tmp_path: Path) -> None:
    """A step whose image weights are known, against the same by hand."""
    made, batches = small_trainer(tmp_path, *PLAIN)
    net, batch = copy.deepcopy(made.net), batches[0]
    weights = torch.rand(made.data.sizes["train"], generator=torch.Generator().manual_seed(0), dtype=torch.double) * 3
    made.weights = weights
    made.train_step(batch)
    logits = net(batch.images, net.space.largest())
    loss = (F.cross_entropy(logits, batch.targets, reduction="none") * weights[batch.index]).mean()
    gradients = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True, materialize_grads=True)
    for parameter, start, gradient in zip(made.net.parameters(), net.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter, start - made._lr(0) * gradient, rtol=1e-7, atol=1e-10)


def test_the_weights_and_the_order_of_an_epoch_are_the_data_samplers(tmp_path: Path) -> None:
    made, _ = small_trainer(tmp_path)
    count = made.data.sizes["train"]
    order = torch.arange(count).flip(0)

    class Backwards:
        def visits(self, epoch: int) -> Visits:
            return Visits(order, torch.full((count,), 1.0 + epoch))

    made.course.data_sampler = Backwards()
    first = next(made._batches())
    assert torch.equal(first.index, order[: len(first.index)])
    assert made.weights is not None
    assert (made.weights == 1).all()
    made.step = made.steps_per_epoch
    next(made._batches())
    assert (made.weights == 2).all()


def test_a_listed_run_keeps_its_list(tmp_path: Path) -> None:
    """What is resumed is what was begun, whatever became of the file."""
    config = tiny_config(tmp_path, "path_sampler=listed", "train.epochs=1", "train.test=false")
    space = make_space(config["space"], 10, 1)
    file = tmp_path / "archs.json"
    file.write_text(json.dumps([space.largest().to_json(), space.smallest().to_json()]))
    config["path_sampler"]["archs"] = str(file)
    main(config)
    stored = read_json(only_run(tmp_path) / "config.json")
    assert stored["path_sampler"]["archs"] == [space.largest().to_json(), space.smallest().to_json()]


def test_an_unfair_number_of_subnets_is_refused_before_there_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sampler\.num_random=\d+"):
        main(tiny_config(tmp_path, "path_sampler=fair", "sampler.num_random=1"))
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("train/*"))
