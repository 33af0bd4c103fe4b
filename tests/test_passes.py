"""Batch sizes and precision of evaluation: what they may change, and what they may not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from images import NoisyImages
from tiny import tiny_space
from torch import Tensor, nn

from search import scoring
from search.constraint import Constraint
from search.job import Job
from supernet import batch_size
from supernet.batch_size import at_resolution, batch_curve, best, fastest_sizes
from supernet.distributed import ALONE
from supernet.evaluate import calibrated_subnet, evaluate, evaluate_unless_below
from supernet.log import RunLog
from supernet.net import Supernet
from supernet.passes import Passes

SPACE = tiny_space()


def supernet() -> Supernet:
    torch.manual_seed(0)
    return Supernet(SPACE)


class Watch(nn.Module):
    """Notes how many images come at a time, and what convolutions give."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.counts: list[int] = []
        self.dtypes: set[torch.dtype] = set()

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x).mean((2, 3))
        self.counts.append(len(x))
        self.dtypes.add(out.dtype)
        return cast(Tensor, out)


@pytest.mark.parametrize(
    ("size", "counts"), [(None, [50]), (64, [50]), (50, [50]), (49, [25, 25]), (16, [13, 13, 12, 12])]
)
def test_parts_of_a_batch_are_equal_and_no_larger_than_asked_for(size: int | None, counts: list[int]) -> None:
    images, model = torch.randn(50, 3, 8, 8), Watch()
    passes = Passes({} if size is None else {8: size, 12: 1})
    parts = passes.parts(images)
    assert [len(part) for part in parts] == counts
    assert all(part.untyped_storage().data_ptr() == images.untyped_storage().data_ptr() for part in parts)  # no copies
    logits = passes.logits(model, images)
    assert model.counts == counts
    assert torch.allclose(logits, Watch.forward(model, images))


def test_scores_do_not_depend_on_the_batch_size() -> None:
    net, data = supernet(), NoisyImages(batch=55)
    for arch in (SPACE.smallest(), SPACE.largest()):
        subnet = calibrated_subnet(net, arch, data, 32)
        batches = data.evaluation("search", SPACE.resolution(arch))
        whole = evaluate(subnet, batches)
        for size in (16, 20, 32):
            passes = Passes({8: size, 12: size})
            assert evaluate(subnet, batches, passes) == whole
            assert evaluate_unless_below(subnet, batches, 110, 0.0, passes) == whole
            stopped = evaluate_unless_below(subnet, batches, 110, 101.0, passes)
            assert stopped == evaluate_unless_below(subnet, batches, 110, 101.0)


