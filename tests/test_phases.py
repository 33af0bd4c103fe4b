"""Courses of phases as parts of a run: all of them, from their configuration files and through the trainer."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nets import CONFIGS, net_of, space_of
from tiny_run import assert_same_training, only_run, state_of, tiny_config

from supernet import trainer
from supernet.construct import construct
from supernet.course import Course
from supernet.horizon import Horizon
from supernet.job import main
from supernet.phases.base import Phase, Phases, Single
from supernet.samplers.base import Slot
from supernet.schedule import Cosine

FILES = sorted(path.stem for path in (CONFIGS / "phases").glob("*.yaml"))
HORIZON = Horizon(steps_per_epoch=7, total_steps=140)
SPACE = space_of("mbv3_tiny")


def made(name: str) -> Phases:
    config = yaml.safe_load((CONFIGS / "phases" / f"{name}.yaml").read_text())
    phases: Phases = construct(config, "phases", space=SPACE, horizon=HORIZON, schedule=Cosine(warmup_epochs=1))
    return phases


def test_one_phase_changes_nothing() -> None:
    single = Single(SPACE, HORIZON, Cosine(warmup_epochs=1))
    slots = [Slot(SPACE.smallest(), "smallest", 0.5)]
    assert single.phase(0) is single.phase(139)
    assert single.phase(0) == Phase("all", 0, SPACE)
    assert single.slots(3, slots) is slots
    assert [single.lr(step) for step in range(140)] == [Cosine(warmup_epochs=1)(step, 7, 140) for step in range(140)]


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_a_course_of_pure_functions_of_the_step(name: str) -> None:
    phases, again = made(name), made(name)
    slots = [Slot(SPACE.largest(), "largest"), Slot(SPACE.smallest(), "smallest")]
    found: list[Phase] = []
    for step in range(140):
        phase = phases.phase(step)
        if not found or phase is not found[-1]:
            assert phase.start == step
            found.append(phase)
        assert 0 <= phases.lr(step) <= 1
    assert len({id(phase) for phase in found}) == len(found)  # none comes back
    for step in (139, 3, 80, 0):  # in any order, as after a restart
        assert again.lr(step) == phases.lr(step)
        assert again.phase(step).start == phases.phase(step).start
        assert again.slots(step, slots) == phases.slots(step, slots)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("sampler", ["sandwich", "uniform"])
def test_every_pair_with_a_sampler_gives_subnets_of_the_whole_space(name: str, sampler: str) -> None:
    groups = {"sampler": sampler, "path_sampler": "uniform", "data_sampler": "shuffle", "schedule": "cosine"}
    files = {group: CONFIGS / group / f"{file}.yaml" for group, file in {**groups, "phases": name}.items()}
    config: dict[str, Any] = {group: yaml.safe_load(file.read_text()) for group, file in files.items()}
    net = net_of("mbv3_tiny")
    course = Course({**config, "seed": 0}, net, 16, HORIZON)
    counts = set()
    for step in range(0, 140, 3):
        slots = course.slots(step, lambda arch: torch.zeros(()))
        counts.add(len(slots))
        assert slots
        assert all(slot.role != "largest" for slot in slots[1:])
        for slot in slots:
            assert net.space.decode(net.space.encode(slot.arch)) == slot.arch
    expected = {
        ("single", "sandwich"): {4},
        ("single", "uniform"): {1},
        ("deps", "sandwich"): {1, 4},
        ("deps", "uniform"): {1, 2},
        ("progressive", "sandwich"): {3, 4, 6},
        ("progressive", "uniform"): {1, 2, 4},
    }
    assert counts == expected[name, sampler]


# Through the trainer ---------------------------------------------------------------------------------------------

STAGES = (
    "{name: full, epochs: 1, others: largest, num_random: 1},"
    "{name: depth, epochs: 1, options: {depth: all}, others: largest, keep_teacher: true, lr: 0.5, sort_channels: 0},"
    "{name: all, epochs: 1, num_random: 2}"
)
RUNS = {
    "deps": ("phases=deps", "phases.delay=0.6", "phases.ramp=0.3", "phases.sort_channels=true", "train.ema_decay=0.9"),
    "progressive": (
        "phases=progressive",
        f"phases.stages=[{STAGES}]",
        "sampler=uniform",
        "distill=ofa",
        "train.ema_decay=0.9",
    ),
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, because layers this small only lose by sharing their work, and no plot."""
    monkeypatch.setattr(trainer, "curves", lambda metrics, path: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("name", "stops"), [("deps", [3]), ("progressive", [4, 6])])
def test_a_resumed_course_is_the_uninterrupted_one(
    name: str, stops: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 steps; stopped in the last step before a phase (its sorting and its teacher come after), and inside one."""
    main(tiny_config(tmp_path / "whole", *RUNS[name]))
    take_step = trainer.Trainer.train_step
    for at in stops:

        def interrupted(self: trainer.Trainer, batch: Any, at: int = at) -> Any:
            if self.step == at - 1:
                os.kill(os.getpid(), signal.SIGINT)
            return take_step(self, batch)

        folder = tmp_path / f"stopped-{at}"
        with monkeypatch.context() as patch:
            patch.setattr(trainer.Trainer, "train_step", interrupted)
            with pytest.raises(KeyboardInterrupt):
                main(tiny_config(folder, *RUNS[name]))
        run = only_run(folder)
        assert state_of(run)["step"] == at
        main(tiny_config(folder, f"resume={run}"))
        assert_same_training(run, only_run(tmp_path / "whole"))
