"""Compound sampling: tied choices follow, free ones stay uniform, impossible ties are named."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from scipy.stats import chisquare
from tiny import tiny_space
from torch import Tensor

from supernet.construct import construct
from supernet.errors import UserError
from supernet.horizon import Horizon
from supernet.models import resnet
from supernet.runs import config_dir
from supernet.space import Arch, Space, load_space

STAGES = (
    {"width": [8], "depth": [1, 2], "kernel": [3], "expand": [1], "stride": 1, "act": "relu"},
    {"width": [12, 16], "depth": [1, 2, 3], "kernel": [3, 5], "expand": [2, 3, 4], "stride": 2, "act": "relu"},
    {"width": [16], "depth": [2, 3, 4], "kernel": [3, 5], "expand": [3, 4, 6], "stride": 2, "act": "relu"},
)
EXPAND = {2: [2, 3, 4], 3: [3, 4, 6]}  # by the stage's number from 1


def space_of(name: str) -> Space:
    return load_space(yaml.safe_load((config_dir() / "space" / f"{name}.yaml").read_text()))


def no_loss(arch: Arch) -> Tensor:
    raise AssertionError("this sampler must not cost a forward pass")


def draws(space: Space, count: int, ties: dict[str, str] | None = None, seed: int = 0) -> list[Arch]:
    config = {"_target_": "supernet.paths.compound.Compound", "ties": ties or {"expand": "depth"}}
    sampler = construct(config, "path_sampler", space=space, seed=seed, horizon=Horizon(10, 100))
    return [path.arch for step in range(count) for path in sampler.draw(step, 1, no_loss)]


def test_expand_per_stage_follows_depth() -> None:
    for arch in draws(tiny_space(stages=STAGES), 200):
        assert arch["expand"][0] == 1  # nothing to choose, nothing tied
        assert arch["expand"][1] == EXPAND[2][[1, 2, 3].index(arch["depth"][1])]
        assert arch["expand"][2] == EXPAND[3][[2, 3, 4].index(arch["depth"][2])]


def test_expand_per_block_follows_the_depth_of_its_own_stage() -> None:
    space = tiny_space(stages=STAGES, choose="block")
    seen = set()
    for arch in draws(space, 200):
        depths = arch["depth"]
        seen.add(depths)
        for start, stage, least in ((2, 2, 1), (5, 3, 2)):
            depth = depths[stage - 1]
            wanted = EXPAND[stage][depth - least]
            assert arch["expand"][start : start + depth] == (wanted,) * depth
    assert len(seen) == 18  # both stages' depths are free of each other


def test_published_space_of_the_paper() -> None:
    """Once-for-All's MobileNetV3: depth 2, 3, 4 goes with expand ratio 3, 4, 6."""
    ratio = {2: 3, 3: 4, 4: 6}
    for arch in draws(space_of("ofa_mbv3"), 20):
        for stage, depth in enumerate(arch["depth"]):
            assert set(arch["expand"][4 * stage : 4 * stage + depth]) == {ratio[depth]}


def test_blocks_that_every_depth_has_follow_too() -> None:
    """In a ResNet these have no parent gene; what they share with the depth is the stage."""
    stages = [
        {"width": 16, "expand": [0.25, 0.5], "blocks": 2, "stride": 1, "depth": [0, 1]},
        {"width": 32, "expand": [0.25, 0.5], "blocks": 1, "stride": 2, "depth": [0, 1]},
    ]
    space = resnet.space("r", (16,), {"width": 8, "middle": 8, "depth": [0, 1]}, stages, (1.0,), num_classes=4)
    seen = set()
    for arch in draws(space, 60):
        _, first, second = arch["depth"]
        seen.add((first, second))
        assert arch["expand"][: 2 + first] == ((0.25, 0.5)[first],) * (2 + first)
        assert arch["expand"][3 : 4 + second] == ((0.25, 0.5)[second],) * (1 + second)
    assert len(seen) == 4


def test_free_genes_and_leaders_stay_uniform_and_independent() -> None:
    archs = draws(tiny_space(stages=STAGES), 1800)
    table: Counter[Any] = Counter((a["depth"][1], a["depth"][2], a["kernel"][1], a["resolution"]) for a in archs)
    assert len(table) == 3 * 3 * 2 * 2
    assert chisquare(list(table.values())).pvalue > 1e-3
    assert chisquare(list(Counter(a["width"] for a in archs).values())).pvalue > 1e-3


def test_other_keys_can_be_tied() -> None:
    stages = [{**STAGES[1], "stride": 1, "width": [8]}]
    for arch in draws(tiny_space(stages=stages), 50, {"depth": "expand"}):
        assert [2, 3, 4].index(arch["expand"][0]) == arch["depth"][0] - 1


@pytest.mark.parametrize(
    ("ties", "said"),
    [
        ({"expansion": "depth"}, r"no choice 'expansion'.*'resolution', 'width', 'depth', 'kernel', 'expand'"),
        ({"expand": "layers"}, r"no choice 'layers'"),
        ({"expand": "depth", "depth": "kernel"}, r"depth is tied itself"),
        ({"kernel": "depth"}, r"kernel\[1\] has 2 options \[3, 5\], depth\[1\] has 3 \[1, 2, 3\]"),
        ({"resolution": "depth"}, r"resolution acts on the stages of several choices: depth\[0\], depth\[1\], depth"),
    ],
)
def test_impossible_ties_are_refused(ties: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        draws(tiny_space(stages=STAGES), 1, ties)


def test_where_one_of_the_two_has_nothing_to_choose_the_other_is_free() -> None:
    """Once-for-All's ProxylessNAS: the last block is alone in its stage, and its ratio has no depth to follow."""
    ratio = {2: 3, 3: 4, 4: 6}
    archs = draws(space_of("ofa_proxyless"), 40)
    for arch in archs:
        for stage, depth in enumerate(arch["depth"][:5]):
            assert set(arch["expand"][4 * stage : 4 * stage + depth]) == {ratio[depth]}
    assert {arch["expand"][20] for arch in archs} == {3, 4, 6}
    narrowed = tiny_space(stages=STAGES).narrow({"depth": "largest"})
    assert len({arch["expand"] for arch in draws(narrowed, 200)}) == 9


def test_choices_that_share_no_stage_cannot_be_tied() -> None:
    """With one block in every stage, no layer depends on a depth."""
    stages = [{**STAGES[1], "depth": [1]}, {**STAGES[2], "depth": [1]}]
    with pytest.raises(UserError, match=r"no choice of expand is in the stage of one of depth"):
        draws(tiny_space(stages=stages), 1)


def test_spaces_without_the_choice_say_what_they_have() -> None:
    with pytest.raises(UserError, match=r"'expand'.*'layer_num', 'mlp_ratio'"):
        draws(space_of("autoformer_tiny"), 1)


def test_prefix_of_slots_is_kept() -> None:
    space = tiny_space(stages=STAGES)
    config = {"_target_": "supernet.paths.compound.Compound", "ties": {"expand": "depth"}}
    sampler = construct(config, "path_sampler", space=space, seed=0, horizon=Horizon(10, 100))
    assert sampler.draw(3, 4, no_loss)[:2] == sampler.draw(3, 2, no_loss)
    assert len({path.arch for path in sampler.draw(3, 4, no_loss)}) == 4
