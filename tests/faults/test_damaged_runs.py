"""Runs whose files were damaged while nobody trained: what can go on, goes on, and says from what."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from documented import as_documented
from faulty import resuming, same_end
from tiny_run import state_of
from zygote import Zygote

from supernet import checkpoint

Copies = Callable[[], Path]
MORE = pytest.mark.exhaustive
NEWEST, BEFORE = "checkpoint.pt", "checkpoint-1.pt"


def damage(file: Path, how: str) -> None:
    data = file.read_bytes()
    middle = len(data) // 2
    if how == "flipped":  # in a weight: between the entries of the file there are bytes that mean nothing
        middle = data.index(state_of(file.parent)["model"]["net.stem.conv.weight"].numpy().tobytes()) + 1
    if how == "missing":
        file.unlink()
    elif how == "flipped":
        file.write_bytes(data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :])
    else:
        file.write_bytes({"cut": data[:middle], "empty": b"", "text": b"hello", "list": b"[1]"}[how])


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir() if path.name not in ("log.txt", ".lock")}


def test_checkpoints_are_kept_by_age(broken_off: Path) -> None:
    assert state_of(broken_off)["step"] == 9
    assert checkpoint.load(broken_off / BEFORE)["step"] == 8
    assert [file.name for file in checkpoint.kept_files(broken_off / NEWEST)] == [NEWEST, BEFORE]


@pytest.mark.parametrize(
    "how", ["flipped", "missing", *(pytest.param(how, marks=MORE) for how in ("cut", "empty", "text"))]
)
def test_the_checkpoint_before_a_damaged_one(
    zygote: Zygote, whole: Path, unfinished: Copies, tmp_path: Path, how: str
) -> None:
    run = unfinished()
    damage(run / NEWEST, how)
    ended = zygote.run(resuming(tmp_path, run))
    as_documented(f"the newest checkpoint is {how}", ended)
    assert "at step 8 of 12" in ended.out
    same_end(run, whole)
    assert checkpoint.load(run / BEFORE)["step"] == 9, "a damaged file took the place of a whole one"


def test_no_whole_checkpoint(zygote: Zygote, unfinished: Copies, tmp_path: Path) -> None:
    run = unfinished()
    for name in (NEWEST, BEFORE):
        damage(run / name, "cut")
    before = contents(run)
    as_documented("all checkpoints are damaged", zygote.run(resuming(tmp_path, run)))
    assert contents(run) == before


def test_checkpoints_of_others(zygote: Zygote, unfinished: Copies, tmp_path: Path) -> None:
    """Whole, but not ours: somebody put them there, and to pass over them would hide that."""
    state = state_of(run := unfinished())
    torch.save({"state_dict": state["model"]}, run / NEWEST)
    as_documented("a foreign checkpoint", zygote.run(resuming(tmp_path, run)))
    torch.save({**state, "format": checkpoint.FORMAT, "version": checkpoint.VERSION + 1}, run / NEWEST)
    before = contents(run)
    as_documented("a checkpoint of a newer format", zygote.run(resuming(tmp_path, run)))
    assert contents(run) == before


@pytest.mark.parametrize("how", ["cut", *(pytest.param(how, marks=MORE) for how in ("missing", "list"))])
def test_a_damaged_configuration(zygote: Zygote, whole: Path, unfinished: Copies, tmp_path: Path, how: str) -> None:
    run = unfinished()
    damage(run / "config.json", how)
    as_documented("config.json is missing or damaged", zygote.run(resuming(tmp_path, run)))
    same_end(run, whole)


def test_damaged_splits(zygote: Zygote, unfinished: Copies, tmp_path: Path) -> None:
    run = unfinished()
    damage(run / "splits.json", "cut")
    as_documented("splits.json is missing or damaged", zygote.run(resuming(tmp_path, run)))


def test_other_splits(zygote: Zygote, unfinished: Copies, tmp_path: Path) -> None:
    run = unfinished()
    splits = json.loads((run / "splits.json").read_text())
    splits["counts"]["train"] += 1
    (run / "splits.json").write_text(json.dumps(splits))
    as_documented("the data has changed since the run began", zygote.run(resuming(tmp_path, run)))


def test_metrics_with_damaged_lines(zygote: Zygote, whole: Path, unfinished: Copies, tmp_path: Path) -> None:
    """A cut last line costs nothing: that step is done again. Other damaged lines are left out."""
    run = unfinished()
    file = run / "metrics.jsonl"
    file.write_bytes(b'\xff\xfe\n3\n{"step": []}\n' + b"[" * 9999 + b"\n" + file.read_bytes()[:-20])
    as_documented("metrics.jsonl has a cut last line", zygote.run(resuming(tmp_path, run)))
    same_end(run, whole)