def test_bfloat16_is_for_products_only() -> None:
    passes, model = Passes(dtype=torch.bfloat16), Watch()
    evaluate(model, [(torch.randn(8, 3, 8, 8), torch.zeros(8, dtype=torch.long))], passes)
    assert model.dtypes == {torch.bfloat16}
    net, data = supernet(), NoisyImages()
    arch = SPACE.largest()
    subnets = [calibrated_subnet(net, arch, data, 32, Passes(dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)]
    exact, rounded = (dict(subnet.state_dict()) for subnet in subnets)
    for key, value in exact.items():
        assert value.dtype == rounded[key].dtype
    means = [key for key in exact if key.endswith("running_var")]
    errors = torch.tensor([float((rounded[key] / exact[key] - 1).abs().max()) for key in means])
    assert 0 < errors.max() < 0.1  # bfloat16 has 8 bits
    metrics = evaluate(subnets[1], data.evaluation("search", 12), Passes(dtype=torch.bfloat16))
    assert metrics.loss == pytest.approx(evaluate(subnets[0], data.evaluation("search", 12)).loss, rel=0.02)


def test_a_smaller_batch_has_to_be_faster_by_five_percent() -> None:
    assert best({16: 0.96, 64: 0.98, 256: 1.0}) == 256
    assert best({16: 0.9, 64: 0.8, 256: 1.0}) == 64


def test_the_curve_is_seconds_per_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device on which every call costs 1 s and every image beyond 32 another 0.5 s."""
    clock = [0.0]

    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            clock[0] += 1.0 + 0.5 * max(0, len(x) - 32)
            return x.mean((2, 3))

    monkeypatch.setattr(batch_size.time, "perf_counter", lambda: clock[0])
    curve = batch_curve(Slow(), torch.zeros(128, 3, 8, 8), seconds=1e4)
    assert curve == {16: 8 / 128, 32: 4 / 128, 64: (2 + 2 * 16) / 128, 128: (1 + 48) / 128}
    assert best(curve) == 32
    few = batch_curve(Slow(), torch.zeros(128, 3, 8, 8), seconds=1.0)  # too slow for all of the images
    assert set(few) == {16, 32, 64}


def test_sizes_are_measured_at_every_resolution_and_change_nothing() -> None:
    net = supernet()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    sizes = fastest_sizes(net, NoisyImages(batch=40), "search", [8, 12], seconds=0.01)
    assert set(sizes) == {8, 12}
    assert all(size in (16, 32, 40) for size in sizes.values())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    arch = SPACE.largest()
    small = at_resolution(SPACE, arch, 8)
    assert (SPACE.resolution(small), SPACE.resolution(arch)) == (8, 12)
    assert SPACE.plan(small).params == SPACE.plan(arch).params


def test_precisions_are_compared_on_the_same_subnets() -> None:
    net, data = supernet(), NoisyImages()
    archs = [SPACE.smallest(), SPACE.largest()]
    found = scoring.compare_precisions(net, archs, data, "search", 32, {})
    assert found.subnets == 2
    assert found.speed_up > 0
    assert 3 < found.standard_error < 6  # of a quarter right among 110


@pytest.mark.parametrize(
    ("speed_up", "tau", "difference", "taken"),
    [
        (1.5, 0.99, 9.0, True),
        (1.5, 0.5, 1.0, True),
        (1.5, 0.5, 9.0, False),
        (1.0, 1.0, 0.0, False),
        (2, None, 9, False),
    ],
)
def test_bfloat16_has_to_be_faster_and_to_rank_alike(
    speed_up: float, tau: float | None, difference: float, taken: bool
) -> None:
    assert scoring.Precisions(speed_up, tau, difference, 2.0, 12).bfloat16 == taken


def job(root: Path, net: Supernet, **settings: Any) -> Job:
    given = {"eval_batch": "auto", "eval_dtype": "float32", "seed": 0, **settings}
    parts: Mapping[str, Any] = {
        "settings": SimpleNamespace(**given),
        "run": SimpleNamespace(net=net),
        "images": NoisyImages(batch=40),
        "budget": Constraint().on(SPACE),
        "calibration_images": 32,
        "ranks": ALONE,
        "root": root / "search",
        "setup": lambda: {"weights": "w", "data": {}},
    }
    return cast(Job, SimpleNamespace(**parts))


def settle(job: Job, folder: Path) -> tuple[Passes, dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    with RunLog(folder, quiet=True) as log:
        return scoring.scoring(job, folder, log)


def test_what_was_measured_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.dtype] = []

    def measure(net: Any, data: Any, split: str, sides: list[int], dtype: torch.dtype) -> dict[int, int]:
        calls.append(dtype)
        return {side: 16 + len(calls) for side in sides}

    monkeypatch.setattr(scoring, "fastest_sizes", measure)
    net = supernet()
    passes, record = settle(job(tmp_path, net), tmp_path / "search" / "1")
    assert passes == Passes({8: 17, 12: 17})
    assert record["sizes"] == {"8": 17, "12": 17}
    assert settle(job(tmp_path, net), tmp_path / "search" / "1")[0] == passes  # resumed
    assert settle(job(tmp_path, net), tmp_path / "search" / "2")[0] == passes  # another search of the supernet
    assert len(calls) == 1
    # A resumed search goes on as it began, wherever; another search is measured where it runs.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert settle(job(tmp_path, net), tmp_path / "search" / "1")[0] == passes
    assert settle(job(tmp_path, net), tmp_path / "search" / "3")[0] == Passes({8: 18, 12: 18})
    assert settle(job(tmp_path, net, eval_dtype="bfloat16"), tmp_path / "search" / "4")[0].dtype == torch.bfloat16
    assert calls == [torch.float32, torch.float32, torch.bfloat16]
    # Nothing is measured where nothing is left open; a damaged file is measured again.
    assert settle(job(tmp_path, net, eval_batch=24), tmp_path / "search" / "5")[0] == Passes({8: 24, 12: 24})
    assert settle(job(tmp_path, net, eval_batch=None), tmp_path / "search" / "6")[0] == Passes()
    assert len(calls) == 3
    for file in tmp_path.rglob(scoring.FILE):
        file.write_text("{")
    assert settle(job(tmp_path, net), tmp_path / "search" / "1")[0] == Passes({8: 20, 12: 20})


@pytest.mark.parametrize("speed_up", [2.0, 0.5])
def test_precision_is_chosen_by_comparing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speed_up: float) -> None:
    seen: list[int] = []

    def compare(net: Any, archs: Any, *rest: Any) -> scoring.Precisions:
        seen.append(len(archs))
        return scoring.Precisions(speed_up, 1.0, 0.0, 1.0, len(archs))

    monkeypatch.setattr(scoring, "compare_precisions", compare)
    net, folder = supernet(), tmp_path / "search" / "1"
    open_question = job(tmp_path, net, eval_batch=None, eval_dtype="auto")
    expected = torch.bfloat16 if speed_up > 1 else torch.float32
    for _ in range(2):
        passes, record = settle(open_question, folder)
        assert passes.dtype == expected
        assert record["precisions"]["speed_up"] == speed_up
    assert seen == [scoring.COMPARED]
