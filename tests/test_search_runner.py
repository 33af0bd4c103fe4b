"""`search.runner.main` from a checkpoint to an exported subnet, on a tiny supernet and in-memory images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from images import NoisyImages
from tiny import tiny_space
from tiny_search import stop_after

from search import job, runner
from search.evaluator import SupernetEvaluator
from supernet import checkpoint
from supernet.errors import UserError
from supernet.evaluate import calibrated_subnet, evaluate
from supernet.export import load_subnet
from supernet.net import Supernet
from supernet.runs import CHECKPOINT, RESULTS, config_dir, write_json
from supernet.window import enumerate_archs

SPACE = tiny_space()


class MemoryStub(NoisyImages):
    """48 images to search on."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__(search=48, classes=classes)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> MemoryStub:
    stub = MemoryStub()
    monkeypatch.setattr(job, "make_data", lambda config, device, overrides: stub)
    return stub


@pytest.fixture
def config(tmp_path: Path, data: MemoryStub) -> dict[str, Any]:
    """A finished training run, and the shipped configuration with small numbers."""
    folder = tmp_path / "runs" / "train" / "20260101-000000-tiny"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    state = {"space": SPACE.config, "model": Supernet(SPACE).state_dict(), "config": {"data": {}}, "step": 7}
    checkpoint.save(folder / CHECKPOINT, state)
    write_json(folder / RESULTS, {})
    loaded: dict[str, Any] = yaml.safe_load((config_dir() / "search.yaml").read_text())
    del loaded["defaults"], loaded["hydra"]
    algorithm = yaml.safe_load((config_dir() / "algorithm" / "evolution.yaml").read_text())
    small = {"evaluations": 20, "finalists": 4, "calibration_images": 32, "device": "cpu", "cache": False}
    return {
        **loaded,
        **small,
        "runs_dir": str(tmp_path / "runs"),
        "algorithm": {**algorithm, "population": 6},
    }


def with_macs(config: Mapping[str, Any], macs: Any) -> dict[str, Any]:
    return {**config, "constraint": {**config["constraint"], "macs": macs}}


def searches(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "runs" / "train" / "20260101-000000-tiny" / "search").glob("*"))


def trials(folder: Path, name: str = "trials.jsonl") -> list[tuple[Any, Any]]:
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()[1:]]
    return [(line["arch"], line["metrics"]) for line in lines]


