"""The comparison with published accuracies: its figures against independent ones, and that no work is done twice."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.stats import kendalltau, ttest_1samp
from tiny_run import OVERRIDES, spaces

sys.path.append(str(Path(__file__).parents[1]))  # benchmarks are not installed
from benchmarks import arms, ground_truth, methods
from benchmarks.ground_truth import Method, Study, run, summary, table
from benchmarks.ground_truth_plot import plot
from benchmarks.statistics import interval, paired, spread
from benchmarks.truth import READERS, Truth, ceiling, ceilings, figures, read_truth
from supernet.build import build, make_data, open_run
from supernet.course import Course
from supernet.errors import UserError
from supernet.evaluate import evaluate_subnet
from supernet.horizon import Horizon
from supernet.models import macro
from supernet.net import Supernet
from supernet.runs import RESULTS, read_json

QUIET = Console(quiet=True)
METHODS = {
    "spos2": Method(("sampler=uniform", "sampler.num_random=2")),
    "spos1": Method(("sampler=uniform", "sampler.num_random=1"), epochs=2),
}


def study_in(folder: Path) -> Study:
    """The eight subnets of the tiny space, whose truth is their number of parameters."""
    overrides = (f"hydra.searchpath=[file://{spaces(folder)}]", *OVERRIDES, "train.test=false", "train.batch_size=512")
    data, space = arms.open_data(arms.composed(overrides))
    archs = tuple(dict.fromkeys(space.sample(np.random.default_rng(0), n=60)))
    assert len(archs) == space.size() == 8
    top1 = np.array([[space.plan(arch).params / 1e4] for arch in archs])
    return Study(space, Truth(archs, top1), METHODS, 1, data.steps_per_epoch(), folder / "runs", 100, overrides)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = study_in(tmp_path_factory.mktemp("study"))
    run(study, list(METHODS), 2, "all", "cpu", QUIET)
    return study


def files(study: Study) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns for path in study.root.rglob("*") if path.suffix in (".pt", ".json", ".jsonl")
    }


# A whole comparison ----------------------------------------------------------------------------------------------


def test_scores_are_those_of_calibrated_subnets_and_tau_is_scipys(done: Study) -> None:
    found = summary(done, (0.1,))
    assert list(found["methods"]) == list(METHODS)
    folder = arms.finished(done.folder("spos2", 1))
    assert folder is not None
    opened = open_run(folder, torch.device("cpu"))
    data = make_data({**opened.config, "data": opened.config["data"]}, torch.device("cpu"))
    predicted = ground_truth.predictions(done, "spos2")[1]
    whole = [
        evaluate_subnet(opened.net, arch, data, "test", ground_truth.CALIBRATION_IMAGES) for arch in done.truth.archs
    ]
    # 100 of 360 images are scored: the same numbers only where all of them are.
    again = arms.scores(folder, done.truth.archs, done.root / "whole.jsonl", None, ground_truth.CALIBRATION_IMAGES)
    assert again == [each.top1 for each in whole]
    assert predicted != again
    tau = kendalltau(predicted, done.truth.top1, variant="b").statistic
    assert found["methods"]["spos2"]["seeds"][1]["tau"] == pytest.approx(tau)
    taus = [found["methods"]["spos2"]["seeds"][seed]["tau"] for seed in (0, 1)]
    assert found["methods"]["spos2"]["tau"]["mean"] == pytest.approx(np.mean(taus))
    assert found["references"]["params"]["tau"] == 1.0


def test_every_method_makes_as_many_passes(done: Study) -> None:
    found = summary(done, (0.1,))["methods"]
    assert found["spos1"]["passes"] == found["spos2"]["passes"] == 2 * done.steps_per_epoch
    assert found["spos1"]["seeds"][0]["steps"] == 2 * found["spos2"]["seeds"][0]["steps"]


def test_nothing_is_done_twice(done: Study) -> None:
    before = files(done)
    run(done, list(METHODS), 2, "all", "cpu", QUIET)
    assert files(done) == before


def test_cut_off_scores_are_completed(done: Study) -> None:
    file = done.scores("spos2", 0)
    text = file.read_text()
    lines = text.splitlines(keepends=True)
    file.write_text("".join(lines[:5]) + lines[5][:20])
    assert ground_truth.predictions(done, "spos2").keys() == {1}
    run(done, ["spos2"], 1, "all", "cpu", QUIET)
    rows = {json.dumps(json.loads(line)) for line in text.splitlines()}
    assert {json.dumps(row) for row in arms.read_rows(file)} == rows


def test_results_can_be_shown(done: Study, tmp_path: Path) -> None:
    found = summary(done, (0.1,))
    first = {name: ground_truth.predictions(done, name)[0] for name in METHODS}
    plot(tmp_path / "picture.png", found, done.truth.top1, first)
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert table(found).row_count == len(METHODS) + 2 + 2  # sizes; the ceiling without and with other images


def test_a_stopped_training_is_resumed(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    config, root = study.config("spos1", 0), study.folder("spos1", 0)
    whole = arms.train_once(config, root)
    (whole / RESULTS).unlink()
    again = arms.train_once(config, root)
    assert again == whole
    assert "resumed" in (whole / "log.txt").read_text()


def test_a_run_with_other_settings_is_refused(done: Study) -> None:
    config = done.config("spos2", 0)
    root = done.folder("spos2", 0)
    assert arms.train_once({**config, "device": "auto", "runs_dir": "elsewhere"}, root)
    with pytest.raises(UserError, match=r"other settings \(optim\.lr\)"):
        arms.train_once({**config, "optim": {**config["optim"], "lr": 0.3}}, root)


def test_one_failure_does_not_stop_the_others(done: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []

    def train_once(config: dict[str, Any], root: Path) -> Path:
        seen.append((root.name, config["seed"]))
        raise UserError("a loss is no longer finite")

    monkeypatch.setattr(arms, "train_once", train_once)
    run(done, list(METHODS), 2, "train", "cpu", QUIET)
    assert seen == [("spos2-0", 0), ("spos1-0", 0), ("spos2-1", 1), ("spos1-1", 1)]  # all methods of a seed first


def test_another_process_holds_an_arm(done: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    monkeypatch.setattr(arms, "train_once", lambda config, root: trained.append(root.name))
    with arms.hold(done.folder("spos2", 0)):
        run(done, list(METHODS), 1, "train", "cpu", QUIET)
    assert trained == ["spos1-0"]


# Equal work ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ground_truth.methods(4) if name != "spos1"])
def test_methods_make_four_passes_a_step(name: str, done: Study) -> None:
    config = arms.composed((*done.overrides, *ground_truth.methods(4)[name].overrides))
    assert arms.passes(config, done.space, Horizon(5, 10)) == 40


@pytest.mark.parametrize("phases", ["single", "deps"])
def test_passes_are_those_of_the_trainer(phases: str, done: Study) -> None:
    config = arms.composed((*done.overrides, f"phases={phases}", "sampler=sandwich"))
    horizon = Horizon(4, 40)
    course = Course(config, Supernet(done.space), 100, horizon)
    loss: Any = None
    assert arms.passes(config, done.space, horizon) == sum(len(course.slots(step, loss)) for step in range(40))


@pytest.mark.parametrize("share", [0.6, 1.0])
def test_epochs_are_chosen_by_passes(share: float, done: Study) -> None:
    shared = {"kl": methods.Method(()), "deps": methods.Method(("phases=deps",), share=share)}
    study = methods.Study(done.space, 4, 20, done.root, done.overrides, shared)
    epochs = study.epochs_of("deps")
    wanted = share * study.passes("kl")(20)
    passes = study.passes("deps")
    off = {other: abs(passes(other) - wanted) for other in range(epochs - 3, epochs + 4)}
    assert off[epochs] == min(off.values())
    assert epochs > share * 20  # the first half costs a pass a step


# Tables and figures ----------------------------------------------------------------------------------------------


def test_tables_are_read(tmp_path: Path) -> None:
    sep, dil = ["sep_conv_3x3"] * 3, ["dil_conv_5x5", "sep_conv_5x5", "dil_conv_3x3"]
    given: dict[str, Any] = {
        "toy_cell": [{"normal": sep, "reduce": dil, "test_top1": 90.5}],
        "conv_macro": [{"width": [8, 32, 64, 128], "kernel": [3, 5, 7, 3], "test_top1": 80.0}],
        "nb_macro": {"01202211": {"top1": [90.0, 91.0, 92.0], "mean": 91.0}},
    }
    for name, rows in given.items():
        (tmp_path / "table.json").write_text(json.dumps(rows))
        truth = read_truth(tmp_path / "table.json", build(name, 10).space)
        (arch,) = truth.archs
        if name == "nb_macro":
            assert macro.arch_string(arch) == "01202211"
            assert truth.top1.tolist() == [91.0]
        else:
            assert {key: arch.to_json()[key] for key in rows[0] if key != "test_top1"} == {
                key: value for key, value in rows[0].items() if key != "test_top1"
            }
    assert set(READERS) == set(ground_truth.SETTINGS)
    (tmp_path / "table.json").write_text(json.dumps({"01202219": {"top1": [90.0]}}))
    with pytest.raises(UserError, match="not a table of space nb_macro"):
        read_truth(tmp_path / "table.json", build("nb_macro", 10).space)


def test_rows_are_the_same_in_every_run() -> None:
    top1 = np.arange(40.0)[:, None]
    space = build("mbv3_tiny", 10).space
    truth = Truth(tuple(space.sample(np.random.default_rng(1), n=40)), top1)
    one, other = truth.subset(10), truth.subset(10)
    assert one.archs == other.archs
    assert len(set(one.top1)) == 10
    assert all(truth.archs[int(value)] == arch for value, arch in zip(one.top1, one.archs, strict=True))
    assert truth.subset(40) is truth


def test_the_ceiling_is_that_of_two_normal_variables() -> None:
    """Kendall's tau is 2/π asin(ρ); the correlation of x and x + noise is sd(x) / sqrt(sd(x)² + sd(noise)²)."""
    true = 90 + np.random.default_rng(0).normal(size=1500)
    expected = 2 / math.pi * math.asin(1 / math.hypot(1, 0.5))
    assert ceiling(true, 0.5, samples=20)["tau"] == pytest.approx(expected, abs=0.015)
    exact = ceiling(true, 0.0, samples=1)
    assert list(exact.values()) == pytest.approx([1.0] * 4)


