"""Interrupting and resuming: the weights at the end are those of a run that nobody interrupted."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import assert_same_training, command, only_run, start, state_of, tiny_config

from supernet import checkpoint, trainer
from supernet.errors import UserError
from supernet.interrupt import StopRequest
from supernet.job import main
from supernet.log import read_metrics
from supernet.runs import read_json


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Layers this small only lose by sharing their work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than training here."""
    for figure in ("curves", "health"):
        monkeypatch.setattr(trainer, figure, lambda metrics, path: None)


def stopped(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int, *overrides: str) -> Path:
    """A run that gets a real SIGINT in the middle of step `at`."""
    take_step = trainer.Trainer.train_step

    def interrupted(self: trainer.Trainer, batch: Any) -> Any:
        if self.step == at - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return take_step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main(tiny_config(folder, *overrides))
    run = only_run(folder)
    assert state_of(run)["step"] == at
    return run


def resume(folder: Path, which: Path | str) -> None:
    torch.manual_seed(99)  # what the caller's random state is must not matter
    main(tiny_config(folder, f"resume={which}"))


RECIPES = {
    "sgd, moving average, mixup": (5, ("train.ema_decay=0.9", "train.mixup=0.3", "train.dropout=0.3")),
    "adamw, cutmix, drop-path": (
        6,
        ("optim=adamw", "train.cutmix=0.5", "train.drop_path=0.3", "train.clip_norm=1"),
    ),
    "rmsprop, at the end of an epoch": (8, ("optim=rmsprop", "schedule=exponential", "train.eval_every=1")),
    "uniform, contiguous, clipped, first step": (
        1,
        ("sampler=uniform", "train.channels_last=false", "train.clip_value=0.1", "train.ema_decay=0.9"),
    ),
}


@pytest.mark.parametrize(("at", "overrides"), RECIPES.values(), ids=RECIPES)
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, overrides: tuple[str, ...]
) -> None:
    main(tiny_config(tmp_path / "whole", *overrides))
    run = stopped(tmp_path / "parts", monkeypatch, at, *overrides)
    resume(tmp_path / "parts", run)
    whole = only_run(tmp_path / "whole")
    assert_same_training(run, whole)
    assert read_json(run / "results.json")["subnets"] == read_json(whole / "results.json")["subnets"]
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 13))


def test_two_interruptions_and_resume_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main(tiny_config(tmp_path / "whole"))
    run = stopped(tmp_path / "parts", monkeypatch, 3)
    take_step = trainer.Trainer.train_step

    def interrupted(self: trainer.Trainer, batch: Any) -> Any:
        if self.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            resume(tmp_path / "parts", "auto")
    assert state_of(run)["step"] == 7
    resume(tmp_path / "parts", "auto")
    assert_same_training(only_run(tmp_path / "parts"), only_run(tmp_path / "whole"))


def test_auto_finds_the_unfinished_run_among_newer_finished_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped(tmp_path, monkeypatch, 2)
    main(tiny_config(tmp_path, "name=newer", "train.epochs=1"))
    resume(tmp_path, "auto")
    assert (run / "results.json").exists()


