"""Whole checkpoints, their checksums right, that hold odd values: they open, or one line says why not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import ODD, places, replaced
from families import refusal
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from overrides import Reached
from tiny_run import only_run, tiny_config

from search.job import open_job
from supernet import checkpoint, job
from supernet.runs import config_dir, read_json, write_json
from supernet.trainer import Trainer

SECONDS = 30.0  # for one file, on a slow machine
TENSORS = (torch.zeros(()), torch.tensor(-1.0), torch.tensor(float("nan")), torch.zeros(3), torch.eye(2).bool())
VALUES = (*ODD, *TENSORS, torch.arange(4), {1: 2}, {"a": torch.ones(2)}, -5, 10**12)
RECIPES = {
    "sgd": ("train.ema_decay=0.9",),
    "adamw": ("optim=adamw", "path_sampler=importance", "data_sampler=importance"),
}


@dataclass(frozen=True)
class Run:
    """A run after its first step, and the configurations that go on with it and search it."""

    folder: Path
    state: dict[str, Any] = field(repr=False)
    training: dict[str, Any] = field(repr=False)
    search: dict[str, Any] = field(repr=False)

    def said(self, state: dict[str, Any]) -> dict[str, str | None]:
        """What a search and a resumed training say of another state: None is fine, all else than a line is raised."""
        checkpoint.save(self.folder / "checkpoint.pt", state)
        start = time.monotonic()
        said = {"search": refusal(open_job, self.search), "train": refusal(self._resumed)}
        assert time.monotonic() - start < SECONDS
        return said

    def _resumed(self) -> None:
        """One step and no more: values that fit so far must do for training, too."""
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Trainer, "run", _one_step)
            with pytest.raises(Reached):
                job.main(self.training)


def _one_step(trainer: Trainer) -> None:
    trainer.net.train()
    trainer.shares.begin(trainer.net)
    for batch in trainer._batches():
        trainer.train_step(batch)
        break
    raise Reached


def _saved_step(trainer: Trainer) -> None:
    with pytest.raises(Reached):
        _one_step(trainer)
    trainer.save()
    raise Reached


def _search_config(run: Path) -> dict[str, Any]:
    words = [f"checkpoint={run}", f"runs_dir={run.parent.parent}", "device=cpu", "constraint.macs=0.9"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        plain: Any = OmegaConf.to_container(compose("search", words), resolve=True)
    return plain  # type: ignore[no-any-return]


def _made(folder: Path, *overrides: str) -> Run:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "run", _saved_step)
        with pytest.raises(Reached):
            job.main(tiny_config(folder, *overrides))
    run = only_run(folder)
    training = tiny_config(folder, f"resume={run}")
    return Run(run, checkpoint.load(run / "checkpoint.pt"), training, _search_config(run))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {name: _made(tmp_path_factory.mktemp(name), *overrides) for name, overrides in RECIPES.items()}
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", RECIPES)
def test_the_whole_state_is_taken(runs: dict[str, Run], name: str) -> None:
    assert runs[name].said(runs[name].state) == {"search": None, "train": None}


SEARCHED: tuple[tuple[tuple[Any, ...], Any], ...] = (
    (("config", "train"), 3),
    (("config", "train"), [1]),
    (("config", "data"), 3),
    (("config", "data"), [1]),
    (("config", "seed"), "x"),
    (("config", "sharing"), 3),
    (("config", "train", "calibration_images"), "x"),
    (("ema",), torch.ones(3)),
    (("ema",), [1]),
    (("splits",), [1]),
    (("splits",), {1: 2}),
    (("step",), -5),
    (("space",), [1]),
    (("model",), {"x": 3}),
)
RESUMED: tuple[tuple[tuple[Any, ...], Any], ...] = (
    *((("optimizer",), value) for value in ([7], {}, {"state": {}}, {"state": {0: 3}, "param_groups": [3]})),
    *((("optimizer", "state", 0), value) for value in (3, {}, {"a": 1}, {"momentum_buffer": torch.zeros(2)})),
    (("teacher",), [7]),
    (("teacher",), {"x": torch.ones(2)}),
    (("guard",), [7]),
    (("guard", "strikes"), "x"),
    (("guard", "best"), None),
    (("seconds",), [7]),
    (("best",), "x"),
    (("course",), 3),
    (("step",), -5),
    (("step",), 10**12),
)


@pytest.mark.parametrize("place", SEARCHED, ids=str)
def test_a_search_of_odd_values(runs: dict[str, Run], place: tuple[tuple[Any, ...], Any]) -> None:
    run = runs["sgd"]
    path, value = place
    message = run.said(replaced(run.state, path, value))["search"]
    assert message is not None
    assert str(run.folder) in message or str(path[-1]) in message


@pytest.mark.parametrize("place", RESUMED, ids=str)
def test_a_training_that_goes_on_from_odd_values(runs: dict[str, Run], place: tuple[tuple[Any, ...], Any]) -> None:
    run = runs["sgd"]
    message = run.said(replaced(run.state, *place))["train"]
    assert str(run.folder / "checkpoint.pt") in str(message)


@pytest.mark.parametrize("part", ["path_sampler", "data_sampler"])
@pytest.mark.parametrize("value", [3, {}, {"scores": 3}, {"scores": torch.zeros(2)}], ids=str)
def test_what_samplers_have_learned(runs: dict[str, Run], part: str, value: Any) -> None:
    run = runs["adamw"]
    assert "learned" in str(run.said(replaced(run.state, ("course", part), value))["train"])


def test_settings_of_an_optimizer_are_the_run_s_own(runs: dict[str, Run]) -> None:
    """What a file says of them would be used in every step."""
    run = runs["sgd"]
    path = ("optimizer", "param_groups", 0, "momentum")
    assert run.said(replaced(run.state, path, "x")) == {"search": None, "train": None}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", RECIPES)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(VALUES))
def test_odd_values_anywhere(runs: dict[str, Run], name: str, which: int, where: int, value: Any) -> None:
    run, entries = runs[name], sorted(runs[name].state)
    entry = entries[which % len(entries)]
    paths = [(entry,), *places(run.state[entry], (entry,))]
    run.said(replaced(run.state, paths[where % len(paths)], value))


# What is stored orders nothing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
def test_no_stored_data_are_downloaded(
    runs: dict[str, Run], nested: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def read(dataset: object, root: str, train: bool, download: bool) -> None:
        asked.append(download)
        raise RuntimeError("not here")

    monkeypatch.setattr("torchvision.datasets.CIFAR10.__init__", read)
    run = runs["sgd"]
    own = run.state["config"]["data"]
    sizes = {key: own[key] for key in ("seed", "split_seed", "val_fraction", "search_fraction", "batch_size")}
    sizes |= {key: own[key] for key in ("eval_batch_size", "resolution")}
    cifar = {"_target_": "supernet.data.cifar.load", "root": str(tmp_path), "download": True, **sizes}
    changed = replaced(run.state, ("config", "data"), {**own, "augment": cifar} if nested else cifar)
    said = run.said(changed)
    assert "CIFAR-10" in str(said["search"])
    assert asked == [False]
    # A run folder's own configuration, which a resumed training reads.
    before = read_json(run.folder / "config.json")
    write_json(run.folder / "config.json", changed["config"])
    try:
        for words, download in (((), False), (("+data.download=true",), True)):
            if nested and download:
                continue  # it is not for data inside of data
            config = {**run.training, "overrides": list(words)}
            config["data"] = {**config["data"], **({"download": True} if download else {})}
            assert refusal(job.main, config) is not None
            assert asked[-1] is download
    finally:
        write_json(run.folder / "config.json", before)