def test_several_seeds_say_how_noisy_the_table_is() -> None:
    rng = np.random.default_rng(0)
    seeds = 90 + rng.normal(size=(400, 1)) + 0.3 * rng.normal(size=(400, 3))
    truth = Truth((), seeds)
    own, with_images = ceilings(truth, (0.1, 0.2), images=10_000)
    assert own["noise"] == pytest.approx(0.3 / math.sqrt(3), rel=0.1)
    assert not own["assumed"]
    assert with_images["tau"] < own["tau"]
    assumed = ceilings(Truth((), seeds[:, :1]), (0.1, 0.2), images=10_000)
    assert [row["noise"] for row in assumed] == [0.1, 0.1, 0.2, 0.2]


def test_figures_of_the_top_decile() -> None:
    true = np.arange(100.0)
    predicted = true.copy()
    predicted[90:] = predicted[90:][::-1]  # the best ten upside down, everything else in order
    found = figures(predicted, true)
    assert found["tau_top_decile"] == pytest.approx(-1)
    assert found["tau"] == pytest.approx(1 - 2 * 45 / (100 * 99 / 2))
    assert found["top10_precision"] == 1.0
    assert found["top10_best_rank"] == 1.0


def test_intervals_are_students() -> None:
    values, others = {0: 1.0, 1: 2.5, 2: 2.0, 5: 3.0}, {0: 0.5, 1: 2.5, 2: 1.0, 4: 9.0}
    bounds = ttest_1samp(list(values.values()), 0).confidence_interval(0.95)
    found = interval(list(values.values()))
    assert (found["low"], found["high"]) == pytest.approx((bounds.low, bounds.high))
    assert paired(values, others) == interval([0.5, 0.0, 1.0])
    assert spread([1.0, math.nan, 3.0]) == {"mean": 2.0, "sd": pytest.approx(math.sqrt(2)), "n": 2}
    assert math.isnan(spread([1.0])["sd"])


def test_stored_results_are_json(done: Study, tmp_path: Path) -> None:
    from supernet.runs import write_json

    write_json(tmp_path / "found.json", summary(done, (0.1,)))
    assert read_json(tmp_path / "found.json")["rows"] == len(done.truth.archs)
