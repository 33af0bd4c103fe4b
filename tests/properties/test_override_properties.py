"""The command line: whatever is typed, it runs, or one line says what is wrong and the exit code is 2."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import currently_in_test_context, event, given
from hypothesis import strategies as st
from mistakes import BEYOND, SYNTAX
from overrides import Line, Outcome, leaves, lines, no_work, run, stored_run

LONGEST = 3000  # characters of a message


@dataclass(frozen=True)
class Place:
    """A folder to work in, the settings there are, and a training run to search."""

    folder: Path
    settings: dict[str, dict[str, Any]] = field(repr=False)
    trained: Path = field(repr=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder, before = tmp_path_factory.mktemp("commands"), Path.cwd()
    os.chdir(folder)
    trained = stored_run(folder / "first")
    settings = {program: leaves(program, folder) for program in ("train", "search")}
    try:
        with no_work():
            yield Place(folder, settings, trained)
    finally:
        os.chdir(before)


def checked(place: Place, line: Line) -> Outcome:
    outcome = run(line.program, place.folder, *line.words, run_folder=place.trained)
    assert "Traceback" not in outcome.err, (line, outcome.err)
    assert outcome.code in ((2,) if line.wrong else (0, 2)), (line, outcome.code, outcome.err)
    if currently_in_test_context():  # `--hypothesis-show-statistics` says how many there were
        event("refused" if outcome.code else "runs")
    if outcome.code:
        assert outcome.err.startswith("error: "), outcome.err
        assert outcome.err.count("\n") == 1, outcome.err
        assert outcome.err.isprintable() or outcome.err[:-1].isprintable(), outcome.err
        assert len(outcome.err) < LONGEST, len(outcome.err)
        assert outcome.err.removeprefix("error: ").strip(), "says nothing"
    return outcome


@given(st.data())
def test_every_line_runs_or_is_refused_in_one_line(place: Place, data: st.DataObject) -> None:
    checked(place, data.draw(lines(place.settings)))


def test_lines_without_mistakes_run(place: Place) -> None:
    for program, words in (
        ("train", ()),
        ("train", ("seed=3", "optim.lr=1e-3", "train.epochs=7", "+data.augment={shift: 1}")),
        ("search", ()),
        ("search", ("constraint.macs=[0.1,0.9]", "objectives=[top1,params]", "algorithm=nsga2", "arch=smallest")),
        ("search", ("arch=random:3",)),
        ("search", ("algorithm=random", "evaluations=3", "formats=[]")),
    ):
        outcome = checked(place, Line(program, words, False))
        assert outcome.code == 0, (words, outcome.err)


EVERY = [
    Line(program, tuple(text.split(" ")) if "width:" not in text else (text,), True)
    for program, texts in BEYOND.items()
    for text in texts
]
EVERY += [Line(program, (text,), False) for program in BEYOND for text in SYNTAX]


@pytest.mark.exhaustive
@pytest.mark.parametrize("line", EVERY, ids=lambda line: f"{line.program} {' '.join(line.words)[:60]!r}")
def test_listed_mistakes(place: Place, line: Line) -> None:
    checked(place, line)
