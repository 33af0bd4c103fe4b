"""Searches that begin with initial weights: what is opened, saved for later, and found again."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tiny_run import SPACE, assert_same, spaces, tiny_config

from search import runner
from search.conclude import describe
from search.fresh import save_weights
from search.gradient.batches import Halves
from search.job import STATE, Job, open_job
from search.settings import GRADIENT
from supernet.build import make_data, open_run
from supernet.data import Batch
from supernet.errors import UserError
from supernet.job import main as train
from supernet.runs import RESULTS, config_dir, new_run, read_json
from supernet.setup import make_net

CPU = torch.device("cpu")
ALGORITHM: dict[str, Any] = {
    "name": "tangle",
    "_target_": GRADIENT,
    "batch_size": 128,
    "epochs": 3,
    "zero_gamma": "none",
    "temperature": 5.0,
}


def composed(folder: Path, *overrides: str) -> dict[str, Any]:
    """`configs/search.yaml` as `search.py` would compose it."""
    search = f"hydra.searchpath=[file://{spaces(folder)}]"
    small = ["evaluations=6", "finalists=2", "device=cpu", f"runs_dir={folder / 'runs'}"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("search", [search, *small, *overrides]), resolve=True)
    return dict(config)


def fresh(folder: Path, *overrides: str) -> dict[str, Any]:
    data = [] if any(word.startswith("data=") for word in overrides) else ["data=digits"]
    return {**composed(folder, "space=tiny", *data, *overrides), "algorithm": dict(ALGORITHM)}


def begin(config: dict[str, Any]) -> tuple[Job, Path]:
    """A search that has written its first checkpoint, and no more."""
    job = open_job(config)
    folder = new_run(job.root, "tangle")
    describe(job.saved_in(folder), folder)
    (folder / STATE).write_bytes(b"")
    return job, folder


def finish(job: Job, folder: Path) -> Path:
    """The training of that search's supernet, which moves every weight."""
    with torch.no_grad():
        for weight in job.run.net.parameters():
            weight.add_(0.01)
    return save_weights(folder, job.run.net, job.run.config, job.images, 33, {"seconds": 1.5})


def make_older(folder: Path) -> None:
    for name in (STATE, "trials.jsonl"):
        if (folder / name).exists():
            os.utime(folder / name, ns=(1, 1))


def test_the_supernet_is_the_one_that_training_would_begin_with(tmp_path: Path) -> None:
    words = ("seed=3", "data=digits", "data.size=8", "data.augment.shift=0")
    job = open_job(fresh(tmp_path, *words))
    training = tiny_config(tmp_path, *words, "train.batch_size=128", "train.zero_gamma=none", "data.resolution=[12,16]")
    data = make_data(training, CPU)
    expected = make_net(training, data, CPU)
    assert job.run.net.space.config == expected.space.config
    state = job.run.net.state_dict()
    assert state.keys() == expected.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in expected.state_dict().items())
    assert job.images.split_record() == data.split_record()
    one, other = next(iter(job.images.train(0))), next(iter(data.train(0)))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert job.batch_size == 128
    shipped = yaml.safe_load((config_dir() / "train.yaml").read_text())["train"]
    expected_train = {**shipped, "epochs": 3, "batch_size": 128, "zero_gamma": "none"}
    assert expected_train.pop("channels_last") == "auto"
    train_config = dict(job.run.config["train"])
    assert train_config.pop("channels_last") is True
    assert train_config == expected_train
    assert job.calibration_images == 512
    assert job.root == tmp_path / "runs" / "search"


def test_settings_of_the_data(tmp_path: Path) -> None:
    job = open_job(fresh(tmp_path, "data.eval_batch_size=50", "seed=2", "calibration_images=64"))
    shipped = yaml.safe_load((config_dir() / "data" / "digits.yaml").read_text())
    same = {key: job.run.config["data"][key] for key in shipped if key not in ("seed", "eval_batch_size", "batch_size")}
    assert same.items() <= shipped.items()
    assert [job.run.config["data"][key] for key in ("seed", "eval_batch_size", "batch_size")] == [2, 50, 128]
    assert job.calibration_images == 64
    assert len(job.images.evaluation("val", 16)[0][1]) == 50
    without = fresh(tmp_path)
    del without["algorithm"]["batch_size"]
    assert open_job(without).batch_size == 64


