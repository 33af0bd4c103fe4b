"""What a launcher starts again is gone on with, and not begun anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import only_run, search_config, tiny_config
from tiny_search import stop_after

from search import runner
from supernet import restart
from supernet.job import main
from supernet.restart import begun_before, launcher
from supernet.runs import write_json


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun's default, for every job
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")


def test_a_training_that_was_finished_is_not_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process can fail after the results are written: torchrun then starts the whole command again."""
    config = tiny_config(tmp_path, "train.epochs=1", "resume=auto")
    top1 = main(config)
    run = only_run(tmp_path)
    capsys.readouterr()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(config) == top1
    assert only_run(tmp_path) == run
    assert capsys.readouterr().out == f"{run} was finished before this restart\n"
    monkeypatch.setattr(restart, "launcher", lambda: "another")
    main(config)
    assert len(list(run.parent.iterdir())) == 2


def test_what_this_launcher_has_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, mine in (("old", launcher()), ("theirs", "0123"), ("alone", None), ("new", launcher())):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "environment.json", {"launcher": mine})
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "environment.json").write_text("{")
    assert begun_before(tmp_path) is None, "a first start has none before it"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert begun_before(tmp_path) == tmp_path / "new"
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert begun_before(tmp_path) is None
    assert launcher() is None


def test_a_search_goes_on_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the same command, with `resume=auto` or without; a finished one is not begun again."""
    main(tiny_config(tmp_path, "train.epochs=1"))
    run = only_run(tmp_path)
    words = ("evaluations=8", "reuse_mb=0", "cache=false")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            runner.main(search_config(run, *words, "resume=auto"))
    (folder,) = (run / "search").iterdir()
    begun = (folder / "trials.jsonl").read_text()
    assert len(begun.splitlines()) == 1 + 3
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    value = runner.main(search_config(run, *words))
    whole = (folder / "trials.jsonl").read_text()
    assert whole.startswith(begun)
    assert len(whole.splitlines()) == 1 + 8
    assert runner.main(search_config(run, *words, "resume=auto")) == value
    assert list((run / "search").iterdir()) == [folder]
    assert f"{folder} was finished before this restart" in capsys.readouterr().out
