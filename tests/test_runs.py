"""Run folders and atomic JSON files."""

import errno
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

from supernet import runs
from supernet.errors import UserError

NOON = datetime(2026, 1, 2, 12, 0, 5)


def touch(path: Path, age: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    os.utime(path, (2e9 - age, 2e9 - age))
    return path.parent


def test_new_run_never_reuses_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "runs"
    names = [runs.new_run(root, "digits", NOON).name for _ in range(3)]
    assert names == ["20260102-120005-digits", "20260102-120005-digits-2", "20260102-120005-digits-3"]
    assert runs.new_run(root, None, NOON).name == "20260102-120005"
    assert runs.new_run(root, "../a b/c", NOON).parent == root
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: runs.new_run(root, "same", NOON), range(32)))
    assert len(set(folders)) == 32


def test_newest_finished_and_latest(tmp_path: Path) -> None:
    assert runs.latest(tmp_path) is None
    assert runs.latest(tmp_path / "absent") is None
    with pytest.raises(UserError, match=r"python train\.py"):
        runs.newest_finished(tmp_path)
    old = touch(tmp_path / "b-old" / runs.RESULTS, age=100)
    new = touch(tmp_path / "a-new" / runs.RESULTS, age=50)
    unfinished = touch(tmp_path / "c-unfinished" / runs.CHECKPOINT, age=10)
    touch(old / runs.CHECKPOINT, age=100)
    assert runs.newest_finished(tmp_path) == new
    assert runs.latest(tmp_path) == unfinished


def test_json_round_trip_of_what_a_run_records(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    runs.write_json(path, {"nan": math.nan, "t": torch.tensor(1.5), "n": np.float64(2), "p": Path("a"), "l": (1,)})
    assert runs.read_json(path) == {"nan": None, "t": 1.5, "n": 2.0, "p": "a", "l": [1]}
    with pytest.raises(TypeError, match="object"):
        runs.write_json(path, {"x": object()})
    assert runs.read_json(path)["t"] == 1.5, "a failed write must leave the old file"


def test_read_json_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json"):
        runs.read_json(tmp_path / "absent.json")
    (tmp_path / "torn.json").write_text('{"a": [1, ')
    with pytest.raises(UserError, match=r"torn\.json is damaged"):
        runs.read_json(tmp_path / "torn.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="damaged"):
        runs.read_json(tmp_path / "binary.json")


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    runs.write_json(path, [1])

    def full(_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        runs.write_json(path, [2])
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
    assert json.loads(path.read_text()) == [1]


def test_leftovers_of_dead_writers_only_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    prefix = f".x.json.{runs.socket.gethostname()}."
    left = tmp_path / f"{prefix}{dead.stdout.strip()}.tmp"
    ours = tmp_path / f"{prefix}{os.getpid()}.tmp"
    alive = tmp_path / f"{prefix}{os.getppid()}.tmp"
    elsewhere = tmp_path / ".x.json.another-host.1.tmp"
    for file in (left, ours, alive, elsewhere):
        file.write_text("half")
    runs.write_json(path, 1)
    assert {file.name for file in tmp_path.iterdir()} == {"x.json", alive.name, elsewhere.name}


def test_environment_is_plain_and_holds_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_VARIABLE", "secret-from-environment")
    monkeypatch.setattr(sys, "argv", ["train.py", "seed=1", "logger.api_key=hunter2"])
    found = runs.environment()
    runs.write_json(tmp_path / "environment.json", found)
    text = (tmp_path / "environment.json").read_text()
    assert "secret-from-environment" not in text
    assert "hunter2" not in text
    assert found["argv"][:2] == ["train.py", "seed=1"]
    assert found["packages"]["torch"] == torch.__version__.split("+")[0] or found["packages"]["torch"]
    assert datetime.fromisoformat(found["started"]).tzinfo is not None


def test_git_commit_only_of_the_repository_that_tracks_the_code(tmp_path: Path) -> None:
    def git(*args: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e@e"]
        done = subprocess.run(["git", *who, *args], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    code, foreign = tmp_path / "code.py", tmp_path / "foreign.py"
    for file in (code, foreign):
        file.write_text("1")
    assert runs._git(code) is None
    git("init")
    git("add", "code.py")
    git("commit", "-m", "first")
    assert runs._git(code) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    assert runs._git(foreign) is None
    code.write_text("2")
    assert runs._git(code) == {"commit": git("rev-parse", "HEAD"), "dirty": True}
