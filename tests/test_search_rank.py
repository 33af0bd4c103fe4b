"""`mode=rank`: subnets with known accuracy, and files that cannot be read."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from images import NoisyImages
from tiny import tiny_space

from search import job
from search.rank_mode import compare, rank, report
from search.ranking import kendall
from search.truth import read_truth
from supernet import checkpoint
from supernet.errors import UserError
from supernet.evaluate import evaluate_subnet
from supernet.net import Supernet
from supernet.runs import CHECKPOINT, RESULTS, config_dir, write_json
from supernet.space import Space
from supernet.window import enumerate_archs

SPACE = tiny_space()
ARCHS = list(islice(enumerate_archs(SPACE), 0, 384, 16))


def saved(folder: Path, seed: int, space: Space = SPACE) -> str:
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    state = {"space": space.config, "model": Supernet(space).state_dict(), "config": {"data": {}}, "step": 7}
    checkpoint.save(folder / CHECKPOINT, state)
    write_json(folder / RESULTS, {})
    return str(folder)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    monkeypatch.setattr(job, "make_data", lambda config, device, overrides: NoisyImages())
    loaded: dict[str, Any] = yaml.safe_load((config_dir() / "search.yaml").read_text())
    del loaded["defaults"], loaded["hydra"]
    algorithm = yaml.safe_load((config_dir() / "algorithm" / "random.yaml").read_text())
    return {**loaded, "calibration_images": 32, "device": "cpu", "runs_dir": str(tmp_path), "algorithm": algorithm}


def test_the_ranking_of_two_checkpoints(config: Mapping[str, Any], tmp_path: Path) -> None:
    first, second = saved(tmp_path / "one", 0), saved(tmp_path / "two", 1)
    truth = tmp_path / "truth.json"
    known = {arch: [50.0 + i, 51.0 + i] for i, arch in enumerate(ARCHS)}
    write_json(truth, [{"arch": arch.to_json(), "top1": values} for arch, values in known.items()])
    value = rank(config, [first, second], truth)
    [folder] = (tmp_path / "one" / "search").glob("*-rank")
    results = json.loads((folder / RESULTS).read_text())
    taus = []
    for path in (first, second):
        net = job.open_job({**config, "checkpoint": path}).run.net
        scores = [evaluate_subnet(net, arch, NoisyImages(), "search", 32).top1 for arch in ARCHS]
        taus.append(kendall(scores, range(len(ARCHS))))
    found = [row["all"]["kendall"]["value"] for row in results["checkpoints"].values()]
    assert found == taus
    assert value == results["gt_tau"]["mean"] == pytest.approx(sum(taus) / 2)
    assert results["truth_s_tau"]["mean"] == 1.0
    assert -1 <= results["s_tau"]["mean"] <= 1
    assert len((folder / "scores-1.jsonl").read_text().splitlines()) == 1 + len(ARCHS)
    assert (folder / "scatter.png").read_bytes().startswith(b"\x89PNG")
    assert "agree with each other" in (folder / "report.md").read_text()


def test_checkpoints_of_different_spaces_are_refused(config: Mapping[str, Any], tmp_path: Path) -> None:
    first, second = saved(tmp_path / "one", 0), saved(tmp_path / "two", 1, tiny_space(resolution=(8,)))
    with pytest.raises(UserError, match="different spaces"):
        rank(config, [first, second], tmp_path / "truth.json")
    with pytest.raises(UserError, match="at least one"):
        rank(config, [], tmp_path / "truth.json")


def test_a_supernet_that_does_not_rank_the_best_is_called_so() -> None:
    archs = list(enumerate_archs(SPACE))[:100]
    known = {arch: [float(i)] for i, arch in enumerate(archs)}
    scores = [float(i if i < 90 else 189 - i) for i in range(100)]
    assert "shortlist" in report(compare([scores], known, ["run"]), "truth.csv", "search")
    good = report(compare([list(range(100))], known, ["run"]), "truth.csv", "search")
    assert "shortlist" not in good
    assert "| Kendall's τ-b | 1.000 (1.000 to 1.000) | 1.000 (1.000 to 1.000) |" in good


def test_every_form_of_a_truth(tmp_path: Path) -> None:
    values = {arch: float(i) for i, arch in enumerate(ARCHS)}
    rows = [{"arch": arch.to_json(), "alone": value, "inherited": 0} for arch, value in values.items()]
    write_json(tmp_path / "standalone.json", rows)
    write_json(tmp_path / "rows.json", {"rows": [{"arch": row["arch"], "acc": row["alone"]} for row in rows]})
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["top1", "arch"])
        writer.writerows([value, json.dumps(arch.to_json())] for arch, value in values.items())
        writer.writerow(["[7, 8]", json.dumps(ARCHS[0].to_json())])
    expected = {arch: [value] for arch, value in values.items()}
    assert read_truth(tmp_path / "standalone.json", SPACE) == expected
    assert read_truth(tmp_path / "rows.json", SPACE) == expected
    assert read_truth(tmp_path / "t.csv", SPACE) == {**expected, ARCHS[0]: [0.0, 7.0, 8.0]}


GOOD = {"arch": ARCHS[0].to_json(), "top1": 1.0}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.json", "{", "is damaged"),
        ("t.json", '{"a": 1}', "give a list of rows"),
        ("t.json", "[1]", "row 0: every row needs an arch"),
        ("t.json", json.dumps([GOOD, {"arch": GOOD["arch"]}]), "row 1: every row needs one of top1, alone"),
        ("t.json", json.dumps([GOOD, {"arch": {"depth": 3}, "top1": 1}]), "row 1: an arch of space 'tiny'"),
        ("t.json", json.dumps([GOOD, {"arch": 3, "top1": 1}]), "row 1: "),
        ("t.json", json.dumps([{**GOOD, "top1": "high"}]), "row 0: 'high' is not an accuracy"),
        ("t.json", json.dumps([{**GOOD, "top1": []}]), r"row 0: \[\] is not an accuracy"),
        ("t.json", json.dumps([GOOD, GOOD]), "holds 1 subnets: a ranking needs at least 3"),
        ("t.json", json.dumps([{**GOOD, "top1": 10**400}]), "row 0: 1000.* is not an accuracy"),
        ("t.csv", "arch,top1\n{,3\n", "is damaged"),
        pytest.param("t.csv", f'arch,top1\n"{"x" * 200_000}",1\n', "is damaged.*field limit", id="long field"),
        pytest.param("t.csv", f'arch,top1\n"{"[" * 100_000}",1\n', "is damaged.*recursion", id="deep field"),
        ("none.csv", None, "does not exist"),
        ("none.json", None, "does not exist"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path: Path, name: str, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        read_truth(tmp_path / name, SPACE)


@pytest.mark.parametrize("name", ["t.json", "t.csv"])
def test_a_truth_that_is_a_named_pipe_is_not_waited_for(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / name)
    (tmp_path / "folder.csv").mkdir()

    def opened(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("this would wait for somebody who writes")

    for path in (tmp_path / name, tmp_path / "folder.csv"):
        with monkeypatch.context() as patched:
            patched.setattr("io.open", opened)
            with pytest.raises(UserError, match="is not a file"):
                read_truth(path, SPACE)
