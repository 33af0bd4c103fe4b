"""Mistakes in gradient-based searches are one line; the estimate of dry_run; figures."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tiny import big_space
from tiny_gradient import FRESH, make_learner, search_config, state_of
from tiny_run import REPOSITORY, start, tiny_config

from search import runner
from search.constraint import Constraint
from search.finish import validate
from search.gradient.figures import plot_trace
from search.gradient.study import estimate, run_gradient
from search.gradient.trace import Record, Trace
from search.job import open_job
from supernet import job
from supernet.distributed import Ranks
from supernet.errors import UserError


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained supernet of the tiny space."""
    folder = tmp_path_factory.mktemp("trained")
    job.main(tiny_config(folder, "train.epochs=1"))
    (run,) = (folder / "runs" / "train").iterdir()
    return run


# Mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("algorithm.epochs=0",), r"epochs=0: must be at least 1"),
        (("algorithm.warmup_epochs=2",), r"warmup_epochs=2: must be from 0 to below epochs=2"),
        (("algorithm.weights=frozen",), r"algorithm.weights=frozen: initial weights must learn"),
        (("algorithm.weights=some",), r"algorithm.weights=some"),
        (("algorithm.mix=foo",), r"algorithm.mix=foo.*say algorithm/mix=<file>"),
        (("algorithm.arch_lr=0",), r"arch_lr=0.*must be positive"),
        (("algorithm.select.interval=1",), r"interval"),
        (("algorithm.batch_size=900",), r"train_portion=0.5 leaves .* fewer than one batch of 900"),
        (("algorithm.partial_channels=4",), r"partial_channels=4: this space has no cells"),
        (("constraint.macs=10",), r"constraint"),
        (("baseline=random",), r"baseline=random goes with searches that score subnets"),
        (("stop_early=true",), r"stop_early=true goes with searches that score subnets"),
        (("arch=largest",), r"arch=largest needs trained weights"),
        (("from=runs/search/x",), r"from=runs/search/x needs trained weights"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("dry", [False, True])
def test_mistakes_are_one_clear_line(words: tuple[str, ...], said: str, dry: bool, tmp_path: Path) -> None:
    config = search_config(tmp_path, "tangle", FRESH, f"dry_run={str(dry).lower()}")
    changes: Any = OmegaConf.from_dotlist(list(words))
    changed: Any = OmegaConf.to_container(OmegaConf.merge(config, changes))
    with pytest.raises(UserError, match=said) as caught:
        runner.main(changed)
    assert len(str(caught.value).splitlines()) == 1
    assert not list((tmp_path / "runs").rglob("results.json"))


@pytest.mark.parametrize("algorithm", ["tangle", "snas", "rarts"])
def test_a_loss_that_is_not_finite_keeps_the_last_good_state(algorithm: str, tmp_path: Path) -> None:
    learner = make_learner(tmp_path, algorithm)
    learner.run()
    before = state_of(tmp_path)
    learner.total_steps *= 2
    with torch.no_grad():
        next(learner.nets[-1].parameters()).fill_(torch.nan)
    said = rf"became NaN or infinite by step {learner.step + 1}: lower algorithm\.optim\.lr.*still good$"
    with pytest.raises(UserError, match=said):
        learner.run()
    after = state_of(tmp_path)
    assert after["step"] == before["step"] == learner.total_steps // 2
    assert torch.equal(after["arch"]["flat"], before["arch"]["flat"])
    assert all(value.isfinite().all() for net in after["nets"] for value in net.values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    learner = make_learner(tmp_path, "rarts")
    learner.save_state()
    with torch.no_grad():
        next(learner.nets[1].parameters()).fill_(torch.inf)
    with pytest.raises(UserError, match="a weight became NaN or infinite"):
        learner.save_state()
    assert all(value.isfinite().all() for net in state_of(tmp_path)["nets"] for value in net.values())


def test_one_process_only(tmp_path: Path) -> None:
    job = replace(open_job(search_config(tmp_path, "tangle", FRESH)), ranks=Ranks(0, 2))
    for attempt in (lambda: run_gradient(job, "tangle"), lambda: estimate(job)):
        with pytest.raises(UserError, match="runs in one process: start it without torchrun"):
            attempt()
    assert not (tmp_path / "runs").exists()


def test_checkpoints_of_groups_are_refused(tmp_path: Path) -> None:
    job.main(tiny_config(tmp_path, "sharing=groups", "sharing.groups=2", "train.epochs=1"))
    (run,) = (tmp_path / "runs" / "train").iterdir()
    with pytest.raises(UserError, match="needs one supernet"):
        runner.main(search_config(tmp_path, "tangle", f"checkpoint={run}"))


def test_one_subnet_is_evaluated_whatever_the_algorithm(trained: Path, tmp_path: Path) -> None:
    config = search_config(tmp_path, "darts", f"checkpoint={trained}", "arch=smallest")
    job = open_job(config)
    assert runner.main(config) == validate(job, job.budget.space.smallest()).top1


def test_an_unknown_part_on_the_command_line() -> None:
    environment = ["search.py", "algorithm=tangle", "algorithm/mix=foo"]
    process = start(sys.executable, str(REPOSITORY / environment[0]), *environment[1:])
    out, error = process.communicate(timeout=600)
    assert process.returncode == 2
    assert out == ""
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert "foo" in error
    assert "dirichlet" in error


# The estimate ---------------------------------------------------------------------------------------------------


def test_the_estimate_of_a_fresh_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("algorithm/select=perturb", "algorithm.select.interval=3", "algorithm.warmup_epochs=1")
    assert runner.main(search_config(tmp_path, "tangle", FRESH, "dry_run=true", *words)) == 0.0
    out = capsys.readouterr().out
    found = re.search(r"time per step: ([\d.]+) s, ([\d.]+) s where the weights learn alone", out)
    assert found
    both, alone = map(float, found.groups())
    told = re.search(r"estimated time: (\d+) s for 4 steps \(2 epochs of 2\)", out)
    assert told
    assert int(told[1]) == pytest.approx(2 * both + 2 * alone, abs=1)
    assert re.search(r"selection: up to \d+ s more for 6 epochs of tuning", out)
    assert "evaluations" not in out
    assert not (tmp_path / "runs").exists()


def test_the_estimate_on_a_trained_supernet(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in trained.iterdir())
    runner.main(search_config(tmp_path, "proxyless", f"checkpoint={trained}", "dry_run=true", "algorithm.epochs=50"))
    out = capsys.readouterr().out
    found = re.search(r"estimated time: \d+ s for ([\d,]+) steps \(50 epochs of (\d+)\)", out)
    assert found
    assert int(found[1].replace(",", "")) == 50 * int(found[2])
    assert "weights learn alone" not in out
    assert "tuning" not in out
    assert sorted(path.name for path in trained.iterdir()) == before


# Figures --------------------------------------------------------------------------------------------------------


def test_figures_of_many_genes(tmp_path: Path) -> None:
    space = big_space()
    budget = Constraint(macs="auto").on(space)
    trace = Trace(tmp_path, space, budget)
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(len(gene.options), generator=generator) for gene in space.genes]
    for epoch in range(1, 31):
        probs = [(epoch / 8 * vector).softmax(0).tolist() for vector in logits]
        arch = space.smallest()
        entropy = [1.0 / epoch for _ in space.genes]
        losses = {"train": 2.3 / epoch, "val": 2.4 / epoch}
        costs = budget.costs(arch)
        expected = {"macs": costs["macs"] * 3}
        trace.add(Record(epoch, epoch, 0.0, losses, 0.1, expected, {}, entropy, probs, arch.to_json(), costs))
    plot_trace(tmp_path, trace)
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("probabilities.png", "search.png"))
    assert len(trace.line(trace.records[-1]).splitlines()) == 1
    again = Trace(tmp_path, space, budget)
    again.loads(trace.dumps())
    assert again.dumps() == trace.dumps()
