"""`resume=` and nothing else goes on with what was begun; what is typed besides is compared by its own name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import only_run, search_config, tiny_config
from tiny_search import stop_after

from search import runner
from supernet.errors import UserError
from supernet.job import main
from supernet.resume import own_unfinished, resumed_config
from supernet.runs import lock, read_json
from supernet.trainer import Trainer

BEGUN = ("train.epochs=2", "optim.lr=0.05", "train.save_every=2")


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was stopped after three steps."""
    folder, step = tmp_path_factory.mktemp("unfinished"), Trainer.train_step

    def train_step(self: Trainer, batch: Any) -> dict[str, Any]:
        if self.step == 3:
            raise KeyboardInterrupt
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        with pytest.raises(KeyboardInterrupt):
            main(tiny_config(folder, *BEGUN))
    return folder


def resumed(folder: Path, *typed: str) -> dict[str, Any]:
    """The stored configuration, as `python train.py` with these words finds it."""
    config = tiny_config(folder, *typed)
    return resumed_config(config, typed)[0]


def test_one_setting_of_a_run_can_be_repeated_alone(unfinished: Path) -> None:
    for words in ((), ("optim.lr=0.05",), ("optim.lr=0.05", "train.epochs=2")):
        assert resumed(unfinished, "resume=auto", *words)["train"]["epochs"] == 2
    for words in (("optim.lr=0.1",), ("train.epochs=2", "optim.lr=0.1")):
        with pytest.raises(UserError, match=r"^optim\.lr=0\.1: .*, and optim\.lr would differ"):
            resumed(unfinished, "resume=auto", *words)


def test_a_file_of_a_run_names_the_run(unfinished: Path) -> None:
    run = only_run(unfinished)
    assert resumed(unfinished, f"resume={run / 'checkpoint.pt'}")["optim"]["lr"] == 0.05


def test_a_run_that_somebody_works_on_is_named(unfinished: Path) -> None:
    """Instead of beginning another one, or saying that there is none."""
    run = only_run(unfinished)
    with lock(run):
        with pytest.raises(UserError, match=f"another process is writing to {run}"):
            resumed(unfinished, "resume=auto")
        with pytest.raises(UserError, match=f"another process is writing to {run}"):
            own_unfinished(tiny_config(unfinished, *BEGUN), BEGUN)
    assert own_unfinished(tiny_config(unfinished, *BEGUN), BEGUN) == run
    assert own_unfinished(tiny_config(unfinished, "optim.lr=0.1"), ("optim.lr=0.1",)) is None


def test_a_search_goes_on_with_nothing_but_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main(tiny_config(tmp_path, "train.epochs=1"))
    run = only_run(tmp_path)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            runner.main(search_config(run, "evaluations=7", "reuse_mb=0", "seed=3", "algorithm.population=5"))
    (folder,) = (run / "search").iterdir()
    words = ("resume=auto", f"runs_dir={run.parent.parent}")
    config = {**search_config(run, "resume=auto"), "checkpoint": None}
    with lock(folder), pytest.raises(UserError, match=f"another process is writing to {folder}"):
        runner.main({**config, "overrides": words})
    runner.main({**config, "overrides": words})
    stored, results = read_json(folder / "config.json"), read_json(folder / "results.json")
    assert (stored["seed"], results["seed"], results["evaluations"]) == (3, 3, 7)
    assert results["algorithm"]["population"] == 5
    assert len([json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]) == 1 + 7