def test_what_is_said_about_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, *others = open_job(fresh(tmp_path, "seed=5")).facts()
    assert first == "supernet: space 'tiny' from initial weights (seed 5)"
    assert others[0].startswith("space 'tiny': ")
    runner.main(composed(tmp_path, "space=tiny", "data=digits", "algorithm=tangle", "dry_run=true"))
    assert "from initial weights (seed 0)" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_the_setup_tells_seeds_and_data_apart(tmp_path: Path) -> None:
    setups = [open_job(fresh(tmp_path, *words)).setup() for words in ((), (), ("seed=1",), ("data.split_seed=1",))]
    assert setups[0] == setups[1]
    assert setups[0]["weights"] != setups[2]["weights"]
    assert setups[0]["data"] != setups[3]["data"]


def test_what_it_has_trained_can_be_searched_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job, folder = begin(fresh(tmp_path))
    run = finish(job, folder)
    assert read_json(run / RESULTS) == {"steps": 33, "splits": dict(job.images.sizes), "seconds": 1.5}
    opened = open_run(run, CPU)
    trained = job.run.net.state_dict()
    assert opened.step == 33
    assert all(torch.equal(value, trained[key]) for key, value in opened.net.state_dict().items())
    value = runner.main(composed(tmp_path, f"checkpoint={run}", "calibration_images=64"))
    [search] = (run / "search").iterdir()
    results = json.loads((search / RESULTS).read_text())
    assert results["winner"]["metrics"]["val"]["top1"] == value
    assert results["data"] == "digits"
    assert "has not ended" not in capsys.readouterr().out


def test_its_subnets_can_be_tuned(tmp_path: Path) -> None:
    job, folder = begin(fresh(tmp_path, "data=digits", "data.size=8"))
    run = finish(job, folder)
    config = tiny_config(tmp_path, f"init_from={run}", "arch=smallest", "train.epochs=1", "optim.lr=1.0e-9")
    train(config)
    [tuned] = (tmp_path / "runs" / "subnet").iterdir()
    arch = job.budget.space.smallest()
    inherited = open_run(run, CPU).net.extract(arch).state_dict()
    net = open_run(tuned, CPU).net
    for key, value in net.extract(net.space.largest()).state_dict().items():
        assert torch.allclose(value, inherited[key], atol=1e-6), key


@pytest.mark.parametrize("resume", ["folder", "auto"])
@pytest.mark.parametrize("repeat", [True, False])
def test_an_interrupted_one_is_found_again(tmp_path: Path, resume: str, repeat: bool) -> None:
    words = ("seed=4", "data=digits", "data.size=8", "constraint.macs=0.7")
    first, folder = begin(fresh(tmp_path, *words))
    named = f"resume={folder if resume == 'folder' else 'auto'}"
    # Whether or not space, data and algorithm are repeated; the rest must be, as for all searches.
    again = fresh(tmp_path, *words, named) if repeat else composed(tmp_path, words[0], words[3], named)
    setup = first.setup()
    job = open_job(again)
    assert job.resumable() == folder
    assert job.setup() == setup
    assert job.config["algorithm"] == ALGORITHM
    assert job.batch_size == first.batch_size
    finish(first, folder)  # if it was interrupted after that, it still begins where it began
    assert first.setup() != setup
    assert open_job(again).setup() == setup
    (folder / RESULTS).write_text("{}")
    with pytest.raises(UserError, match=r"finished|no unfinished search"):
        open_job(again).resumable()


def test_a_bare_resume_ends_as_the_whole_search_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (
        "space=tiny",
        "algorithm=tangle",
        "algorithm.epochs=2",
        "data=digits",
        "data.size=8",
        "data.resolution=[8]",
    )
    whole = runner.main(composed(tmp_path / "whole", *words))
    passes, calls = Halves._passes, count()

    def stopping(self: Halves, epoch: int, order: torch.Tensor, first: int) -> Iterator[Batch]:
        for batch in passes(self, epoch, order, first):
            if next(calls) == 10:
                signal.raise_signal(signal.SIGINT)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Halves, "_passes", stopping)
        with pytest.raises(KeyboardInterrupt):
            runner.main(composed(tmp_path, *words))
    [folder] = (tmp_path / "runs" / "search").iterdir()
    assert not (folder / "supernet").exists()
    assert runner.main(composed(tmp_path, "resume=auto")) == whole
    [first] = (tmp_path / "whole" / "runs" / "search").iterdir()
    one, other = (open_run(run / "supernet", CPU) for run in (first, folder))
    assert one.step == other.step > 6
    assert_same(dict(other.net.state_dict()), dict(one.net.state_dict()))