def test_a_subnet_run_resumes_from_its_own_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another supernet of another space that was trained meanwhile must not get in."""
    main(tiny_config(tmp_path, "train.epochs=1"))
    source = only_run(tmp_path)
    given = ("arch=smallest", "name=alone")
    main(tiny_config(tmp_path, *given))
    whole = only_run(tmp_path, "subnet")
    shutil.move(whole, tmp_path / "whole")
    with monkeypatch.context() as patch:
        take_step = trainer.Trainer.train_step

        def interrupted(self: trainer.Trainer, batch: Any) -> Any:
            if self.step == 4:
                os.kill(os.getpid(), signal.SIGINT)
            return take_step(self, batch)

        patch.setattr(trainer.Trainer, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main(tiny_config(tmp_path, *given))
    main(tiny_config(tmp_path, "train.epochs=1", "space.head.width=[8]", "name=other"))
    run = only_run(tmp_path, "subnet")
    resume(tmp_path, run)
    assert_same_training(run, tmp_path / "whole")
    assert read_json(run / "config.json")["init_from"] == str(source)


def test_ctrl_c_in_a_shell_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    process = start(*command(tmp_path, "train.epochs=1000"))
    deadline = time.monotonic() + 120
    while not list((tmp_path / "runs").glob("train/*/checkpoint.pt")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    run = only_run(tmp_path)
    assert process.returncode == 130, err
    assert err == ""
    assert f"python train.py resume={run}" in out
    assert 0 < state_of(run)["step"] < 4000
    assert not (run / "results.json").exists()


def test_a_second_ctrl_c_does_not_wait() -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored in a shell's background jobs
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


# What cannot be resumed -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    main(tiny_config(folder, "train.epochs=1"))
    return only_run(folder)


@pytest.fixture
def unfinished(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run as if it had not come to its end."""
    copy = tmp_path / "runs" / "train" / "copy"
    shutil.copytree(finished, copy)
    (copy / "results.json").unlink()
    return copy


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir()}


def refused(tmp_path: Path, run: Path | str, words: str) -> None:
    before = contents(run) if isinstance(run, Path) and run.is_dir() else {}
    with pytest.raises(UserError, match=words) as caught:
        resume(tmp_path, run)
    assert "\n" not in str(caught.value)
    after = contents(run) if before else {}
    assert {name: data for name, data in after.items() if name != "log.txt"} == {
        name: data for name, data in before.items() if name != "log.txt"
    }


def test_a_finished_run_is_not_resumed(tmp_path: Path, finished: Path) -> None:
    refused(tmp_path, finished, "finished.*init_from=")


def test_nothing_to_resume(tmp_path: Path) -> None:
    refused(tmp_path, tmp_path / "nowhere", "no run is there")
    refused(tmp_path, "auto", "no unfinished run")


def test_a_run_without_a_checkpoint_is_not_resumed(tmp_path: Path, unfinished: Path) -> None:
    (unfinished / "checkpoint.pt").unlink()
    refused(tmp_path, unfinished, "before its first checkpoint")


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, unfinished: Path, damage: str) -> None:
    file = unfinished / "checkpoint.pt"
    whole = file.read_bytes()
    middle = whole.index(state_of(unfinished)["model"]["net.stem.conv.weight"].numpy().tobytes())
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    file.write_bytes({"cut": whole[:middle], "flipped": flipped, "empty": b"", "text": b"hello"}[damage])
    refused(tmp_path, unfinished, r"checkpoint\.pt.*(damaged|empty)")


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path, unfinished: Path) -> None:
    state = state_of(unfinished)
    state["model"]["net.head.classifier.weight"] = torch.zeros(10, 24)
    checkpoint.save(unfinished / "checkpoint.pt", state)
    refused(tmp_path, unfinished, "does not fit")


def test_an_optimizer_state_of_another_kind_is_refused(tmp_path: Path, unfinished: Path) -> None:
    state = state_of(unfinished)
    state["optimizer"]["param_groups"].pop()
    checkpoint.save(unfinished / "checkpoint.pt", state)
    refused(tmp_path, unfinished, "does not fit")


def test_a_run_stopped_after_its_last_step_only_evaluates(tmp_path: Path, finished: Path, unfinished: Path) -> None:
    resume(tmp_path, unfinished)
    assert_same_training(unfinished, finished)
    assert read_json(unfinished / "results.json")["subnets"] == read_json(finished / "results.json")["subnets"]


def test_a_command_can_be_repeated_with_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As job scripts do; but not with other settings."""
    options = ("train.dropout=0.2", "path_sampler=importance")
    run = stopped(tmp_path, monkeypatch, 5, *options)
    other = ("train.dropout=0.3", "path_sampler=importance", f"resume={run}")
    with pytest.raises(UserError, match=r"keeps its own settings, and train\.dropout would differ"):
        main({**tiny_config(tmp_path, *other), "overrides": list(other)})
    same = (*options, f"resume={run}")
    main({**tiny_config(tmp_path, *same), "overrides": list(same)})
    assert state_of(run)["step"] == 12
