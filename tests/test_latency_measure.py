"""Clocks, groups of subnets, drift and resuming."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import big_space, tiny_space
from tiny_vit import tiny_vit
from torch import Tensor, nn

from search.constraint import encoded
from search.latency import measure
from search.latency.measure import FIT, TEST, Measurement, choose_subnets, reference_of
from search.latency.timing import Ready, Setting, conditions, interleaved, layer_times, measure_subnet, summary
from supernet.build import build
from supernet.cost import macs_of
from supernet.errors import UserError
from supernet.net import Supernet


class Sleeps(nn.Module):
    """A layer that takes a known time."""

    def __init__(self, ms: float) -> None:
        super().__init__()
        self.ms = ms
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.ms / 1e3)
        return x


def test_the_clock_tells_the_time() -> None:
    ms, iqr = measure_subnet(nn.Sequential(Sleeps(2.0), Sleeps(3.0)), 4, Setting(), min_calls=9)
    assert 5.0 <= ms < 9.0  # asleep at least that long; how late one wakes is the system's affair
    assert 0 <= iqr < 4.0


def test_layers_are_timed_where_they_run() -> None:
    with conditions(Setting()):
        subject = Ready(nn.Sequential(Sleeps(2.0), Sleeps(6.0)), (3, 4, 4), Setting())
        times = layer_times(subject, ["0", "1"], 3)
    assert 2.0 <= times["0"] < 5.0
    assert 6.0 <= times["1"] < 11.0
    assert not subject.network.get_submodule("0")._forward_hooks, "hooks are gone"


def test_networks_take_turns_and_first_calls_do_not_count() -> None:
    calls: list[int] = []

    class Notes(nn.Module):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def forward(self, x: Tensor) -> Tensor:
            calls.append(self.number)
            return x

    with conditions(Setting()):
        subjects = [Ready(Notes(i), (3, 4, 4), Setting(), calibrated=True) for i in range(3)]
        times = interleaved(subjects, 4, np.random.default_rng(0))
    assert [len(t) for t in times] == [4 * 3] * 3
    turns = calls[::4]
    assert all(calls[i : i + 4] == [turn] * 4 for i, turn in zip(range(0, 48, 4), turns, strict=True))
    rounds = [tuple(turns[i : i + 3]) for i in range(0, 12, 3)]
    assert all(sorted(r) == [0, 1, 2] for r in rounds)
    assert len(set(rounds)) > 1, "the order is random"


def test_nothing_global_is_left_behind() -> None:
    before = torch.get_num_threads()
    with conditions(Setting(threads=2)):
        assert torch.get_num_threads() == 2
        assert torch.is_inference_mode_enabled()
    assert torch.get_num_threads() == before
    assert not torch.is_inference_mode_enabled()


def test_a_subnet_is_measured_as_it_is_and_stays_so() -> None:
    space = tiny_space()
    subnet = Supernet(space).extract(space.largest()).train()
    before = {name: value.clone() for name, value in subnet.state_dict().items()}
    ms, _ = measure_subnet(subnet, 12, Setting(dtype="bfloat16", memory_format="channels_last"), min_calls=6)
    assert ms > 0
    assert subnet.training
    after = subnet.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(value, after[name]) and value.dtype == torch.float32 for name, value in before.items())


def test_settings_that_do_not_exist_are_refused() -> None:
    for wrong in ({"dtype": "int3"}, {"memory_format": "rows"}, {"batch": 0}, {"threads": 0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Setting(**wrong)
    setting = Setting("cpu", 4, "bfloat16", 1, "channels_last")
    assert Setting.of(json.loads(json.dumps(setting.record()))) == setting


def test_summary_by_hand() -> None:
    timing = summary([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (timing.median, timing.iqr) == (3.0, 2.0)


# Which subnets -------------------------------------------------------------------------------------------------


def test_the_chosen_subnets_are_distinct_stratified_and_reproducible() -> None:
    space = big_space()
    chosen = choose_subnets(space, 40, 20, seed=0)
    assert chosen == choose_subnets(space, 40, 20, seed=0)
    assert chosen != choose_subnets(space, 40, 20, seed=1)
    archs = [arch for arch, _ in chosen]
    assert len(set(archs)) == 60
    splits = [split for _, split in chosen]
    assert (splits.count(FIT), splits.count(TEST)) == (40, 20)
    for cut in (15, 30, 45):
        assert abs(splits[:cut].count(TEST) - cut / 3) <= 1.5, "the shares hold at any point"
    fit = {arch for arch, split in chosen if split == FIT}
    assert {space.smallest(), space.largest()} <= fit
    macs = macs_of(space).batch(encoded(space, [arch for arch, split in chosen if split == TEST]))
    uniform = macs_of(space).batch(encoded(space, space.sample(np.random.default_rng(9), n=2000)))
    for quantile in (0.25, 0.5, 0.75):  # one in each interval of equal probability
        assert abs((macs <= np.quantile(uniform, quantile)).mean() - quantile) <= 0.1


def test_more_subnets_than_there_are() -> None:
    space = tiny_space(resolution=(8,))
    chosen = choose_subnets(space, 500, 100, seed=0)
    assert len(chosen) == len({arch for arch, _ in chosen}) <= space.size()


# The measurement -----------------------------------------------------------------------------------------------


def test_measurements_are_kept_and_gone_on_with(tmp_path: Path) -> None:
    space, path = tiny_space(), tmp_path / "measurements.jsonl"
    chosen = choose_subnets(space, 12, 6, seed=0)
    groups: list[int] = []
    first = Measurement(path, space, Setting(threads=1), 0)
    first.run(chosen[:8], 60, lambda n, ms: groups.append(n))
    assert groups == [8]
    with path.open("a") as file:
        file.write('{"arch": {"resol')  # killed while writing
    second = Measurement(path, space, Setting(threads=1), 0)
    samples = second.run(chosen, 60, lambda n, ms: groups.append(n))
    assert groups == [8, 8, 2]
    assert [sample.arch for sample in samples] == [arch for arch, _ in chosen]
    assert samples[:8] == Measurement(path, space, Setting(threads=1), 0).samples()[:8]
    for sample in samples:
        assert sample.ms > 0
        assert len(sample.raw) == 9
        if sample.split == FIT:
            assert sample.layers is not None
            assert list(sample.layers) == [name for name, _ in space.plan(sample.arch).layers]
            assert sum(sample.layers.values()) < 3 * sample.ms
        else:
            assert sample.layers is None
    with pytest.raises(UserError, match="measured with other batch"):
        Measurement(path, space, Setting(threads=1, batch=2), 0)


def test_every_family_is_timed_layer_by_layer(tmp_path: Path) -> None:
    """Units carry the names of modules; the times of the layers add up to nearly all of the whole."""
    spaces = [tiny_vit(), build("ofa_resnet50", num_classes=4, resolution=[32]).space]
    for space in spaces:
        chosen = choose_subnets(space, 4, 2, seed=0)
        samples = Measurement(tmp_path / f"{space.name}.jsonl", space, Setting(), 0).run(chosen, 60, lambda n, ms: None)
        assert len(samples) == 6
        for sample in samples:
            if sample.layers is not None:
                assert list(sample.layers) == [name for name, _ in space.plan(sample.arch).layers]
                assert 0.3 * sample.ms < sum(sample.layers.values()) < 3 * sample.ms


def test_the_time_limit_holds(tmp_path: Path) -> None:
    space = tiny_space()
    run = Measurement(tmp_path / "m.jsonl", space, Setting(), 0)
    assert run.run(choose_subnets(space, 12, 6, seed=0), -1.0, lambda n, ms: None) == []


def test_a_group_that_drifted_is_measured_again_then_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine runs at 10 ms a call, then at 12 in one attempt, then at 15 for good."""
    space = tiny_space()
    speeds = iter([10.0, 10.0, 12.0, 10.1, 15.0, 15.0, 15.0])

    def fake(subjects: Sequence[Ready], rounds: int, rng: np.random.Generator) -> list[list[float]]:
        speed = next(speeds)
        return [[2 * speed] * 3 for _ in subjects[:-1]] + [[speed] * 3]

    monkeypatch.setattr(measure, "interleaved", fake)
    run = Measurement(tmp_path / "m.jsonl", space, Setting(), 0)
    samples = run.run(choose_subnets(space, 24, 8, seed=0), 60, lambda n, ms: None)
    assert [s.repeats for s in samples] == [0] * 16 + [1] * 8 + [2] * 8
    assert all(s.ms == pytest.approx(20.0, rel=0.02) for s in samples)
    assert [abs(s.drift) > measure.DRIFT for s in samples] == [False] * 24 + [True] * 8
    assert samples[-1].raw == (30.0,) * 3, "raw times stay as they came"


def test_the_reference_is_the_median_subnet() -> None:
    space = big_space()
    archs: list[Any] = space.sample(np.random.default_rng(0), n=11)
    macs = sorted(space.plan(arch).macs for arch in archs)
    assert space.plan(reference_of(archs, space)).macs == macs[5]
