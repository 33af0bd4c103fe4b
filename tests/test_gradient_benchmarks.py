"""Benchmarks of gradient-based search: their figures against known answers, and that no search is done twice."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny import tiny_space
from tiny_run import only_run, tiny_config
from torch import nn

sys.path.append(str(Path(__file__).parents[1]))  # benchmarks are not installed
from benchmarks import gradient_budget, gradient_toy, mixture
from benchmarks.gradient_plot import plot
from benchmarks.gradient_toy import Oracle
from benchmarks.truth import Truth
from search.gradient.trace import TRACE
from supernet import job
from supernet.errors import UserError
from supernet.net import Supernet
from supernet.runs import RESULTS, read_json, write_json
from supernet.window import enumerate_archs

CPU = torch.device("cpu")


# Mixtures ----------------------------------------------------------------------------------------------------------


def test_saved_bytes_count_every_storage_once_and_no_parameter() -> None:
    layer = nn.Linear(10, 10, bias=False)
    x = torch.randn(25, 10)  # 1,000 bytes

    def call() -> None:
        y = layer(x)  # keeps x and the weight
        z = y.relu()  # keeps z
        (z * z.view(5, 50).view(25, 10)).sum()  # keeps z twice, one storage

    assert mixture.saved_bytes(layer, call) == 2000


def test_peak_bytes_see_what_is_freed_again() -> None:
    def call() -> None:
        big = torch.zeros(1000)
        del big
        small, other = torch.zeros(400), torch.zeros(300)
        del small, other

    assert mixture.peak_bytes(call, CPU) == 4000


def test_memory_tells_activations_from_the_rest() -> None:
    """More options of the same largest size cost a mixture nothing; the check finds it where they do."""
    rows = mixture.memory((2, 5), CPU, ("vit",))
    assert [row["options"] for row in rows] == [2, 5]
    assert mixture.grows(rows) == []
    for row in rows:
        largest, mixed = row["arms"][mixture.LARGEST], row["arms"][mixture.BOTH]
        assert mixed["per_image"] >= largest["per_image"] > 0
        assert mixed["fixed"] > largest["fixed"] >= 0  # gated weights
    mixed = rows[1]["arms"][mixture.BOTH]
    for key, growth in (("per_image", 1.001), ("peak", 1.03)):
        worse = {**rows[1], "arms": {mixture.BOTH: {**mixed, key: growth * mixed[key]}}}
        assert mixture.grows([worse, rows[0]]) == ["vit, width"]


def test_a_step_trains_what_its_arm_says() -> None:
    for arm, (weights, probs) in {mixture.LARGEST: (True, False), **mixture.LEARNS}.items():
        bench = mixture.Bench(Supernet(tiny_space()), 8, 4)
        bench.prepare(arm)
        bench.step(arm)
        assert any(p.grad is not None for p in bench.net.parameters()) == weights
        assert any(logits.grad is not None for logits in bench.logits) == probs
        assert bench.space.resolution(bench.largest) == 8


def test_ratios_compare_inside_rounds() -> None:
    """The machine gets ten times slower after the first round, which is no matter."""
    machine = np.array([1.0, 10.0, 10.0])
    found = {mixture.LARGEST: machine, mixture.BOTH: machine * [1.1, 1.2, 1.6]}
    row = mixture.ratios(found)[mixture.BOTH]
    assert (row["ratio"], row["q1"], row["q3"]) == pytest.approx((1.2, 1.15, 1.4))
    facts = {"limited": True, "arms": {mixture.BOTH: {"ratio": 1.31}}}
    assert mixture.slow({"a": facts, "b": {**facts, "limited": False}}) == ["a"]


def test_the_time_of_a_space_is_measured() -> None:
    setting = mixture.Setting(28, 2, channels=1)
    facts = mixture.time_space("mbv3_tiny", setting, 1, CPU)
    assert list(facts["arms"]) == [mixture.LARGEST, *mixture.LEARNS]
    assert facts["arms"][mixture.LARGEST]["ratio"] == 1
    assert all(row["ms"] > 0 for row in facts["arms"].values())
    assert next(mixture.time_tables({"mbv3_tiny": facts})).row_count == 4


# The toy cell ------------------------------------------------------------------------------------------------------

SPACE = tiny_space(resolution=(8,))


def pairwise(arch: Any) -> float:
    """An accuracy that two genes decide together."""
    code = SPACE.encode(arch)
    return 80.0 + 2.0 * code[1] - code[2] + 3.0 * code[1] * code[2]


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    archs = list(enumerate_archs(SPACE))
    given = [archs[i] for i in np.random.default_rng(0).permutation(len(archs))[: len(archs) // 2]]
    return Oracle(Truth(tuple(given), np.array([[pairwise(arch)] for arch in given])), SPACE)


def search_folder(folder: Path, seed: int, archs: list[Any], select: str = "decoded.Decoded") -> Path:
    """What a search leaves that decoded `archs` and chose the last."""
    folder.mkdir()
    (folder / TRACE).write_text("".join(json.dumps({"decoded": arch.to_json()}) + "\n" for arch in archs))
    algorithm = {"name": "tangle", "select": {"_target_": f"search.gradient.select.{select}"}}
    winner = {"arch": archs[-1].to_json(), "metrics": {"test": {"top1": 70.0}}}
    write_json(folder / RESULTS, {"seed": seed, "learned_seconds": 60, "algorithm": algorithm, "winner": winner})
    return folder


def test_published_rows_are_looked_up_and_others_predicted(oracle: Oracle) -> None:
    archs = list(enumerate_archs(SPACE))
    missing = [arch for arch in archs if arch not in oracle.known]
    assert missing
    for arch in missing:
        value = oracle(arch)
        assert not value.published
        assert value.top1 == pytest.approx(pairwise(arch), abs=0.1)
    best = max(oracle.known, key=pairwise)
    assert (oracle(best).top1, oracle(best).published, oracle(best).percentile) == (pairwise(best), True, 100.0)
    worst = min(oracle.known, key=pairwise)
    share = np.mean([pairwise(arch) == pairwise(worst) for arch in oracle.known])
    assert oracle(worst).percentile == pytest.approx(100 * share)


def test_predictions_are_judged_on_rows_left_out() -> None:
    rng = np.random.default_rng(1)
    inputs, noise = rng.normal(size=(60, 50)), rng.normal(size=60)
    found = gradient_toy.cross_validated(inputs, noise)  # nothing to be found, though 50 numbers could fit much
    assert found["error"] > 0.9 * found["error_of_mean"]
    assert abs(found["tau"]) < 0.3
    exact = gradient_toy.cross_validated(inputs[:, :5], inputs[:, :5].sum(axis=1))
    assert exact["tau"] > 0.99
    assert exact["error"] < 0.1


def test_summary_of_searches(tmp_path: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    known = sorted(oracle.known, key=pairwise)
    missing = [arch for arch in enumerate_archs(SPACE) if arch not in oracle.known]
    folders = [
        search_folder(tmp_path / "a", 1, [known[0], known[-1]]),
        search_folder(tmp_path / "b", 0, [missing[0], known[-1]]),
        search_folder(tmp_path / "c", 0, [known[-1], missing[0]], "perturb.Perturb"),
    ]
    monkeypatch.setattr(gradient_toy, "WANTED_MEAN", pairwise(known[-1]))
    monkeypatch.setattr(gradient_toy, "WANTED_LEAST", pairwise(known[-1]) - 1)
    found = gradient_toy.summary([gradient_toy.read_search(folder, SPACE) for folder in folders], oracle)
    decoded, perturbed = found["methods"]["tangle"], found["methods"]["tangle, perturb"]
    assert [row["seed"] for row in decoded["seeds"]] == [0, 1]
    assert decoded["published"] == {"mean": pairwise(known[-1]), "sd": 0.0, "n": 2, "least": pairwise(known[-1])}
    assert decoded["verdict"].startswith("reached")
    assert decoded["seeds"][0]["epochs"]["published"] == [False, True]
    assert decoded["seeds"][1]["epochs"]["top1"] == [pairwise(known[0]), pairwise(known[-1])]
    assert perturbed["published"]["n"] == 0
    assert perturbed["verdict"].startswith("open, 1 of 1")
    assert gradient_toy.verdict([{"published": True, "top1": 0.0}, {"published": False}]).startswith("missed")
    plot(tmp_path / "toy.png", found)
    assert (tmp_path / "toy.png").stat().st_size > 1000


def test_unfinished_and_foreign_searches_are_refused(tmp_path: Path, oracle: Oracle) -> None:
    folder = search_folder(tmp_path / "a", 0, [next(iter(oracle.known))])
    with pytest.raises(UserError, match="no gradient-based search of tiny"):
        gradient_toy.read_search(folder, tiny_space(resolution=(12,)))
    (folder / RESULTS).unlink()
    with pytest.raises(UserError, match=r"results\.json is missing"):
        gradient_toy.read_search(folder, SPACE)


# Budgets -----------------------------------------------------------------------------------------------------------


def test_evaluations_fill_the_time() -> None:
    assert gradient_budget.evaluations(100.0, 1.0, 2.0, 10) == 80
    assert gradient_budget.evaluations(27.0, 1.0, 2.0, 10) == 9  # fewer than finalists: all are scored on both splits
    assert gradient_budget.evaluations(0.1, 1.0, 2.0, 10) == 1
    results = {"learned_seconds": 50.0, "evaluations": 3, "seconds_per_candidate": 2.0, "finalists": 3}
    assert gradient_budget.gradient_seconds(results, 1.0) == 59.0
    assert gradient_budget.evolution_seconds(results, 1.0) == 9.0


def test_budgets_from_a_training_run_to_the_table(tmp_path: Path) -> None:
    job.main(tiny_config(tmp_path, "train.epochs=1", "train.test=false", "train.save_every=1000"))
    options = argparse.Namespace(
        checkpoint=only_run(tmp_path),
        budgets=["60%"],
        seeds=1,
        set=["calibration_images=64"],
        gradient=["algorithm.epochs=2", "algorithm.arch_lr=0.1"],
        evolution=["algorithm.population=2", "finalists=2"],
        device="cpu",
        runs=tmp_path / "benchmark",
    )
    study = gradient_budget.make_study(options)
    gradient_budget.run(study, Console(quiet=True))
    found = gradient_budget.summary(study)
    both = found["budgets"]["60%"]
    for arm in gradient_budget.ARMS:
        (row,) = both[arm]["seeds"]
        assert both[arm]["met"]
        assert row["met"]
        assert 0 < row["test"] <= 100
        results = gradient_budget.finished(study, arm, "60%", 0)
        assert results is not None
        assert row["macs"] <= results["budget"]["macs"][1]
    timing = read_json(study.folder("evolution", "60%", 0) / gradient_budget.TIMING)
    assert both["evolution"]["seeds"][0]["evaluations"] <= timing["evaluations"]  # the space may hold fewer
    assert timing["gradient"] == pytest.approx(both["gradient"]["seeds"][0]["seconds"])
    assert str(tmp_path) not in json.dumps({key: found[key] for key in ("run", "overrides", "budgets")})
    assert gradient_budget.table(found).row_count == 2

    before = sorted(path for path in study.root.rglob("*") if path.is_file())
    gradient_budget.run(study, Console(quiet=True))
    assert sorted(path for path in study.root.rglob("*") if path.is_file()) == before
    options.gradient = ["algorithm.epochs=3"]
    with pytest.raises(UserError, match=r"other settings.*algorithm"):
        gradient_budget.search_once(gradient_budget.make_study(options), "gradient", "60%", 0)
