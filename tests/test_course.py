"""The parts of a run that choose subnets and images, put together: phases, what is learned, who looks at gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from test_step import batch, divergence, each_loss
from tiny import tiny_space
from torch import Tensor

from supernet.course import Course
from supernet.data_samplers.base import Visits
from supernet.horizon import Horizon
from supernet.init import initialise
from supernet.net import Supernet
from supernet.observers import ImageScores
from supernet.optim import zero_gradients
from supernet.paths.base import LossOf, Path
from supernet.phases.base import Phase, Single
from supernet.samplers.base import Slot
from supernet.schedule import Cosine
from supernet.space import Arch
from supernet.step import accumulate

SPACE = tiny_space()
HORIZON = Horizon(steps_per_epoch=2, total_steps=8)
CONFIG: dict[str, Any] = {
    "seed": 3,
    "sampler": {"_target_": "supernet.samplers.sandwich.Sandwich", "num_random": 2},
    "path_sampler": {"_target_": "supernet.paths.uniform.Uniform"},
    "data_sampler": {"_target_": "supernet.data_samplers.shuffle.Shuffle"},
    "schedule": {"_target_": "supernet.schedule.Cosine", "warmup_epochs": 1},
    "phases": {"_target_": "supernet.phases.base.Single"},
}


class TwoHalves(Single):
    """Half a run with the narrowest stages only and three random subnets a step, then everything."""

    def phase(self, step: int) -> Phase:
        if not hasattr(self, "halves"):
            narrow = self._phase.space.narrow({"depth": [1], "expand": [3]})
            self.halves = (
                Phase("narrow", 0, narrow, num_random=3),
                Phase("wide", 4, self._phase.space),
            )
        return self.halves[step >= 4]

    def slots(self, step: int, slots: list[Slot]) -> list[Slot]:
        return [replace(slot, weight=0.5) if slot.role == "smallest" else slot for slot in slots]


class Learner:
    """A path and a data sampler that write down what they are shown."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, Arch, dict[str, Tensor]]] = []
        self.images: list[tuple[Tensor, Tensor]] = []

    def draw(self, step: int, count: int, loss_of: LossOf) -> list[Path]:
        rng = np.random.default_rng(step)
        self.losses = [float(loss_of(arch)) for arch in SPACE.sample(rng, count)]
        return [Path(arch, weight=1.0 + i) for i, arch in enumerate(SPACE.sample(rng, count))]

    def attach(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights

    def wants(self, step: int) -> bool:
        return step % 2 == 1

    def observe(self, *seen: Any) -> None:
        if len(seen) == 2:
            self.images.append(seen)  # type: ignore[arg-type]
        else:
            step, arch, gradients = seen
            self.seen.append((step, arch, {name: g.clone() for name, g in gradients.items()}))

    def visits(self, epoch: int) -> Visits:
        return Visits(torch.arange(4))

    def state_dict(self) -> dict[str, Any]:
        return {"count": len(self.seen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.loaded = state["count"]

    def report(self) -> dict[str, float]:
        return {"entropy": 0.5}


def course(**parts: Any) -> Course:
    net = Supernet(SPACE)
    initialise(net, 0, "torch", "none")
    return Course({**CONFIG, **parts}, net, num_images=40, horizon=HORIZON)


def no_loss(arch: Arch) -> Tensor:
    raise AssertionError("not asked for")


def test_phases_narrow_the_space_and_their_subnets_belong_to_the_whole_one() -> None:
    made = course()
    made.phases = TwoHalves(SPACE, HORIZON, Cosine())
    made._make(made.phases.phase(0))
    for step in range(8):
        slots = made.slots(step, no_loss)
        assert [s.role for s in slots] == ["largest", *["random"] * (3 if step < 4 else 2), "smallest"]
        assert slots[-1].weight == 0.5
        for slot in slots:
            assert SPACE.decode(SPACE.encode(slot.arch)) == slot.arch
        if step < 4:
            assert all(set(s.arch["depth"]) == {1} and {s.arch["expand"][1]} <= {3} for s in slots)
    assert slots[0].arch == SPACE.largest()


def test_only_random_slots_of_wanted_steps_are_shown_and_their_weight_is_taken_out() -> None:
    net = Supernet(SPACE)
    initialise(net, 0, "torch", "none")
    made, learner = Course(CONFIG, net, num_images=40, horizon=HORIZON), Learner()
    made.path_sampler, made.data_sampler = learner, learner
    zero_gradients(net)
    images, targets = batch()
    for step in range(2):
        scores = ImageScores()
        slots = made.slots(step, lambda arch: torch.tensor(1.5))
        watching = made.observers(step, scores)
        accumulate(net, images.float(), targets, slots, each_loss, divergence, observers=watching)
        made.learn_images(torch.arange(6), scores)
        if step == 0:
            assert not learner.seen
            zero_gradients(net)
    assert learner.losses == [1.5, 1.5]
    assert [(step, arch) for step, arch, _ in learner.seen] == [(1, s.arch) for s in slots if s.role == "random"]
    assert len(learner.images) == 2
    heavy = slots[2]
    assert heavy.weight == 2.0
    net.zero_grad()
    with torch.no_grad():
        teacher = net(images.float(), slots[0].arch)
    x = torch.nn.functional.interpolate(images.float(), size=SPACE.resolution(heavy.arch), mode="bicubic")
    logits = net(images.float() if x.shape[-1] == images.shape[-1] else x, heavy.arch)
    divergence(logits, teacher, targets).mean().backward()
    for name, parameter in net.net.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(learner.seen[1][2][name], parameter.grad, rtol=1e-3, atol=1e-6), name


def test_state_and_report_of_the_parts_that_learn() -> None:
    made, learner = course(), Learner()
    assert made.state_dict() == {}
    assert made.report() == {}
    made.path_sampler = learner
    assert made.state_dict() == {"path_sampler": {"count": 0}}
    assert made.report() == {"paths/entropy": 0.5}
    made.load_state_dict(3, {"path_sampler": {"count": 7}})
    assert learner.loaded == 7


def test_what_a_path_sampler_learned_outlives_a_phase_of_the_same_space() -> None:
    made, learner = course(), Learner()
    made.path_sampler = learner
    made._enter(Phase("later", 4, SPACE, num_random=1))
    assert made.path_sampler is learner
    assert len(made.slots(0, lambda arch: torch.zeros(()))) == 4  # back in the only phase there is
    made._enter(Phase("narrow", 4, SPACE.narrow({"depth": [1]})))
    assert made.path_sampler is not learner


def test_nothing_is_drawn_while_only_the_largest_is_trained() -> None:
    made = course()

    class Alone(Single):
        def phase(self, step: int) -> Phase:
            return ALONE

    made.phases = Alone(SPACE, HORIZON, Cosine())
    made._make(ALONE)
    made.path_sampler = Learner()
    assert made.slots(0, no_loss) == [Slot(SPACE.largest(), "largest")]


ALONE = Phase("full", 0, SPACE, largest_only=True)


def test_without_phases_the_rate_is_the_schedules() -> None:
    schedule = Cosine(warmup_epochs=1)
    assert [course().lr(step) for step in range(8)] == [schedule(step, 2, 8) for step in range(8)]
    assert torch.equal(course().visits(2).order.sort().values, torch.arange(40))
