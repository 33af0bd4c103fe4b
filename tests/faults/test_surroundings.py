"""Other processes and clocks."""

from __future__ import annotations

import time
from pathlib import Path

from documented import as_documented
from faulty import RECIPE, resuming, same_end, training
from tiny_run import only_run
from zygote import Zygote

from supernet.runs import read_json


def test_two_processes_in_one_run_folder(zygote: Zygote, whole: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    first = zygote.start(training(tmp_path, *RECIPE), ("wait_in_step", 5, str(go)))
    deadline = time.monotonic() + 60
    while not Path(f"{go}.here").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run = only_run(tmp_path)
    second = zygote.run(resuming(tmp_path, run))
    go.touch()
    ended = first.ended()
    as_documented("two processes with the same run folder", second)
    assert (ended.code, ended.err) == (0, ""), ended.text
    same_end(run, whole)


def test_a_clock_that_goes_backwards(zygote: Zygote, whole: Path, tmp_path: Path) -> None:
    ended = zygote.run(training(tmp_path, *RECIPE), ("clock_runs_backwards",))
    as_documented("a clock that goes backwards", ended)
    run = only_run(tmp_path)
    same_end(run, whole)
    assert read_json(run / "results.json")["seconds"] >= 0
    assert "-" not in ended.out.partition("ETA")[2].partition("\n")[0], "a negative time left"
