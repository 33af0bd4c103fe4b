"""A search that is killed, told to stop, or out of disk space goes on and ends like one that was not."""

from __future__ import annotations

from pathlib import Path

import pytest
from documented import as_documented
from searching import copied, ends_like, only_search, same_end, searching
from zygote import Injection, Zygote

# What happens, and how many scores are kept.
KILLS: dict[str, tuple[Injection, int]] = {
    "SIGKILL while a subnet is scored": (("kill_in_evaluation", 4), 3),
    "SIGKILL while a trial is appended": (("kill_in_append", 5), 3),
    "SIGKILL while the record of trials is begun": (("kill_in_append", 1), 0),
    "SIGKILL while the export is written": (("kill_in_export", "weights"), 8),
    "SIGKILL while the export is checked": (("kill_in_export", "check"), 8),
    "SIGKILL before the export has its name": (("kill_in_export", "name"), 8),
    "SIGKILL while front.json is written": (("kill_in_write", "front.json", 1, "bytes"), 8),
    "SIGKILL before results.json has its name": (("kill_in_write", "results.json", 1, "rename"), 8),
}
SIGNALS: dict[str, tuple[Injection, int]] = {
    "SIGTERM while a subnet is scored": (("signal_in_evaluation", 4, "SIGTERM"), 3),
    "SIGUSR1 in the export": (("signal_in_export", "SIGUSR1"), 8),
    "Ctrl-C while a subnet is scored": (("signal_in_evaluation", 6, "SIGINT"), 5),
}
DISK: dict[str, tuple[Injection, int]] = {
    "full disk while a trial is appended": (("full_disk_for_trials", 6), 4),
    "full disk while the export is written": (("full_disk", "model.safetensors", 1), 8),
    "full disk while results.json is written": (("full_disk", "results.json", 1), 8),
}
EXPORTED: tuple[str, ...] = ("SIGKILL while front.json is written", "SIGKILL before results.json has its name")
EXPORTED += ("full disk while results.json is written",)
OFTEN = (
    *(
        "SIGKILL while a subnet is scored",
        "SIGKILL while a trial is appended",
        "SIGKILL before the export has its name",
    ),
    *("SIGTERM while a subnet is scored", "SIGUSR1 in the export"),
    *("full disk while a trial is appended", "full disk while the export is written"),
)
FAULTS = {**KILLS, **SIGNALS, **DISK}
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")


@needs_full
@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.exhaustive) for name in FAULTS]
)
def test_stopped_and_resumed(zygote: Zygote, whole: Path, whole_search: Path, tmp_path: Path, name: str) -> None:
    fault, known = FAULTS[name]
    run = copied(whole, tmp_path)
    ended = zygote.run(searching(run), fault)
    as_documented(name, ended, "Search")
    search = only_search(run)
    if name not in KILLS:
        assert f"resume={search}" in ended.out + ended.err
        assert not (search / ".subnet.partial").exists()
    if name not in EXPORTED:
        ends_like(zygote, run, whole_search, known)
        return
    again = zygote.run(searching(run, "resume=auto"))
    assert (again.code, again.err) == (0, ""), again.text
    same_end(search, whole_search)


def test_a_signal_before_anything_is_scored(zygote: Zygote, whole: Path, tmp_path: Path) -> None:
    run = copied(whole, tmp_path)
    ended = zygote.run(searching(run), ("signal_at_the_start", "SIGTERM"))
    as_documented("SIGTERM before the first subnet", ended, "Search")


def test_a_search_folder_that_is_deleted(zygote: Zygote, whole: Path, tmp_path: Path) -> None:
    run = copied(whole, tmp_path)
    as_documented("the search folder is deleted", zygote.run(searching(run), ("folder_deleted", 4)), "Search")
    assert list((run / "search").glob("*/")) == [], "nothing may be made again"


def test_two_searches_in_one_folder(zygote: Zygote, whole: Path, whole_search: Path, tmp_path: Path) -> None:
    run, file = copied(whole, tmp_path), tmp_path / "go"
    first = zygote.start(searching(run), ("wait_in_evaluation", 3, str(file)))
    while not Path(f"{file}.here").exists():
        pass
    second = zygote.run(searching(run, f"resume={only_search(run)}"))
    auto = zygote.run(searching(run, "resume=auto"))
    file.touch()
    ended = first.ended()
    as_documented("two searches in one folder", second, "Search")
    as_documented("two searches in one folder", auto, "Search")
    assert (ended.code, ended.err) == (0, ""), ended.text
    same_end(only_search(run), whole_search)


def test_weights_that_change_during_a_search(zygote: Zygote, whole: Path, whole_search: Path, tmp_path: Path) -> None:
    """A search has read them before."""
    run = copied(whole, tmp_path)
    as_documented(
        "training goes on during a search", zygote.run(searching(run), ("weights_replaced", 3, str(run))), "Search"
    )
    same_end(only_search(run), whole_search)


def test_a_folder_that_cannot_be_written(zygote: Zygote, whole: Path, tmp_path: Path) -> None:
    run = copied(whole, tmp_path)
    refused = zygote.run(searching(run), ("no_permission",))
    (run / "search").write_text("in the way")
    for ended in (refused, zygote.run(searching(run))):
        as_documented("a folder for searches that cannot be written", ended, "Search")
        assert str(run / "search") in ended.err


def test_a_format_that_a_subnet_cannot_be_written_in(zygote: Zygote, whole: Path, tmp_path: Path) -> None:
    run = copied(whole, tmp_path)
    ended = zygote.run(searching(run, "arch=largest", "formats=[pt2]"), ("format_fails", "pt2"))
    as_documented("a subnet that a format cannot hold", ended, "Search")
    left = {path.name for path in only_search(run).iterdir()}
    assert "config.json" in left
    assert not left & {"subnet", ".subnet.partial", "results.json"}
