"""Listed subnets: equally often in turn or shuffled, or at random; and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare
from tiny import big_space, tiny_space
from torch import Tensor

from supernet.construct import construct
from supernet.errors import UserError
from supernet.horizon import Horizon
from supernet.space import Arch, Space
from supernet.window import enumerate_archs

SPACE = tiny_space()
CHILDREN = SPACE.sample(np.random.default_rng(0), 64)


def no_loss(arch: Arch) -> Tensor:
    raise AssertionError("this sampler must not cost a forward pass")


def make(space: Space = SPACE, seed: int = 0, members: Any = None, **options: Any) -> Any:
    config = {"_target_": "supernet.paths.listed.Listed", **options}
    return construct(
        config,
        "path_sampler",
        space=space,
        seed=seed,
        horizon=Horizon(10, 100),
        **({"members": members} if members else {}),
    )


def trained(sampler: Any, steps: int, count: int = 1) -> list[Arch]:
    return [path.arch for step in range(steps) for path in sampler.draw(step, count, no_loss)]


@pytest.mark.parametrize(("steps", "count"), [(64, 1), (640, 1), (64, 3), (32, 2), (16, 20)])
def test_cyclic_order_trains_each_child_exactly_steps_over_64_times(steps: int, count: int) -> None:
    archs = trained(make(members=CHILDREN), steps, count)
    assert archs == CHILDREN * (steps * count // 64)


@pytest.mark.parametrize("count", [1, 3, 64, 100])
def test_every_round_of_a_shuffled_order_has_each_child_once(count: int) -> None:
    distinct = list(enumerate_archs(SPACE))[:64]
    archs = trained(make(members=distinct, order="shuffled"), -(-192 // count), count)
    rounds = [archs[start : start + 64] for start in (0, 64, 128)]
    assert all(set(each) == set(distinct) for each in rounds)
    assert len({tuple(each) for each in (*rounds, distinct)}) == 4
    assert trained(make(members=distinct, order="shuffled", seed=1), 64) != rounds[0]


def test_a_shuffled_order_is_a_uniform_permutation() -> None:
    few = list(enumerate_archs(SPACE))[:3]
    archs = trained(make(members=few, order="shuffled"), 900)
    orders = Counter(tuple(archs[start : start + 3]) for start in range(0, 900, 3))
    assert len(orders) == 6
    assert chisquare(list(orders.values())).pvalue > 1e-3


def test_random_order_is_multinomial() -> None:
    few = list(enumerate_archs(SPACE))[:8]
    archs = trained(make(members=few, order="random"), 500, 4)
    counts = [Counter(archs)[arch] for arch in few]
    assert chisquare(counts).pvalue > 1e-3
    assert len(set(counts)) > 1  # dice, not turns
    pairs = Counter(zip(archs[::2], archs[1::2], strict=True))  # of slots in one step
    assert chisquare([pairs[a, b] for a in few for b in few]).pvalue > 1e-3


def test_without_a_list_every_subnet_of_a_small_space_has_its_turn() -> None:
    archs = trained(make(), 384)
    assert len(set(archs)) == 384 == SPACE.size()


def test_without_a_list_a_large_space_is_refused() -> None:
    with pytest.raises(UserError, match=r"archs=null: space 'big' has 440,301,256,704 subnets, more than 10,000"):
        make(big_space())


@pytest.mark.parametrize("rows", [False, True])
def test_subnets_of_a_file(rows: bool, tmp_path: Path) -> None:
    data = [arch.to_json() for arch in CHILDREN[:5]]
    file = tmp_path / "children.json"
    file.write_text(json.dumps([{"arch": arch, "top1": 1.0} for arch in data] if rows else data))
    assert trained(make(archs=str(file)), 5) == CHILDREN[:5]


def test_subnets_in_the_config() -> None:
    assert trained(make(archs=[arch.to_json() for arch in CHILDREN[:5]]), 5) == CHILDREN[:5]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "JSON list"),
        ("{}", "JSON list"),
        ("nonsense", "damaged"),
        ('[{"depth": [1, 2]}]', "number 0"),
        ("[3]", "0"),
    ],
)
def test_files_that_list_no_subnets_are_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "children.json"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        make(archs=str(file))


def test_other_mistakes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file"):
        make(archs=str(tmp_path / "nowhere.json"))
    with pytest.raises(UserError, match="got 'sorted'"):
        make(order="sorted")
    with pytest.raises(UserError, match="no subnet"):
        make(archs=[])
    with pytest.raises(UserError, match="does not belong to space 'tiny'"):
        make(members=[big_space().smallest()])