def test_auto_is_the_newest_of_all_searches(tmp_path: Path) -> None:
    job, old = begin(fresh(tmp_path))
    run = finish(job, old)
    _, new = begin(fresh(tmp_path))
    inner = run / "search" / "20260101-000000-evolution"
    inner.mkdir(parents=True)
    described = open_job(composed(tmp_path, f"checkpoint={run}"))
    describe(described, inner)
    (inner / "trials.jsonl").write_text("")
    auto = composed(tmp_path, "resume=auto")

    make_older(old)
    make_older(inner)
    assert open_job(auto).resumable() == new
    (inner / "trials.jsonl").write_text("")
    make_older(new)
    job = open_job(auto)
    assert (job.resumable(), job.run.source) == (inner, run)
    assert not job.settings.is_fresh
    assert open_job(fresh(tmp_path, "resume=auto")).resumable() in (old, new)


def test_choosing_again_takes_the_trained_weights(tmp_path: Path) -> None:
    job, folder = begin(fresh(tmp_path))
    run = finish(job, folder)
    again = open_job(composed(tmp_path, f"from={folder}"))
    assert again.run.source == run
    assert torch.equal(next(again.run.net.parameters()), next(job.run.net.parameters()))


def test_one_that_trains_trained_weights_further_begins_where_it_began(tmp_path: Path) -> None:
    run = finish(*begin(fresh(tmp_path)))
    config = {**composed(tmp_path, f"checkpoint={run}"), "algorithm": dict(ALGORITHM)}
    job, folder = begin(config)
    assert folder.parent == run / "search"
    setup = job.setup()
    finish(job, folder)  # interrupted after that
    again = open_job(composed(tmp_path, f"resume={folder}"))
    assert (again.setup(), again.resumable()) == (setup, folder)
    assert open_job(composed(tmp_path, f"from={folder}")).run.source == folder / "supernet"


def test_a_search_of_another_kind_is_not_gone_on_with(tmp_path: Path) -> None:
    job, folder = begin(fresh(tmp_path))
    run = finish(job, folder)
    inner = run / "search" / "20260101-000000-evolution"
    inner.mkdir(parents=True)
    describe(open_job(composed(tmp_path, f"checkpoint={run}")), inner)
    (inner / "trials.jsonl").write_text("")
    other = {**composed(tmp_path, f"resume={inner}"), "algorithm": ALGORITHM}
    with pytest.raises(UserError, match="begun with algorithm=evolution, which algorithm=tangle cannot"):
        open_job(other).resumable()


def test_batches_of_a_trained_supernet_are_those_of_the_algorithm_too(tmp_path: Path) -> None:
    job, folder = begin(fresh(tmp_path))
    run = finish(job, folder)
    config = composed(tmp_path, f"checkpoint={run}")
    assert open_job(config).batch_size == 128
    again = open_job({**config, "algorithm": {**ALGORITHM, "batch_size": 32}})
    assert again.batch_size == 32
    assert again.images.steps_per_epoch() == again.images.sizes["train"] // 32
    assert not again.settings.is_fresh
    assert again.saved_in(folder) is again


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"algorithm": {"_target_": "search.evolution.Evolution"}},
            r"untrained weights, which algorithm=evolution can.*drnas",
        ),
        ({"checkpoint": "runs/train/x"}, "checkpoint=runs/train/x names trained weights.*drop one of the two"),
        ({"family": "ofa"}, "family=ofa names trained weights"),
        ({"arch": "largest"}, "arch=largest needs trained weights"),
        ({"from": "runs/search/x"}, "from=runs/search/x needs trained weights"),
        ({"space": "toy_cell"}, "space=toy_cell: expected a mapping"),
        ({"data": {"_target_": "supernet.data.digits.load", "size": 8}}, "data.eval_batch_size: a value is required"),
        ({"algorithm": {**ALGORITHM, "batch_size": 5000}}, "batch_size=5000 is larger than the training split"),
        ({"algorithm": {**ALGORITHM, "zero_gamma": "some"}}, "zero_gamma=some"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_one_clear_line_and_write_nothing(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        runner.main({**fresh(tmp_path), **change})
    assert not (tmp_path / "runs").exists()


def test_a_space_of_one_subnet_has_nothing_to_search(tmp_path: Path) -> None:
    one = yaml.safe_load(SPACE)
    one["resolution"] = [8]
    one["stages"] = [{**one["stages"][0], "width": [8], "depth": [1]}]
    with pytest.raises(UserError, match=r"one subnet only, there is nothing to search$"):
        open_job({**fresh(tmp_path), "space": one})
