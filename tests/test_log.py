"""What a run records, on disk and on the screen, and the figure made from it."""

import csv
import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from supernet.errors import UserError
from supernet.log import RunLog, read_metrics
from supernet.plots import curves


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_records_are_on_disk_at_once_in_both_files(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.record("train", 1, {"loss": 2.5})
        log.record("train", 2, {"loss": float("nan")})
        log.record("eval", 2, {"largest/top1": 90.0, "note": 'with "quotes", commas'})
        log.record("train", 3, {"loss": 1.5})
        rows = read_metrics(tmp_path / "metrics.jsonl")
        assert [(row["kind"], row["step"]) for row in rows] == [
            ("train", 1),
            ("train", 2),
            ("eval", 2),
            ("train", 3),
        ]
        assert rows[1]["loss"] is None
        cells = table(tmp_path)
        assert list(cells[0]) == ["kind", "step", "time", "loss", "largest/top1", "note"]
        assert [row["loss"] for row in cells] == ["2.5", "", "", "1.5"]
        assert cells[2]["note"] == 'with "quotes", commas'
    with pytest.raises(ValueError, match="step"), RunLog(tmp_path) as log:
        log.record("train", 4, {"step": 1})


def test_resumed_log_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def train(folder: Path, steps: range, resume: int | None) -> None:
        with RunLog(folder) as log:
            if resume is not None:
                log.truncate_after(resume)
            for step in steps:
                log.record("train", step, {"loss": 1 / (1 + step)})
                if step % 3 == 0:
                    log.record("eval", step, {"top1": float(step)})

    def content(folder: Path) -> tuple[list[Any], list[Any]]:
        rows = read_metrics(folder / "metrics.jsonl")
        return [row | {"time": 0} for row in rows], [row | {"time": ""} for row in table(folder)]

    train(tmp_path / "whole", range(10), None)
    train(tmp_path / "cut", range(8), None)
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 8, "lo')  # a kill in the middle of a line
    train(tmp_path / "cut", range(6, 10), 5)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_reopening_keeps_records_and_drops_a_torn_line(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.record("train", 1, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tr')
    with RunLog(tmp_path) as log:
        log.record("train", 2, {"loss": 0.5})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert [row["step"] for row in table(tmp_path)] == ["1", "2"]


def test_quiet_prints_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "rank1"
    with RunLog(folder, quiet=True, wandb={"kind": "wandb", "project": "p"}) as log:
        log.say("text")
        log.warn("text")
        log.record("train", 1, {"loss": 1.0})
        log.table("t", ["a"], [[1]])
        log.truncate_after(0)
        with log.progress(3, "p") as bar:
            bar.advance()
    assert not folder.exists()
    assert capsys.readouterr() == ("", "")


def test_text_goes_to_screen_and_file_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "[red]not markup[/red] " + "word " * 60 + "end"
    with RunLog(tmp_path) as log:
        log.say(long)
        log.warn("careful")
        log.table("Subnets", ["name", "top1"], [["largest", 98.12345], ["s", 7]])
        log.close()
    shown = capsys.readouterr().out
    assert f"{long}\nwarning: careful\nSubnets\nname     top1\n" in shown
    assert "largest  98.12\n" in shown
    saved = (tmp_path / "log.txt").read_text()
    assert long in saved
    assert "largest  98.12" in saved


def test_plain_progress_is_sparse_and_ends_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with RunLog(tmp_path) as log, log.progress(100, "epoch 1") as bar:
        for _ in range(100):
            clock[0] += 0.25  # 25 s altogether: lines after 10 s, after 20 s, and at the end
            bar.advance(loss=torch.tensor(0.5))
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1 40/100, 4/s, ETA 0:00:15, loss=0.5",
        "epoch 1 80/100, 4/s, ETA 0:00:05, loss=0.5",
        "epoch 1 100/100, 4/s, in 0:00:25, loss=0.5",
    ]


def test_bars_on_a_terminal_can_be_nested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with RunLog(tmp_path) as log:
        for _ in range(2):
            with log.progress(2, "outer") as outer:
                outer.advance(2, loss=torch.tensor(0.25))
                with log.progress(5, "inner") as inner:
                    inner.advance(5)
                    log.say("between")
    shown = capsys.readouterr().out
    for part in ("outer", "2/2", "loss=0.25", "inner", "5/5", "between"):
        assert part in shown


class FakeRun:
    url, dir = None, "somewhere"

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.finished = False

    def define_metric(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    fake = types.SimpleNamespace(calls=[], runs=[], account=False, Settings=lambda **settings: settings)

    def init(**arguments: Any) -> FakeRun:
        fake.calls.append(arguments)
        fake.runs.append(FakeRun())
        return fake.runs[-1]

    fake.init = init
    fake.login = lambda prompt, verify: fake.account and not prompt and not verify
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_records_and_the_same_id_on_resuming(fake_wandb: Any, tmp_path: Path) -> None:
    settings = {"kind": "wandb", "project": "p", "mode": None, "name": None, "config": {"seed": 1}}
    for account in (False, True):
        fake_wandb.account = account
        with RunLog(tmp_path, wandb=settings) as log:
            log.record("train", 5, {"loss": 1.0, "bad": float("inf")})
    first, second = fake_wandb.calls
    assert first["mode"] == "offline"
    assert second["mode"] == "online"
    assert first["id"] == second["id"] == (tmp_path / "wandb_id.txt").read_text()
    assert first["resume"] == "allow"
    assert first["config"] == {"seed": 1}
    assert first["name"] == tmp_path.name
    assert fake_wandb.runs[0].logged == [{"step": 5, "train/loss": 1.0}]
    assert fake_wandb.runs[0].finished


def test_wandb_environment_wins(fake_wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    RunLog(tmp_path, wandb={"kind": "wandb", "mode": "online"}).close()
    assert fake_wandb.calls[0]["mode"] == "disabled"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "wandb", "projct": "p"}, r"logger\.projct: unknown name; did you mean project"),
        ({"kind": "wandb", "mode": "on"}, r"logger\.mode=on: expected one of online"),
        ({"kind": "tensorboard"}, r"logger\.kind=tensorboard"),
    ],
)
def test_wrong_logger_settings(fake_wandb: Any, tmp_path: Path, settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RunLog(tmp_path, wandb=settings)


def test_missing_or_broken_wandb_is_one_line(fake_wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**arguments: Any) -> FakeRun:
        raise RuntimeError("no\nnet")

    fake_wandb.init = broken
    with pytest.raises(UserError, match=r"RuntimeError: no\); try logger\.mode=offline"):
        RunLog(tmp_path, wandb={"kind": "wandb"})
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="logger=none"):
        RunLog(tmp_path, wandb={"kind": "wandb"})
    RunLog(tmp_path, wandb={"kind": "none"}).close()


def test_curves_draws_what_was_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = tmp_path / "metrics.jsonl"
    with pytest.raises(UserError, match="no records"):
        curves(metrics, tmp_path / "curves.png")
    with RunLog(tmp_path) as log:
        for step in range(5):
            log.record("train", step, {"loss/largest": 1.0 / (step + 1), "lr": 0.1})
        log.record("eval", 4, {"largest/top1": 90.0, "random0/top1": 80.0})
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))[1])
    curves(metrics, tmp_path / "curves.png")
    losses, accuracies, rate = drawn[0].axes
    assert list(losses.lines[0].get_ydata()) == [1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    assert list(rate.lines[0].get_ydata()) == [0.1] * 5
    assert [line.get_label() for line in accuracies.lines] == ["largest", "random0"]
    assert "%" in accuracies.get_ylabel()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
