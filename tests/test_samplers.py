"""What every sampler of configs/sampler must do: be a pure function of (step, drawn subnets) into its space."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from elsewhere import computed_elsewhere
from tiny import tiny_space
from torch import Tensor

from supernet.construct import construct
from supernet.errors import UserError
from supernet.horizon import Horizon
from supernet.paths.base import Path as Subnet
from supernet.paths.uniform import Uniform
from supernet.runs import config_dir
from supernet.samplers.base import ArchSampler, Slot
from supernet.space import Arch

SPACE = tiny_space()
FILES = sorted((config_dir() / "sampler").glob("*.yaml"))
NAMES = [file.stem for file in FILES]
STEPS = (0, 1, 2, 7, 100_000)

ELSEWHERE = "{n: [t.plain(t.make(n).slots(s)) for s in reversed(t.STEPS)][::-1] for n in t.NAMES}"


def no_loss(arch: Arch) -> Tensor:
    raise AssertionError("uniform paths must not cost a forward pass")


class Sampler:
    """An arch sampler and the uniform paths that it draws."""

    def __init__(self, sampler: ArchSampler, paths: Uniform) -> None:
        self.sampler, self.paths = sampler, paths

    def slots(self, step: int) -> list[Slot]:
        return self.sampler.slots(step, lambda count: self.paths.draw(step, count, no_loss))


def make(name: str, seed: int = 5, **overrides: Any) -> Sampler:
    config = yaml.safe_load((config_dir() / "sampler" / f"{name}.yaml").read_text())
    sampler: ArchSampler = construct({**config, **overrides}, "sampler", space=SPACE)
    return Sampler(sampler, Uniform(SPACE, seed, Horizon(steps_per_epoch=10, total_steps=100)))


def plain(slots: list[Slot]) -> list[list[Any]]:
    return [[slot.arch.to_json(), slot.role, slot.weight] for slot in slots]


@pytest.fixture(scope="module")
def other_process() -> dict[str, Any]:
    """The slots of every sampler, computed elsewhere with another hash seed and in another order."""
    found: dict[str, Any] = computed_elsewhere("test_samplers", ELSEWHERE)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_equal_in_another_process(name: str, other_process: dict[str, Any]) -> None:
    assert [plain(make(name).slots(step)) for step in STEPS] == other_process[name]


@pytest.mark.parametrize("name", NAMES)
def test_slots_do_not_depend_on_what_was_asked_before(name: str) -> None:
    forwards, backwards = make(name), make(name)
    expected = {step: forwards.slots(step) for step in STEPS}
    assert {step: backwards.slots(step) for step in reversed(STEPS)} == expected
    assert {step: forwards.slots(step) for step in STEPS} == expected


@pytest.mark.parametrize("name", NAMES)
def test_global_generators_are_neither_used_nor_moved(name: str) -> None:
    seen = []
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        seen.append([make(name).slots(step) for step in STEPS])
        assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert seen[0] == seen[1]


@pytest.mark.parametrize("name", NAMES)
def test_archs_belong_to_the_space_in_canonical_form(name: str) -> None:
    for step in range(50):
        for slot in make(name).slots(step):
            assert SPACE.from_json(slot.arch.to_json()) == slot.arch
            assert SPACE.decode(SPACE.encode(slot.arch)) == slot.arch


@pytest.mark.parametrize("name", NAMES)
def test_roles_say_what_the_slots_are_and_the_teacher_comes_first(name: str) -> None:
    for step in range(20):
        slots = make(name).slots(step)
        assert slots
        assert all(slot.weight > 0 for slot in slots)
        roles = [slot.role for slot in slots]
        assert set(roles) <= {"largest", "random", "smallest"}
        assert "largest" not in roles[1:]
        assert all(slot.arch == SPACE.largest() for slot in slots if slot.role == "largest")
        assert all(slot.arch == SPACE.smallest() for slot in slots if slot.role == "smallest")


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_slots_is_the_same_in_every_step(name: str) -> None:
    assert len({tuple(slot.role for slot in make(name).slots(step)) for step in range(30)}) == 1


@pytest.mark.parametrize("name", [name for name in NAMES if name != "largest"])
def test_steps_slots_and_seeds_draw_different_subnets(name: str) -> None:
    def drawn(seed: int) -> list[tuple[Any, ...]]:
        sampler = make(name, seed=seed, num_random=2)
        return [tuple(s.arch for s in sampler.slots(step) if s.role == "random") for step in range(60)]

    first, other = drawn(0), drawn(1)
    # 384 subnets: two independent draws coincide about once in 384.
    assert len(set(first)) >= 58
    assert sum(a == b for a, b in first) <= 3
    assert sum(a == b for a, b in zip(first, other, strict=True)) <= 1
    assert sum(a[1] == b[0] for a, b in pairwise(first)) <= 3


@pytest.mark.parametrize("name", [name for name in NAMES if name != "largest"])
def test_every_option_of_a_gene_is_drawn_about_equally_often(name: str) -> None:
    sampler = make(name, num_random=1)
    draws = [next(s.arch for s in sampler.slots(step) if s.role == "random") for step in range(600)]
    sides = Counter(SPACE.resolution(arch) for arch in draws)
    assert all(abs(sides[side] - 300) < 5 * np.sqrt(150) for side in (8, 12))
    depths = Counter(arch["depth"][1] for arch in draws)
    assert all(abs(depths[depth] - 200) < 5 * np.sqrt(600 * 2 / 9) for depth in (1, 2, 3))


def test_the_sandwich() -> None:
    roles = [slot.role for slot in make("sandwich", num_random=3).slots(0)]
    assert roles == ["largest", "random", "random", "random", "smallest"]
    assert [slot.role for slot in make("sandwich", num_random=0).slots(0)] == ["largest", "smallest"]


def test_more_random_slots_keep_the_first_ones() -> None:
    two, three = (make("sandwich", num_random=n).slots(4) for n in (2, 3))
    assert three[:3] == two[:3]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "largest"])
def test_random_slots_are_the_drawn_subnets_in_their_order_with_their_weights(name: str) -> None:
    archs = SPACE.sample(np.random.default_rng(0), 3)
    drawn = [Subnet(arch, weight) for arch, weight in zip(archs, (0.5, 2.0, 1.0), strict=True)]
    asked: list[int] = []

    def draw(count: int) -> list[Subnet]:
        asked.append(count)
        return drawn[:count]

    slots = make(name, num_random=3).sampler.slots(0, draw)
    assert asked == [3]  # once: a path sampler may choose subnets of a step together
    assert [(slot.arch, slot.weight) for slot in slots if slot.role == "random"] == [(p.arch, p.weight) for p in drawn]
    assert all(slot.weight == 1 for slot in slots if slot.role != "random")


@pytest.mark.parametrize(("name", "count"), [("sandwich", -1), ("uniform", 0)])
def test_impossible_counts_are_refused(name: str, count: int) -> None:
    with pytest.raises(UserError, match=rf"num_random={count}"):
        make(name, num_random=count)
