"""The record of trials: what a kill leaves, what is refused."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
from tiny import tiny_space

from search.algorithm import Trial
from search.constraint import Constraint
from search.evaluator import TableEvaluator
from search.history import History
from supernet.errors import UserError
from supernet.window import enumerate_archs

SPACE = tiny_space()
SETUP = {"seed": 0, "algorithm": {"population": 4}, "constraint": {"macs": (float("-inf"), 3e5)}}
ARCHS = list(islice(enumerate_archs(SPACE), 5))
COSTS = Constraint().on(SPACE).costs
TRIALS = TableEvaluator(lambda arch: {"top1": 100 / 3 + SPACE.plan(arch).macs / 7}, COSTS)(ARCHS)


def write(path: Path) -> None:
    history = History(path, SPACE, SETUP)
    for trial in TRIALS:
        history.append(trial)


def test_trials_come_back_exactly_and_in_order(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl")
    again = History(tmp_path / "t.jsonl", SPACE, SETUP)
    assert list(again.trials.values()) == TRIALS
    assert list(again.trials) == ARCHS


def test_a_file_cut_anywhere_loses_only_its_last_line(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl")
    whole = (tmp_path / "t.jsonl").read_bytes()
    cut = tmp_path / "cut.jsonl"
    for length in range(0, len(whole), 7):
        cut.write_bytes(whole[:length])
        history = History(cut, SPACE, SETUP)
        kept = max(whole[:length].count(b"\n") - 1, 0)
        assert list(history.trials.values()) == TRIALS[:kept]
        history.append(TRIALS[kept])
        assert list(History(cut, SPACE, SETUP).trials.values()) == TRIALS[: kept + 1]


def test_another_setup_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write(path)
    before = path.read_bytes()
    for other, said in (
        ({**SETUP, "seed": 1}, "seed was 0, now it is 1;"),
        ({**SETUP, "algorithm": {"population": 8}}, r"algorithm\.population was 4, now it is 8"),
        (
            {**SETUP, "constraint": {"macs": None}},
            r"constraint\.macs was \[null, 300000\.0\], now it is null",
        ),
        ({"seed": 3}, r"seed was 0, now it is 3 \(2 more differ\)"),
    ):
        with pytest.raises(UserError, match=said):
            History(path, SPACE, other)
    assert path.read_bytes() == before


def test_foreign_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("hello\n")
    with pytest.raises(UserError, match="not a record of trials"):
        History(path, SPACE, SETUP)
    path.unlink()
    write(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], '{"arch": {}}', *lines[3:]]) + "\n")
    with pytest.raises(UserError, match="line 3: damaged"):
        History(path, SPACE, SETUP)


def test_trials_are_plain_json(tmp_path: Path) -> None:
    line = json.dumps(TRIALS[0].to_json())
    assert Trial.from_json(json.loads(line), SPACE) == TRIALS[0]
