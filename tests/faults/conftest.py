"""Runs to disturb, and the undisturbed one to compare with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty import RECIPE, training
from searching import copied, only_search, searching
from tiny_run import only_run
from zygote import Zygote


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    made = Zygote(tmp_path_factory.mktemp("output"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def whole(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    ended = zygote.run(training(folder, *RECIPE))
    assert (ended.code, ended.err) == (0, ""), ended.text
    return only_run(folder)


@pytest.fixture(scope="session")
def whole_search(zygote: Zygote, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The search of that run's supernet that nothing happens to."""
    run = copied(whole, tmp_path_factory.mktemp("searched"))
    ended = zygote.run(searching(run))
    assert (ended.code, ended.err) == (0, ""), ended.text
    return only_search(run)


@pytest.fixture(scope="session")
def broken_off(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in step 11: checkpoint.pt is of step 9, checkpoint-1.pt of step 8."""
    folder = tmp_path_factory.mktemp("broken_off")
    assert zygote.run(training(folder, *RECIPE), ("kill_in_step", 11)).code == 137
    return only_run(folder)


@pytest.fixture
def unfinished(broken_off: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes copies of that run, to damage them."""
    count = iter(range(100))

    def copy() -> Path:
        return Path(shutil.copytree(broken_off, tmp_path / "runs" / "train" / f"copy-{next(count)}"))

    return copy
