"""The loop: nothing is scored twice, earlier searches' scores are taken over, the bound of early stopping is right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_space

from search.algorithm import Trial
from search.constraint import Constraint
from search.evaluator import Evaluator
from search.history import History, is_complete, known_trials
from search.loop import run_trials
from supernet.log import RunLog
from supernet.space import Arch
from supernet.window import enumerate_archs

SPACE = tiny_space()
BUDGET = Constraint().on(SPACE)
ARCHS = list(enumerate_archs(SPACE))
RNG = np.random.default_rng(0)
SCORES = {arch: float(RNG.integers(1000)) / 10 for arch in ARCHS}
SETUP = {"space": SPACE.config, "weights": "w", "calibration_images": 9, "data": {}, "seed": 0, "algorithm": {"a": 1}}


class Listed:
    """Asks for `ARCHS` from one place on, whatever it is told."""

    def __init__(self, batch: int, start: int = 0) -> None:
        self.batch, self._rest = batch, ARCHS[start:]
        self.told: list[Trial] = []
        self.indifferent_below = float("inf")

    def ask(self, n: int) -> list[Arch]:
        asked, self._rest = self._rest[:n], self._rest[n:]
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        self.told += trials


class Table:
    """Scores from a table; notes the calls and the bounds."""

    def __init__(self) -> None:
        self.calls: list[list[Arch]] = []
        self.bounds: list[float] = []

    def __call__(self, archs: Sequence[Arch]) -> list[Trial]:
        self.calls.append(list(archs))
        return [Trial(arch, {"top1": SCORES[arch], "loss": 1.0, **BUDGET.costs(arch)}) for arch in archs]

    def stopping(self, below: float) -> Evaluator:
        self.bounds.append(below)
        return partial(self._stop, below)

    def _stop(self, below: float, archs: Sequence[Arch]) -> list[Trial]:
        def trial(arch: Arch) -> Trial:
            if SCORES[arch] < below:
                return Trial(arch, {"top1": SCORES[arch] / 2, "stopped_after": 5, **BUDGET.costs(arch)})
            return self([arch])[0]

        return [trial(arch) for arch in archs]

    @property
    def scored(self) -> list[Arch]:
        return [arch for call in self.calls for arch in call]


def run(
    folder: Path, algorithm: Listed, table: Table, evaluations: int, file: str = "trials.jsonl", **options: object
) -> list[Trial]:
    folder.mkdir(parents=True, exist_ok=True)
    history = History(folder / file, SPACE, {**SETUP, "seed": len(folder.name)})
    with RunLog(folder, quiet=True) as log:
        return run_trials(algorithm, table, history, evaluations, log, "test", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("at_once", [1, 3, 8, 100])
def test_groups_change_nothing_but_the_calls(tmp_path: Path, at_once: int) -> None:
    table, algorithm = Table(), Listed(batch=8)
    trials = run(tmp_path, algorithm, table, 20, at_once=at_once)
    assert [trial.arch for trial in trials] == ARCHS[:20] == table.scored
    assert algorithm.told == trials
    assert max(map(len, table.calls)) == min(at_once, 8)
    assert list(History(tmp_path / "trials.jsonl", SPACE, {**SETUP, "seed": len(tmp_path.name)}).trials) == ARCHS[:20]


def test_what_is_on_the_disk_is_not_scored_again(tmp_path: Path) -> None:
    run(tmp_path, Listed(5), Table(), 12, at_once=2)
    table, algorithm = Table(), Listed(5)
    trials = run(tmp_path, algorithm, table, 19, at_once=3)
    assert table.scored == ARCHS[12:19]
    assert [trial.metrics["top1"] for trial in trials] == [SCORES[arch] for arch in ARCHS[:19]]


def test_every_group_is_on_the_disk_before_the_next(tmp_path: Path) -> None:
    class Broken(Table):
        def __call__(self, archs: Sequence[Arch]) -> list[Trial]:
            if len(self.calls) == 3:
                raise KeyboardInterrupt
            return super().__call__(archs)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Listed(10), Broken(), 20, at_once=4)
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == 1 + 4 + 4 + 2


def test_scores_of_earlier_searches_are_taken_over_and_marked(tmp_path: Path) -> None:
    run(tmp_path / "1-first", Listed(5), Table(), 10)
    run(tmp_path / "2-other", Listed(5, start=8), Table(), 10, file="baseline.jsonl")
    own = tmp_path / "3-own"
    known = known_trials(tmp_path, own, SPACE, {**SETUP, "seed": 77, "algorithm": {}}, BUDGET.costs)
    assert set(known) == set(ARCHS[:18])
    assert known[ARCHS[9]][1] == "1-first"
    table = Table()
    trials = run(own, Listed(6, start=5), table, 20, known=known)
    assert table.scored == ARCHS[18:25]
    expected = [Trial(arch, {"top1": SCORES[arch], "loss": 1.0, **BUDGET.costs(arch)}) for arch in ARCHS[5:25]]
    assert trials == expected
    again = History(own / "trials.jsonl", SPACE, {**SETUP, "seed": len(own.name)})
    assert again.sources == {arch: "1-first" if i < 10 else "2-other" for i, arch in enumerate(ARCHS[:18]) if i >= 5}
    # Those that were only taken over are found through it again, so its folder can stay when the others go.
    assert set(known_trials(tmp_path, tmp_path / "4", SPACE, SETUP, BUDGET.costs)) == set(ARCHS[:25])


def test_only_searches_with_the_same_scores_are_looked_at(tmp_path: Path) -> None:
    run(tmp_path / "1-first", Listed(5), Table(), 10)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "trials.jsonl").write_bytes(b"\xff\xfe nonsense\n")
    (tmp_path / "broken" / "metrics.jsonl").write_text('{"kind": "eval"}\n')
    for key, value in (("weights", "v"), ("calibration_images", 10), ("data", {"size": 8}), ("space", {})):
        assert known_trials(tmp_path, tmp_path / "own", SPACE, {**SETUP, key: value}, BUDGET.costs) == {}
    assert known_trials(tmp_path, tmp_path / "1-first", SPACE, SETUP, BUDGET.costs) == {}
    path = tmp_path / "1-first" / "trials.jsonl"
    lines = path.read_text().splitlines()
    stopped = json.loads(lines[1])
    stopped["metrics"]["stopped_after"] = 4
    path.write_text("\n".join([lines[0], json.dumps(stopped), "{}", *lines[3:], lines[1][:20]]))
    assert set(known_trials(tmp_path, tmp_path / "own", SPACE, SETUP, BUDGET.costs)) == set(ARCHS[2:10])


def test_the_bound_is_the_worst_of_the_best_told_before(tmp_path: Path) -> None:
    table, algorithm = Table(), Listed(batch=6)
    trials = run(tmp_path, algorithm, table, 60, keep=4)
    for generation, bound in enumerate(table.bounds):
        before = sorted((SCORES[arch] for arch in ARCHS[: 6 * generation]), reverse=True)
        assert bound == (before[3] if generation else float("-inf"))
    stopped = [trial for trial in trials if not is_complete(trial)]
    assert len(stopped) > 20
    best = sorted(trials, key=lambda trial: -trial.metrics["top1"])[:4]
    assert [trial.metrics["top1"] for trial in best] == sorted((SCORES[arch] for arch in ARCHS[:60]), reverse=True)[:4]
    assert all(map(is_complete, best))


def test_a_bound_does_not_depend_on_an_interruption(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", Listed(6), Table(), 60, keep=4)
    (tmp_path / "parts").mkdir()
    name = tmp_path / "parts" / "trials.jsonl"
    run(tmp_path / "parts", Listed(6), Table(), 27, keep=4)
    assert name.exists()
    assert run(tmp_path / "parts", Listed(6), Table(), 60, keep=4) == whole
