"""What every path sampler of configs/path_sampler must do: be a pure function of (seed, step) into its space."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from elsewhere import computed_elsewhere
from tiny import tiny_space
from torch import Tensor

from supernet.construct import construct
from supernet.horizon import Horizon
from supernet.learned import Learned
from supernet.paths.base import Path, PathSampler
from supernet.runs import config_dir
from supernet.space import Arch

STAGES = (
    {"width": [8, 12], "depth": [1, 2], "kernel": [3], "expand": [1], "stride": 1, "act": "relu"},
    {"width": [12, 16], "depth": [1, 2, 3], "kernel": [3, 5], "expand": [2, 3, 4], "stride": 2, "act": "relu"},
)
SPACE = tiny_space(stages=STAGES, choose="block")
COUNT = 6  # a multiple of every number of options, which strict fairness asks for
STEPS = (0, 1, 2, 7, 99)
NAMES = sorted(file.stem for file in (config_dir() / "path_sampler").glob("*.yaml"))
every_sampler = pytest.mark.parametrize("name", NAMES)

ELSEWHERE = "{n: [t.plain(t.draw(t.make(n), s)) for s in reversed(t.STEPS)][::-1] for n in t.NAMES}"


def make(name: str, seed: int = 5, **overrides: Any) -> PathSampler:
    config = yaml.safe_load((config_dir() / "path_sampler" / f"{name}.yaml").read_text())
    horizon = Horizon(steps_per_epoch=10, total_steps=100)
    sampler: PathSampler = construct({**config, **overrides}, "path_sampler", space=SPACE, seed=seed, horizon=horizon)
    return sampler


def loss_of(arch: Arch) -> Tensor:
    """A number that belongs to the subnet, in no order of size."""
    return torch.tensor(float(SPACE.plan(arch).params * 7919 % 101))


def draw(sampler: PathSampler, step: int, count: int = COUNT) -> list[Path]:
    return sampler.draw(step, count, loss_of)


def plain(paths: list[Path]) -> list[list[Any]]:
    return [[path.arch.to_json(), path.weight] for path in paths]


@pytest.fixture(scope="module")
def other_process() -> dict[str, Any]:
    """The draws of every sampler, computed elsewhere with another hash seed and in another order."""
    found: dict[str, Any] = computed_elsewhere("test_paths", ELSEWHERE)
    return found


@every_sampler
def test_equal_in_another_process(name: str, other_process: dict[str, Any]) -> None:
    assert [plain(draw(make(name), step)) for step in STEPS] == other_process[name]


@pytest.mark.parametrize("name", [name for name in NAMES if not isinstance(make(name), Learned)])
def test_draws_do_not_depend_on_what_was_asked_before(name: str) -> None:
    forwards, backwards = make(name), make(name)
    expected = {step: draw(forwards, step) for step in STEPS}
    assert {step: draw(backwards, step) for step in reversed(STEPS)} == expected
    assert {step: draw(forwards, step) for step in STEPS} == expected


@every_sampler
def test_global_generators_are_neither_used_nor_moved(name: str) -> None:
    seen = []
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        sampler = make(name)
        seen.append([draw(sampler, step) for step in STEPS])
        assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert seen[0] == seen[1]


@every_sampler
def test_draws_are_as_many_as_asked_for_and_belong_to_the_space_in_canonical_form(name: str) -> None:
    sampler = make(name)
    for step in range(20):
        for count in (0, COUNT, 2 * COUNT):
            paths = draw(sampler, step, count)
            assert len(paths) == count
            for path in paths:
                assert path.weight == 1
                assert SPACE.decode(SPACE.encode(path.arch)) == path.arch
                assert SPACE.from_json(path.arch.to_json()) == path.arch


@pytest.mark.parametrize("name", [name for name in NAMES if name != "listed"])
def test_steps_and_seeds_draw_different_subnets(name: str) -> None:
    def drawn(seed: int) -> list[tuple[Arch, ...]]:
        sampler = make(name, seed=seed)
        return [tuple(path.arch for path in draw(sampler, step)) for step in range(50)]

    first, other = drawn(0), drawn(1)
    # Of six subnets, out of 49 (with compound's tie) or more: all equal less than once in a billion.
    assert len(set(first)) == 50
    assert not set(first) & set(other)


def test_more_uniform_slots_keep_the_first_ones() -> None:
    two, three = (draw(make("uniform"), 4, count) for count in (2, 3))
    assert three[:2] == two


def test_genes_of_uniform_paths_have_multinomial_counts() -> None:
    """Single-path one-shot: over many steps, counts of every gene and of pairs of genes are those of fair dice."""
    from scipy.stats import chisquare

    sampler = make("uniform", seed=1)
    codes = np.array([SPACE.encode(draw(sampler, step, 1)[0].arch) for step in range(3000)])
    always = [i for i, gene in enumerate(SPACE.genes) if gene.parent is None and len(gene.options) > 1]
    for i in always:
        counts = np.bincount(codes[:, i], minlength=len(SPACE.genes[i].options))
        assert chisquare(counts).pvalue > 1e-3, SPACE.genes[i].name
        assert counts.std() > 0  # dice, not turns
        for j in always[: always.index(i)]:
            pairs = codes[:, i] * len(SPACE.genes[j].options) + codes[:, j]
            table = np.bincount(pairs, minlength=len(SPACE.genes[i].options) * len(SPACE.genes[j].options))
            assert chisquare(table).pvalue > 1e-3, (SPACE.genes[i].name, SPACE.genes[j].name)
