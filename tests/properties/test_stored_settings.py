"""Settings that come from files, a run's `config.json` and YAML of one's own: damaged, odd, or made to do harm."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from damage import ODD, Damage, damages, foreign_files, places, replaced
from hypothesis import given
from hypothesis import strategies as st
from overrides import Outcome, no_work, run, stored_run
from tiny_run import spaces

SECTIONS = ("space", "data", "sampler", "path_sampler", "data_sampler", "phases", "sharing")
SECTIONS += ("distill", "optim", "schedule", "train")


@dataclass(frozen=True)
class Stored:
    """An unfinished run whose files are put back before each look at it."""

    folder: Path
    run: Path = field(repr=False)
    files: dict[str, bytes] = field(repr=False)

    def resumed(self, name: str = "config.json", content: bytes | None = None) -> Outcome:
        """What `resume` says with another `content` of one file."""
        for stored, whole in self.files.items():
            (self.run / stored).write_bytes(whole)
        if content is not None:
            (self.run / name).write_bytes(content)
        return run("train", self.folder, f"resume={self.run}", defaults=False)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    folder, before = tmp_path_factory.mktemp("stored"), Path.cwd()
    os.chdir(folder)
    found = stored_run(folder)
    files = {path.name: path.read_bytes() for path in found.iterdir() if path.is_file()}
    try:
        with no_work():
            yield Stored(folder, found, files)
    finally:
        os.chdir(before)


def one_line(outcome: Outcome) -> Outcome:
    """Fine, or one line, before which warnings may stand."""
    assert "Traceback" not in outcome.err, outcome.err
    assert outcome.code in (0, 2), outcome.err
    lines = outcome.err.splitlines()
    if outcome.code:
        assert lines[-1].startswith("error: "), outcome.err
        assert all(line.startswith(("warning: ", "note: ")) for line in lines[:-1]), outcome.err
    return outcome


def test_the_whole_run_is_resumed(stored: Stored) -> None:
    assert one_line(stored.resumed()).code == 0


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("target", ["supernet.runs.write_json", "os.system"])
def test_a_run_folder_names_nothing_else(stored: Stored, section: str, target: str, tmp_path: Path) -> None:
    """A run folder of somebody else is data: its `config.json` cannot call anything."""
    config = json.loads(stored.files["config.json"])
    victim = tmp_path / "victim"
    attack = {"_target_": target, "path": str(victim), "obj": 1, "command": f"touch {victim}"}
    entry = next((key for key in config[section] if key != "_target_"), "x")
    inside = {**config[section], entry: attack}
    for changed in (attack, inside):
        outcome = one_line(stored.resumed(content=json.dumps({**config, section: changed}).encode()))
        # The network is the checkpoint's own: what the configuration says of it is not read.
        assert outcome.code == 2 or section in ("space", "sharing"), outcome.out
        assert not victim.exists()


@pytest.mark.parametrize("name", ["config.json", "splits.json"])
def test_other_files_in_a_run_folder(stored: Stored, name: str, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    others = foreign_files(touched)
    for what in ("nothing", "noise", "list", "mapping", "deep mappings", "long number", "pickle"):
        one_line(stored.resumed(name, others[what]))
        assert not touched.exists()


@pytest.mark.exhaustive
@given(st.data())
def test_odd_settings_of_a_stored_run(stored: Stored, data: st.DataObject) -> None:
    config = json.loads(stored.files["config.json"])
    path = data.draw(st.sampled_from(list(places(config))))
    changed = replaced(config, path, data.draw(st.sampled_from(ODD)))
    one_line(stored.resumed(content=json.dumps(changed).encode()))


@pytest.mark.exhaustive
@given(st.sampled_from(["config.json", "splits.json", "checkpoint.pt"]), damages(Path("/nonexistent")))
def test_damaged_files_of_a_stored_run(stored: Stored, name: str, change: Damage) -> None:
    one_line(stored.resumed(name, change(stored.files[name])))


# YAML of one's own -------------------------------------------------------------------------------------------------


def with_yaml(stored: Stored, content: bytes) -> Outcome:
    """A run whose space is described by this file."""
    path = spaces(stored.folder / "own") / "space" / "tiny.yaml"
    path.write_bytes(content)
    try:
        return run("train", stored.folder / "own", keep_yaml=True)
    finally:
        shutil.rmtree(stored.folder / "own")


def test_other_files_as_yaml(stored: Stored, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    for what, content in foreign_files(touched).items():
        content = content[:5000]  # the parser reads some ten thousand levels of lists a second
        assert one_line(with_yaml(stored, content)).code == 2, what
        assert not touched.exists()


@pytest.mark.exhaustive
@given(damages(Path("/nonexistent")))
def test_damaged_yaml(stored: Stored, change: Damage) -> None:
    whole = (spaces(stored.folder / "whole") / "space" / "tiny.yaml").read_bytes()
    one_line(with_yaml(stored, change(whole)))
