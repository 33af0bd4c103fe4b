"""Tables with missing rows: no algorithm proposes one, and the constrained optimum is the one of enumeration."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from search.constraint import encoded
from supernet.construct import construct
from supernet.runs import config_dir

sys.path.append(str(Path(__file__).parents[1]))  # benchmarks are not installed
from benchmarks.search_tables import markdown, summary
from benchmarks.tables.table import Table, listed, numbers

FILES = sorted((config_dir() / "algorithm").glob("*.yaml"))
CONFIGS = [path for path in FILES if "defaults" not in yaml.safe_load(path.read_text())]  # those that ask and tell
GENES, OPTIONS = 5, 3


@pytest.fixture
def table() -> Table:
    """243 subnets, half of them not given; the cost is the sum of the options."""
    rng = np.random.default_rng(0)
    rows = np.array(list(product(range(OPTIONS), repeat=GENES)))
    top1 = np.where(
        rng.random(len(rows)) < 0.5, np.nan, 50 + rows @ rng.normal(size=GENES) + rng.normal(size=len(rows))
    )
    return listed("half", GENES, OPTIONS, top1, {"macs": rows.sum(axis=1).astype(float)}, {"macs": 5})


def test_rows_are_numbered_like_digits() -> None:
    rows = np.array(list(product(range(OPTIONS), repeat=GENES)))
    np.testing.assert_array_equal(numbers(rows, OPTIONS), np.arange(OPTIONS**GENES))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_only_given_rows_inside_are_proposed_and_all_of_them(path: Any, table: Table) -> None:
    config = yaml.safe_load(path.read_text())
    algorithm = construct(config, "algorithm", budget=table.budget, seed=0)
    found: dict[Any, float] = {}
    while archs := algorithm.ask(40):
        trials = table(archs)
        algorithm.tell(trials)
        assert not found.keys() & set(archs)
        found.update((trial.arch, trial.metrics["top1"]) for trial in trials)
    rows = encoded(table.budget.space, list(found))
    assert len(found) == table.feasible
    assert (rows.sum(axis=1) <= 5).all()
    assert max(found.values()) == table.optimum
    assert not np.isnan(list(found.values())).any()


def test_the_summary_counts_seeds_and_evaluations(table: Table) -> None:
    assert table.optimum is not None
    best = table.optimum
    searches = [
        {"best": np.array([best - 2, best, best]), "kept": True, "seconds": 1.0},
        {"best": np.array([best - 3, best - 1]), "kept": True, "seconds": 3.0},
    ]
    facts = summary(table, searches)
    assert (facts["found"], facts["mean_regret"], facts["seconds"]) == (0.5, 0.5, 2.0)
    assert facts["median_evaluations_to_optimum"] == np.inf
    assert facts["inside_the_budget"]
    assert "50%, -" in markdown({"half": {"random": facts}})
