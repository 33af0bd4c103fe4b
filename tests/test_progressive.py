"""Progressive shrinking: the published course, its learning rates, and settings that do not fit."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import yaml
from nets import CONFIGS, space_of
from tiny import tiny_space

from supernet.construct import construct
from supernet.course import Course
from supernet.errors import UserError
from supernet.horizon import Horizon
from supernet.net import Supernet
from supernet.phases.progressive import ProgressiveShrinking
from supernet.schedule import Cosine, ExponentialTail, Schedule
from supernet.space import Space

CONFIG = yaml.safe_load((CONFIGS / "phases" / "progressive.yaml").read_text())
SPACE = tiny_space()
LENGTHS = [180, 120, 25, 120, 25, 120]
STARTS = [0, 180, 300, 325, 445, 470]
# A course for `tiny_space`: 2, 3 and 5 of ten steps.
STAGES: list[dict[str, Any]] = [
    {"name": "full", "epochs": 2, "others": "largest", "num_random": 1},
    {"name": "depth", "epochs": 3, "options": {"depth": [2, 3]}, "others": "largest", "lr": 0.5, "keep_teacher": True},
    {"name": "all", "epochs": 5, "num_random": 3, "sort_channels": 1, "warmup_epochs": 2, "lr": 0.25},
]


def published(space: Space, steps_per_epoch: int = 10, epochs: int = 590, schedule: Any = None) -> ProgressiveShrinking:
    horizon = Horizon(steps_per_epoch, steps_per_epoch * epochs)
    phases = construct(CONFIG, "phases", space=space, horizon=horizon, schedule=schedule or Cosine())
    assert isinstance(phases, ProgressiveShrinking)
    return phases


def small(total_steps: int = 10, schedule: Schedule | None = None, **changes: Any) -> ProgressiveShrinking:
    stages = [copy.deepcopy(stage) for stage in STAGES]
    stages[1].update(changes)
    return ProgressiveShrinking(SPACE, Horizon(2, total_steps), schedule or Cosine(), stages)


def test_the_published_course() -> None:
    phases = published(space_of("ofa_mbv3"))
    found = [phases.phase(10 * start) for start in STARTS]
    assert [phase.start for phase in found] == [10 * start for start in STARTS]
    assert all(phases.phase(10 * start - 1) is before for start, before in zip(STARTS[1:], found, strict=False))
    expected: list[dict[str, tuple[int, ...]]] = [
        {"kernel": (7,), "depth": (4,), "expand": (6,)},
        {"kernel": (3, 5, 7), "depth": (4,), "expand": (6,)},
        {"kernel": (3, 5, 7), "depth": (3, 4), "expand": (6,)},
        {"kernel": (3, 5, 7), "depth": (2, 3, 4), "expand": (6,)},
        {"kernel": (3, 5, 7), "depth": (2, 3, 4), "expand": (4, 6)},
        {"kernel": (3, 5, 7), "depth": (2, 3, 4), "expand": (3, 4, 6)},
    ]
    for phase, options in zip(found, expected, strict=True):
        for gene in phase.space.genes:
            assert gene.options == options.get(gene.key, tuple(range(128, 225, 4)))
    assert [phase.num_random for phase in found] == [1, 1, 2, 2, 4, 4]
    assert [phase.sort_channels for phase in found] == [None, None, None, None, 0, 1]
    assert [phase.keep_teacher for phase in found] == [False, True, False, False, False, False]
    assert [phase.fresh_optimizer for phase in found] == [False, True, True, True, True, True]


def test_the_published_rates() -> None:
    """Per GPU 3e-2, 2.5e-3 and 7.5e-3, on 32 of them; 2.6 for the full network."""
    phases = published(space_of("ofa_mbv3"))
    factors = [32 * rate / 2.6 for rate in (2.6 / 32, 3e-2, 2.5e-3, 7.5e-3, 2.5e-3, 7.5e-3)]
    for start, length, factor, warm in zip(STARTS, LENGTHS, factors, [0, 5, 0, 5, 0, 5], strict=True):
        for epoch in (0.0, 2.0, 5.0, length / 2, length - 0.1):
            step = round(10 * epoch)
            rising = min(1.0, (step + 1) / (10 * warm)) if warm else 1.0
            cosine = 0.5 * (1 + math.cos(math.pi * step / (10 * length)))
            assert phases.lr(10 * start + step) == pytest.approx(factor * rising * cosine, rel=1e-3)


@pytest.mark.parametrize("schedule", [Cosine(warmup_epochs=2), ExponentialTail(warmup_epochs=2)])
def test_a_run_of_another_length_has_the_same_curve(schedule: Schedule) -> None:
    """At 5 steps for each published epoch or at 10: warm-ups, decay by epoch and stages stretch alike."""
    space = space_of("mbv3_tiny")
    fine, coarse = published(space, 10, 590, schedule), published(space, 59, 50, schedule)
    for step in range(2950):
        assert coarse.phase(step).name == fine.phase(2 * step).name
    for step in (0, 7, 600, 899, 1000, 1499, 1500, 1504, 1530, 1650, 2000, 2949):
        assert coarse.lr(step) == pytest.approx(fine.lr(2 * step), rel=1e-9)
    for step in (910, 1640, 2370):  # a stage's own warm-up counts finished steps: one of 25, or two of 50
        assert coarse.lr(step) == pytest.approx(fine.lr(2 * step + 1), rel=0.01)


def test_inside_a_stage_the_schedule_runs_from_its_start_to_its_end() -> None:
    seen = []

    def spy(step: int, steps_per_epoch: int, total_steps: int) -> float:
        seen.append((step, steps_per_epoch, total_steps))
        return 1.0

    phases = small(schedule=spy)
    rates = [phases.lr(step) for step in range(10)]
    assert [(step, total) for step, _, total in seen] == [
        *((i, 2) for i in range(2)),
        *((i, 3) for i in range(3)),
        *((i, 5) for i in range(5)),
    ]
    assert {epoch for _, epoch, _ in seen} == {1}  # 10 steps for 10 epochs of the course, whatever the data
    assert rates == pytest.approx([1, 1, 0.5, 0.5, 0.5, 0.125, 0.25, 0.25, 0.25, 0.25])


def test_stages_hold_the_ones_before() -> None:
    for name in ("mbv3_tiny", "alphanet"):
        space = space_of(name)
        phases = published(space)
        spaces = [phases.phase(10 * start).space for start in STARTS]
        sizes = [inner.size() for inner in spaces]
        assert sizes == sorted(sizes)
        assert sizes[-1] == space.size()
        sides = len(space.genes[0].options)
        assert sizes[0] == sides  # nothing but the resolution
        for inner, outer in pairwise(spaces):
            for one, other in zip(inner.genes, outer.genes, strict=True):
                assert set(one.options) <= set(other.options)


def test_the_course_of_a_run_draws_from_the_stage_for_the_whole_space() -> None:
    net = Supernet(SPACE)
    config = {
        "seed": 0,
        "sampler": {"_target_": "supernet.samplers.uniform.Uniform", "num_random": 2},
        "path_sampler": {"_target_": "supernet.paths.uniform.Uniform"},
        "data_sampler": {"_target_": "supernet.data_samplers.shuffle.Shuffle"},
        "schedule": {"_target_": "supernet.schedule.Cosine"},
        "phases": {"_target_": "supernet.phases.progressive.ProgressiveShrinking", "stages": STAGES},
    }
    course = Course(config, net, 8, Horizon(2, 100))

    def never(arch: Any) -> Any:
        raise AssertionError("uniform sampling needs no losses")

    largest, names, drawn = SPACE.largest().to_json(), [], set()
    for step in range(100):
        slots = course.slots(step, never)
        names.append((course.phase.name, len(slots)))
        for slot in slots:
            SPACE.encode(slot.arch)  # belongs to the whole space
            varied = {key for key, value in slot.arch.to_json().items() if value != largest[key]}
            allowed = {"full": {"resolution"}, "depth": {"resolution", "depth", "kernel", "expand"}}
            assert varied <= allowed.get(course.phase.name, set(largest))
            if course.phase.name == "depth":
                assert all(depth >= 2 for depth in slot.arch["depth"])
            drawn |= {(course.phase.name, key) for key in varied}
    assert names == [("full", 1)] * 20 + [("depth", 2)] * 30 + [("all", 3)] * 50
    assert ("depth", "depth") in drawn
    assert ("all", "width") in drawn


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"options": {"kernal": "all"}}, "stage 'depth': kernal: space 'tiny' has no such choice; its choices are"),
    ({"options": {"depth": [2, 7]}}, "stage 'depth': depth=7: not an option of depth in space 'tiny'"),
    ({"options": {"depth": "most"}}, "stage 'depth': depth=most: give a list of options, or one of largest"),
    ({"others": "biggest"}, "phases.stages[1]: others=biggest: give one of largest"),
    ({"epochs": 0}, "phases.stages[1]: epochs=0.0: must be positive"),
    ({"epochs": "long"}, "phases.stages[1].epochs=long: expected float"),
    ({"epoch": 3}, "phases.stages[1].epoch: unknown name; did you mean epochs?"),
    ({"lr": -1}, "phases.stages[1]: lr=-1.0: must be positive"),
    ({"warmup_epochs": 4}, "phases.stages[1]: warmup_epochs=4.0: give 0 to the stage's 3 epochs"),
    ({"num_random": 0}, "phases.stages[1]: num_random=0"),
    ({"sort_channels": 2}, "stage 'depth': sort_channels=2: it counts the smaller expand ratios"),
    ({"epochs": 1e-3}, "stage 'depth' (0.001 of 7.001 epochs) has no step in a run of 10: train longer"),
]


@pytest.mark.parametrize(("changes", "words"), MISTAKES)
def test_mistakes_are_one_clear_line(changes: dict[str, Any], words: str) -> None:
    stages = [STAGES[0], {**STAGES[1], **changes}, STAGES[2]]
    config = {"_target_": "supernet.phases.progressive.ProgressiveShrinking", "stages": stages}
    with pytest.raises(UserError) as caught:
        construct(config, "phases", space=SPACE, horizon=Horizon(2, 10), schedule=Cosine())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_stage_and_other_families_are_refused() -> None:
    with pytest.raises(ValueError, match="give at least one"):
        ProgressiveShrinking(SPACE, Horizon(2, 10), Cosine(), [])
    with pytest.raises(UserError, match="'mlp_ratio', 'num_heads', 'embed_dim'"):
        published(space_of("autoformer_tiny"))


def test_drawn_subnets_of_every_published_stage_run_in_the_whole_space() -> None:
    space = space_of("mbv3_tiny")
    phases, rng = published(space), np.random.default_rng(0)
    for start in STARTS:
        inner = phases.phase(10 * start).space
        for arch in inner.sample(rng, 20):
            assert space.plan(space.from_json(arch.to_json())) == inner.plan(arch)
