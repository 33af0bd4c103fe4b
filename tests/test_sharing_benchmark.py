"""The benchmark of sharing: what is trained, what is scored again, and what is not repeated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_space
from tiny_run import tiny_config

import supernet
from benchmarks.sharing import Cell, Study, cells_of, chosen, plot, read_accuracies, run, summary, table
from search.ranking import kendall
from supernet.build import make_space
from supernet.errors import UserError
from supernet.sharing.groups import every_code

SPACE = tiny_space()
FOUR = [SPACE.decode(every_code(SPACE)[i]) for i in (0, 100, 200, 383)]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    config = tiny_config(tmp_path, "train.epochs=2", "train.eval_images=64", "data.resolution=[6]")
    space = make_space({**config["space"], "resolution": [6]}, 10, 1)
    config["space"] = {**config["space"], "resolution": [6]}
    return Study(config, chosen(space, 64, None, None), last=5, split="val")


def test_the_benchmark_compares_seeds_and_continues(study: Study, tmp_path: Path) -> None:
    assert len(study.archs) == 4  # all of that space
    cells = cells_of([1, 2, 4], ["similarity", "random"], seeds=2, subnets=4)
    assert [cell.name for cell in cells[:4]] == ["1-similarity-0", "2-similarity-0", "2-random-0", "4-similarity-0"]
    assert len(cells) == 8
    cells = [cell for cell in cells if cell.groups != 2]
    first = run(study, cells[:1], tmp_path / "out")
    before = (tmp_path / "out" / f"{cells[0].name}.json").stat().st_mtime_ns
    results = run(study, cells, tmp_path / "out")
    assert (tmp_path / "out" / f"{cells[0].name}.json").stat().st_mtime_ns == before
    assert results[cells[0]] == first[cells[0]]
    one = results[cells[0]]
    assert one["steps"] == 8
    assert one["trained"] == [3, 0, 1, 2, 3]  # cyclic: step 7 trains number 7 % 4
    alone = np.array(results[cells[1]]["scores"])
    for step, trained in enumerate(one["trained"][1:], start=1):  # only one subnet changes at a time
        others = np.arange(4) != trained
        assert (alone[step, others] == alone[step - 1, others]).all()
    rows = summary(results, [1.0, 2.0, 3.0, 4.0])
    assert [(row["groups"], row["seeds"]) for row in rows] == [(1, 2), (4, 2)]
    assert rows[0]["gt_tau_mean"][0] == pytest.approx(
        np.mean([kendall(scores, [1.0, 2.0, 3.0, 4.0]) for scores in one["scores"]]), nan_ok=True
    )
    assert table(rows).count("\n") == 3
    plot(tmp_path / "sharing.png", rows)
    with pytest.raises(UserError, match="another study"):
        run(replace(study, last=4), cells, tmp_path / "out")


def test_the_kept_scores_are_those_that_scoring_again_gives(study: Study, tmp_path: Path) -> None:
    cell = Cell(2, "similarity", 0)
    kept = run(study, [cell], tmp_path / "kept")[cell]["scores"]
    # An activation in common has no weights, so training is the same; but all subnets are scored anew.
    anew = run(replace(study, shared=("stem.act",)), [cell], tmp_path / "anew")[cell]["scores"]
    assert kept == anew


def test_truths_are_read_in_both_forms(tmp_path: Path) -> None:
    usual, table_of_space = tmp_path / "rows.json", tmp_path / "table.json"
    usual.write_text(json.dumps([{"arch": arch.to_json(), "top1": 90.0 + i} for i, arch in enumerate(FOUR)]))
    truth = read_accuracies(usual, SPACE)
    assert truth == {arch: 90.0 + i for i, arch in enumerate(FOUR)}
    ops = ["sep_conv_3x3", "dil_conv_5x5"]
    rows = [{"normal": [ops[i], ops[0], ops[0]], "reduce": [ops[1]] * 3, "test_top1": 90.0 + i} for i in range(2)]
    table_of_space.write_text(json.dumps(rows))
    cells = supernet.build("toy_cell", num_classes=10, in_channels=1).space
    found = read_accuracies(table_of_space, cells)
    assert {arch["normal"][0]: value for arch, value in found.items()} == {"sep_conv_3x3": 90.0, "dil_conv_5x5": 91.0}
    picked = chosen(SPACE, 2, None, truth)
    assert len(picked) == 2
    assert set(picked) < set(FOUR)
    assert chosen(SPACE, 2, usual, truth) == sorted(FOUR, key=SPACE.encode)
