"""What `search.py` does besides a plain search: latency budgets, choosing again, fronts, cached scores, ranking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_search_runner import SPACE, MemoryStub, config, data, searches, trials, with_macs  # noqa: F401

from search import runner
from search.latency.model import LatencyModel
from search.latency.timing import Setting
from supernet import checkpoint
from supernet.cost import Additive, Factor, macs_of
from supernet.errors import UserError
from supernet.evaluate import evaluate_subnet
from supernet.runs import RESULTS
from supernet.space import Arch


def latency_file(folder: Path, conditions: dict[str, Any] | None = None) -> str:
    """A model that takes a second for a thousand MACs, and a millisecond for the rest."""
    factors = [Factor(factor.reads, factor.table * 1e-3) for factor in macs_of(SPACE).factors]
    LatencyModel(SPACE, Additive(SPACE, factors, 1.0), {"conditions": conditions}).save(folder / "latency.json")
    return str(folder)


def results(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / RESULTS).read_text())
    return loaded


def only_latency(config: dict[str, Any], bound: float) -> dict[str, Any]:  # noqa: F811
    return {**config, "constraint": {**config["constraint"], "latency_ms": bound}}


def test_a_latency_budget_binds_every_subnet(config: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    """And replaces the default bound on MACs."""
    bound = 1.0 + 1e-3 * 0.3 * SPACE.plan(SPACE.largest()).macs
    runner.main({**only_latency(config, bound), "latency": latency_file(tmp_path)})
    [folder] = searches(tmp_path)
    found = results(folder)
    assert set(found["budget"]) == {"latency_ms"}
    for arch, metrics in trials(folder):
        assert metrics["latency_ms"] == pytest.approx(1.0 + 1e-3 * SPACE.plan(SPACE.from_json(arch)).macs)
        assert metrics["latency_ms"] <= bound
    assert found["winner"]["latency_ms"] <= bound
    assert "measured_latency" not in found["winner"]  # nobody knows where the model was measured
    assert "latency" in (folder / "report.md").read_text()


def test_the_winner_is_measured_where_the_model_was(config: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    conditions = Setting(threads=1).record()
    runner.main({**only_latency(config, 1e6), "latency": latency_file(tmp_path, conditions), "evaluations": 6})
    measured = results(searches(tmp_path)[0])["winner"]["measured_latency"]
    assert 0 < measured["median_ms"] < 1000
    assert measured["iqr_ms"] >= 0
    runner.main(
        {
            **only_latency(config, 1e6),
            "latency": latency_file(tmp_path, {**conditions, "device_name": "another machine"}),
            "evaluations": 6,
        }
    )
    assert "measured_latency" not in results(searches(tmp_path)[1])["winner"]


def test_latency_needs_a_model_of_this_space(config: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(UserError, match=r"constraint\.latency_ms=2: needs a latency model of space 'tiny'"):
        runner.main(only_latency(config, 2))
    with pytest.raises(UserError, match="latency_ms needs latency=<folder>"):
        runner.main({**config, "objectives": ["top1", "latency_ms"]})


def test_choosing_again_evaluates_nothing_but_the_test(
    config: dict[str, Any],  # noqa: F811
    data: MemoryStub,  # noqa: F811
    tmp_path: Path,
) -> None:
    runner.main(with_macs(config, 1.0))
    [folder] = searches(tmp_path)
    data.read.clear()
    bound = sorted(metrics["macs"] for _, metrics in trials(folder))[8]
    value = runner.main({**with_macs(config, bound), "from": str(folder)})
    assert data.read.count("search") == 0
    again = results(searches(tmp_path)[1])
    inside = [metrics["top1"] for _, metrics in trials(folder) if metrics["macs"] <= bound]
    winner = again["winner"]
    assert winner["macs"] <= bound
    assert winner["metrics"]["search"]["top1"] in inside
    assert value == winner["metrics"][again["decided_by"]]["top1"]
    if again["decided_by"] == "search":
        assert value == max(inside)
    with pytest.raises(UserError, match="none of the 20 subnets of that search is inside"):
        runner.main({**with_macs(config, 10), "from": str(folder)})


def test_scores_of_earlier_searches_are_used(
    config: dict[str, Any],  # noqa: F811
    data: MemoryStub,  # noqa: F811
    tmp_path: Path,
) -> None:
    runner.main(config)
    data.read.clear()
    runner.main({**config, "cache": True})
    first, second = searches(tmp_path)
    assert trials(first) == trials(second)
    assert data.read.count("search") == 0
    assert results(second)["scores_of_earlier_searches"] == results(second)["evaluations"] == 20


@pytest.mark.parametrize("target", ["evolution.Evolution", "coarse_to_fine.CoarseToFine", "random.Random"])
def test_stopping_early_changes_nothing_that_matters(
    config: dict[str, Any],  # noqa: F811
    target: str,
    tmp_path: Path,
) -> None:
    """The same proposals, finalists and winner: a candidate is left only when it can make no difference."""
    algorithm = {"_target_": f"search.{target}"}
    if target.startswith("evolution"):
        algorithm |= {"population": 6, "parents": 3, "patience": 20}  # it starts again
    for stop_early in (False, True):
        runner.main({**config, "algorithm": algorithm, "stop_early": stop_early, "evaluations": 60})
    plain, stopping = map(results, searches(tmp_path))
    assert plain["winner"]["arch"] == stopping["winner"]["arch"]
    first, second = map(trials, searches(tmp_path))
    assert [arch for arch, _ in first] == [arch for arch, _ in second]
    left = [metrics for _, metrics in second if "stopped_after" in metrics]
    assert left or not target.startswith("random")


@pytest.mark.parametrize("target", ["nsga2.Nsga2", "predictor.Predictor", "ageing.Ageing"])
def test_algorithms_that_learn_from_every_score_do_not_stop_early(config: dict[str, Any], target: str) -> None:  # noqa: F811
    algorithm = {"_target_": f"search.{target}", **({"objectives": ["top1", "macs"]} if "nsga2" in target else {})}
    with pytest.raises(UserError, match=r"stop_early=true: .* learns from the scores of bad subnets"):
        runner.main({**config, "algorithm": algorithm, "stop_early": True})


def test_a_model_of_a_device_that_is_not_here(config: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    conditions = {**Setting(threads=1).record(), "device": "cuda", "device_name": "another GPU"}
    file = latency_file(tmp_path, conditions)
    runner.main({**only_latency(config, 1e6), "latency": file, "evaluations": 6})
    assert "measured_latency" not in results(searches(tmp_path)[0])["winner"]


def test_choosing_again_needs_the_same_weights(config: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    import torch

    runner.main(config)
    [folder] = searches(tmp_path)
    file = folder.parents[1] / "checkpoint.pt"
    state = checkpoint.load(file)
    state["model"] = {key: value + torch.ones_like(value) for key, value in state["model"].items()}
    checkpoint.save(file, state)
    with pytest.raises(UserError, match="holds scores of other weights"):
        runner.main({**config, "from": str(folder)})


def test_a_front_of_three_objectives(config: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    algorithm = {"_target_": "search.nsga2.Nsga2", "objectives": ["top1", "macs"], "population": 8}
    runner.main({**config, "algorithm": algorithm, "objectives": ["top1", "macs", "params"]})
    [folder] = searches(tmp_path)
    front = json.loads((folder / "front.json").read_text())
    assert front["objectives"] == ["macs", "params", "top1_search"]
    points = [(-row["top1_search"], row["macs"], row["params"]) for row in front["rows"]]
    assert not [p for p in points for q in points if q != p and all(a <= b for a, b in zip(q, p, strict=True))]
    for wrong in (["macs", "params"], ["top1"], ["top1", "top1"], ["top1", "color"]):
        with pytest.raises(UserError, match="objectives"):
            runner.main({**config, "objectives": wrong})


def test_ranking_against_known_accuracies(
    config: dict[str, Any],  # noqa: F811
    data: MemoryStub,  # noqa: F811
    tmp_path: Path,
) -> None:
    """The scores themselves as the truth: a perfect ranking; their negatives: the worst."""
    from search import job

    opened = job.open_job({**config, "arch": "smallest"})
    known: list[Arch] = [SPACE.from_json(row) for row in _spread()]
    top1 = [evaluate_subnet(opened.run.net, arch, data, "search", 32).top1 for arch in known]
    for sign in (1, -1):
        truth = tmp_path / "truth.json"
        truth.write_text(
            json.dumps([{"arch": a.to_json(), "top1": sign * t} for a, t in zip(known, top1, strict=True)])
        )
        tau = runner.main({**config, "mode": "rank", "truth": str(truth)})
        assert tau == pytest.approx(sign)
    with pytest.raises(UserError, match="mode=rank needs truth="):
        runner.main({**config, "mode": "rank"})
    with pytest.raises(UserError, match="mode=rankk: choose one of search, latency, rank"):
        runner.main({**config, "mode": "rankk"})


def _spread() -> list[dict[str, Any]]:
    import numpy as np

    return [arch.to_json() for arch in dict.fromkeys(SPACE.sample(np.random.default_rng(0), n=12))]