def test_a_search_leaves_a_checked_subnet_and_all_its_records(
    config: dict[str, Any], data: MemoryStub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = runner.main({**config, "baseline": "random"})
    [folder] = searches(tmp_path)
    results = json.loads((folder / RESULTS).read_text())
    winner, metrics = results["winner"], results["winner"]["metrics"]
    assert value == metrics["val"]["top1"]
    assert folder.name.endswith("-evolution")
    assert data.read.count("test") == 1

    largest = SPACE.plan(SPACE.largest()).macs
    arch = SPACE.from_json(winner["arch"])
    assert (winner["macs"], winner["params"]) == (SPACE.plan(arch).macs, SPACE.plan(arch).params)
    assert results["budget"] == {"macs": [None, largest / 2]}
    found = trials(folder)
    assert len(found) == results["evaluations"] == len(trials(folder, "baseline.jsonl")) == 20
    assert len({json.dumps(arch) for arch, _ in found}) == 20
    assert all(metric["macs"] <= largest / 2 for _, metric in found)

    # The winner is the best finalist on val; finalists are the best on search.
    ranked = sorted(found, key=lambda trial: (-trial[1]["top1"], trial[1]["loss"]))[:4]
    val = []
    for candidate, metric in ranked:
        stub, net = MemoryStub(), runner.open_job(config).run.net
        subnet = calibrated_subnet(net, SPACE.from_json(candidate), stub, 32)
        top1 = evaluate(subnet, stub.evaluation("val", candidate["resolution"])).top1
        val.append((-top1, metric["macs"], candidate))
    assert min(val, key=lambda row: row[:2]) == (-metrics["val"]["top1"], winner["macs"], winner["arch"])

    subnet = load_subnet(folder / "subnet")
    assert (
        evaluate(subnet, MemoryStub().evaluation("test", winner["arch"]["resolution"])).top1 == metrics["test"]["top1"]
    )
    front = json.loads((folder / "front.json").read_text())
    assert front["chosen"]["arch"] == winner["arch"]
    for name in ("config.json", "environment.json", "front.csv", "front.png", "subnet/arch.json"):
        assert (folder / name).stat().st_size > 0
    said = capsys.readouterr().out
    for words in (
        "newest finished training run",
        "384 subnets",
        "39.49K to 435K MACs",
        "<= 217.5K",
        str(folder),
    ):
        assert words in said


def test_scoring_leaves_the_supernet_alone_and_caches(config: dict[str, Any], data: MemoryStub) -> None:
    opened = runner.open_job(config)
    before = {key: value.clone() for key, value in opened.run.net.state_dict().items()}
    evaluator = SupernetEvaluator(opened.run.net, data, 32, opened.budget.costs)
    archs = [SPACE.largest(), SPACE.smallest(), SPACE.largest()]
    first = evaluator(archs)
    reads = len(data.read)
    assert evaluator(archs) == first
    assert first[0] is first[2]
    assert reads == len(data.read) == 2
    after = opened.run.net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("stop", [0, 3, 6, 14, 25])
def test_an_interrupted_search_goes_on_as_if_it_had_not_been(
    config: dict[str, Any],
    tmp_path: Path,
    stop: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config |= {"baseline": "random", "reuse_mb": 0}
    runner.main(config)
    [whole] = searches(tmp_path)
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            runner.main(config)
    part = searches(tmp_path)[1]
    assert len(trials(part)) == min(stop, 20)
    assert f"resume={part}" in capsys.readouterr().out
    assert not (part / RESULTS).exists()
    runner.main({**config, "resume": "auto" if stop == 3 else str(part)})
    assert len(searches(tmp_path)) == 2
    assert trials(part) == trials(whole)
    assert trials(part, "baseline.jsonl") == trials(whole, "baseline.jsonl")
    first, second = (json.loads((folder / RESULTS).read_text())["winner"] for folder in (whole, part))
    assert first["arch"] == second["arch"]
    assert first["metrics"] == second["metrics"]


def test_a_search_can_go_on_with_more_evaluations(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.main({**config, "evaluations": 27})
    with monkeypatch.context() as patch:
        stop_after(patch, 15)
        with pytest.raises(KeyboardInterrupt):
            runner.main({**config, "reuse_mb": 0})
    whole, part = searches(tmp_path)
    runner.main({**config, "evaluations": 27, "resume": str(part)})
    assert trials(part) == trials(whole)


@pytest.mark.parametrize("stop_early", [False, True])
def test_scoring_together_changes_no_trial(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_early: bool
) -> None:
    """Generations of six: together, one by one, and together with an interruption in the third."""
    config["stop_early"] = stop_early
    runner.main({**config, "reuse_mb": 0})
    runner.main(config)
    alone, together = searches(tmp_path)
    assert trials(together) == trials(alone)
    if stop_early:  # its passes do not go through __call__
        return
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            runner.main(config)
    part = searches(tmp_path)[2]
    assert len(trials(part)) == 12
    runner.main({**config, "resume": str(part)})
    assert trials(part) == trials(alone)
    record = json.loads((part / RESULTS).read_text())["scoring"]
    assert record["dtype"] == "float32"
    assert set(record["sizes"]) == {"8", "12"}
    assert record["reuse_mb"] == config["reuse_mb"] > 0


def test_scores_in_bfloat16_are_not_taken_for_others(config: dict[str, Any], tmp_path: Path) -> None:
    runner.main(config)
    runner.main({**config, "eval_dtype": "bfloat16", "cache": True})
    runner.main({**config, "cache": True})
    plain, rounded, again = (json.loads((folder / RESULTS).read_text()) for folder in searches(tmp_path))
    assert rounded["scores_of_earlier_searches"] == 0
    assert again["scores_of_earlier_searches"] == 20
    first, second = (trials(folder) for folder in searches(tmp_path)[:2])
    assert first[0][0] == second[0][0]  # the same first proposal
    assert first[0][1]["loss"] != second[0][1]["loss"]
    assert first[0][1]["loss"] == pytest.approx(second[0][1]["loss"], rel=0.02)
    assert [plain["scoring"]["dtype"], rounded["scoring"]["dtype"]] == ["float32", "bfloat16"]
    with pytest.raises(UserError, match="reuse_mb=-1"):
        runner.main({**config, "reuse_mb": -1})
    with pytest.raises(UserError, match="eval_batch=0"):
        runner.main({**config, "eval_batch": 0})


def test_what_cannot_be_resumed(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no unfinished search"):
        runner.main({**config, "resume": "auto"})
    with pytest.raises(UserError, match="no search is there"):
        runner.main({**config, "resume": str(tmp_path)})
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            runner.main(config)
    [folder] = searches(tmp_path)
    before = (folder / "trials.jsonl").read_bytes()
    for other in ({**config, "seed": 1}, with_macs(config, 0.4), {**config, "calibration_images": 16}):
        with pytest.raises(UserError, match="searched with another setup"):
            runner.main({**other, "resume": str(folder)})
    state = checkpoint.load(folder.parent.parent / CHECKPOINT)
    next(iter(state["model"].values())).add_(1)
    checkpoint.save(tmp_path / "other.pt", state)
    with pytest.raises(UserError, match="weights was"):
        runner.main({**config, "checkpoint": str(tmp_path / "other.pt"), "resume": str(folder)})
    assert (folder / "trials.jsonl").read_bytes() == before
    runner.main({**config, "resume": str(folder)})
    with pytest.raises(UserError, match="that search is finished"):
        runner.main({**config, "resume": str(folder)})


def test_a_space_smaller_than_the_evaluations_ends_early(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    macs = 50_000
    inside = [arch for arch in enumerate_archs(SPACE) if SPACE.plan(arch).macs <= macs]
    assert len(inside) < 20
    runner.main(with_macs(config, macs))
    [folder] = searches(tmp_path)
    assert len(trials(folder)) == len(inside)
    assert f"stopping after {len(inside)}" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["smallest", "largest", "random:5", "file", "row", "json"])
def test_any_subnet_can_be_evaluated_and_exported(
    config: dict[str, Any], data: MemoryStub, tmp_path: Path, form: str
) -> None:
    some = list(enumerate_archs(SPACE))[77]
    write_json(tmp_path / "arch.json", some.to_json())
    write_json(tmp_path / "front.json", {"rows": [{"arch": SPACE.largest().to_json()}, {"arch": some.to_json()}]})
    forms: dict[str, Any] = {
        "file": str(tmp_path / "arch.json"),
        "row": f"{tmp_path / 'front.json'}#1",
        "json": some.to_json(),
    }
    value = runner.main({**config, "arch": forms.get(form, form), "test": form != "smallest"})
    [folder] = searches(tmp_path)
    winner = json.loads((folder / RESULTS).read_text())["winner"]
    expected = {"smallest": SPACE.smallest(), "largest": SPACE.largest()}.get(form, some)
    if form != "random:5":
        assert winner["arch"] == expected.to_json()
    assert winner["metrics"]["val"]["top1"] == value
    assert data.read.count("test") == (form != "smallest")
    load_subnet(folder / "subnet")


def test_a_dry_run_writes_nothing(
    config: dict[str, Any], data: MemoryStub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runner.main({**config, "dry_run": True, "baseline": "random"}) == 0.0
    assert searches(tmp_path) == []
    assert "48 evaluations" in capsys.readouterr().out
    assert "test" not in data.read


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"evaluations": 0}, "evaluations=0: must be at least 1"),
        ({"evaluations": "many"}, "evaluations=many: expected int"),
        ({"evaluation": 5}, "evaluation: unknown name; did you mean evaluations"),
        ({"finalists": 0}, "finalists=0"),
        ({"calibration_images": 0}, "calibration_images=0"),
        ({"seed": -1}, "seed=-1"),
        ({"baseline": "grid"}, "baseline=grid: expected one of 'random'"),
        ({"formats": ["tflite"]}, r"formats=\['tflite'\]: choose from"),
        ({"device": "tpu:7"}, "device=tpu:7"),
        ({"checkpoint": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"runs_dir": "/nowhere/at/all"}, "no finished run"),
        ({"arch": "huge"}, "arch=huge: no such file"),
        ({"arch": {"resolution": 8}}, "an arch of space 'tiny' has the keys"),
        ({"arch": "smallest", "resume": "auto"}, "drop one of the two"),
        (
            {"algorithm": {"_target_": "search.evolution.Evolution", "parent": 3}},
            "algorithm.parent: unknown name",
        ),
        (
            {"constraint": {"_target_": "search.constraint.Constraint", "mac": 3}},
            "constraint.mac: unknown name",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_one_clear_line_and_write_nothing(
    config: dict[str, Any], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        runner.main({**config, **change})
    assert searches(tmp_path) == []


def test_an_impossible_budget_says_what_is_reachable(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"constraint\.macs .*39,488.*435,008.*nearest possible is .*39,488"):
        runner.main(with_macs(config, 1000))
    assert searches(tmp_path) == []


def test_data_of_other_classes_is_refused(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "make_data", lambda *args: MemoryStub(classes=3))
    with pytest.raises(UserError, match=r"num_classes 3, the supernet of .* has 4"):
        runner.main(config)


def test_data_overrides_reach_the_data(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def make(section: Any, device: torch.device, overrides: Mapping[str, Any]) -> MemoryStub:
        given.append(dict(overrides))
        return MemoryStub()

    monkeypatch.setattr(job, "make_data", make)
    runner.open_job({**config, "data": {**config["data"], "root": "/images"}})
    assert given == [{"root": "/images"}]


def test_resume_auto_finds_the_search_of_an_older_run(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as interrupted:
        stop_after(interrupted, 3)
        with pytest.raises(KeyboardInterrupt):
            runner.main(config)
    train = tmp_path / "runs" / "train"
    shutil.copytree(
        train / "20260101-000000-tiny", train / "20260102-000000-newer", ignore=shutil.ignore_patterns("search")
    )
    runner.main({**config, "resume": "auto"})
    assert len(trials(searches(tmp_path)[0])) == config["evaluations"]


def test_a_run_of_one_subnet_has_nothing_to_search(config: dict[str, Any], tmp_path: Path) -> None:
    alone = SPACE.only(SPACE.smallest())
    state = {"space": alone.config, "model": Supernet(alone).state_dict(), "config": {"data": {}}, "step": 7}
    checkpoint.save(tmp_path / "alone.pt", state)
    with pytest.raises(UserError, match=r"one subnet only.*arch=largest"):
        runner.main({**config, "checkpoint": str(tmp_path / "alone.pt")})
