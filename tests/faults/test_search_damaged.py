"""Files of a search, and files that a search reads, that are damaged or changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from documented import as_documented
from searching import copied, ends_like, only_search, same_end, searching, train_on, trials
from zygote import Zygote

from supernet.runs import write_json


@pytest.fixture
def half(zygote: Zygote, whole: Path, tmp_path: Path) -> Path:
    """A run whose only search was killed after six scores."""
    run = copied(whole, tmp_path)
    assert zygote.run(searching(run), ("kill_in_evaluation", 7)).code == 137
    return run


def edited(file: Path, edit: Callable[[list[bytes]], list[bytes]]) -> bytes:
    """Change the lines of a file; returns what it holds then."""
    file.write_bytes(b"".join(edit(file.read_bytes().splitlines(keepends=True))))
    return file.read_bytes()


def test_a_last_line_that_is_cut(zygote: Zygote, half: Path, whole_search: Path) -> None:
    search = only_search(half)
    edited(search / "trials.jsonl", lambda lines: [*lines[:-1], lines[-1][:50]])
    assert len(trials(search)) == 5
    ended = zygote.run(searching(half, f"resume={search}"))
    as_documented("trials.jsonl has a cut last line", ended, "Search")
    same_end(search, whole_search)


def flipped(line: bytes) -> bytes:
    """Another score, which only the checksum tells from a true one."""
    at = line.index(b'"top1": ') + len(b'"top1": ')
    digit = b"1" if line[at : at + 1] != b"1" else b"2"
    return line[:at] + digit + line[at + 1 :]


LINE, FIRST = "a line of trials.jsonl is damaged", "the first line of trials.jsonl is damaged"
DAMAGE: dict[str, tuple[str, Callable[[list[bytes]], list[bytes]]]] = {
    "flipped": (LINE, lambda lines: [*lines[:3], flipped(lines[3]), *lines[4:]]),
    "cut": (LINE, lambda lines: [*lines[:3], lines[3][:40] + b"\n", *lines[4:]]),
    "no checksum": (
        LINE,
        lambda lines: [*lines[:2], lines[2].partition(b', "crc32"')[0] + b"}\n", *lines[3:]],
    ),
    "another seed": (FIRST, lambda lines: [lines[0].replace(b'"seed": 0', b'"seed": 1'), *lines[1:]]),
    "zeros": (FIRST, lambda lines: [b"\0" * 200 + b"\n"]),
}


def test_a_line_that_is_damaged(zygote: Zygote, half: Path, whole_search: Path) -> None:
    search = only_search(half)
    file = search / "trials.jsonl"
    whole = file.read_bytes()
    for name, (fault, edit) in DAMAGE.items():
        file.write_bytes(whole)
        damaged = edited(file, edit)
        assert damaged != whole, name
        ended = zygote.run(searching(half, f"resume={search}"))
        as_documented(fault, ended, "Search")
        assert file.read_bytes() == damaged, f"{name}: left as it is"
    # What the message says: without that line and all after it, the search goes on.
    file.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    ends_like(zygote, half, whole_search, known=2)


def test_weights_that_changed_since_the_search_began(zygote: Zygote, half: Path) -> None:
    search = only_search(half)
    before = (search / "trials.jsonl").read_bytes()
    train_on(half)
    ended = zygote.run(searching(half, f"resume={search}"))
    as_documented("training went on since the search began", ended, "Search")
    assert (search / "trials.jsonl").read_bytes() == before


def test_a_configuration_that_is_damaged(zygote: Zygote, half: Path, whole_search: Path) -> None:
    search = only_search(half)
    for content in ("{", "[]", '{"checkpoint": 3}', '{"algorithm": [1], "checkpoint": "x"}', "[" * 100_000, "9" * 5000):
        (search / "config.json").write_text(content)
        ended = zygote.run(searching(half, f"resume={search}"))
        as_documented("a search's config.json is damaged", ended, "Search")
    (search / "config.json").unlink()  # as the message says
    ends_like(zygote, half, whole_search, known=6)


def test_records_that_serve_as_hints(zygote: Zygote, half: Path, whole_search: Path) -> None:
    """Damage in them costs nothing but the hint."""
    search = only_search(half)
    for file in (search / "environment.json", half / "environment.json", half / "config.json"):
        file.write_text("{")
    (search / "scoring.json").write_text("[1")
    ended = zygote.run(searching(half, f"resume={search}"))
    as_documented("environment.json or scoring.json is damaged", ended, "Search")
    same_end(search, whole_search)


ARCHS = ("{", "[]", "3", '{"resolution": 8}', "", "[" * 100_000)
FRONTS = ("{", '{"rows": 3}', '{"rows": [3]}', '{"rows": [{}]}', '{"rows": [{"arch": {"resolution": 1}}]}')


def test_files_that_name_a_subnet(zygote: Zygote, whole: Path, tmp_path: Path) -> None:
    run = copied(whole, tmp_path)
    for name, row, contents in (("arch.json", "", ARCHS), ("front.json", "#0", FRONTS)):
        for content in contents:
            (tmp_path / name).write_text(content)
            ended = zygote.run(searching(run, f"arch={tmp_path / name}{row}"))
            as_documented("arch.json or front.json is damaged", ended, "Search")
    assert not (run / "search").exists()


def test_a_front_to_choose_from(zygote: Zygote, whole_search: Path, tmp_path: Path) -> None:
    run = copied(whole_search.parent.parent, tmp_path)
    front = only_search(run) / "front.json"
    for content in ("{", "[]", '{"rows": [], "chosen": 3}', json.dumps({"rows": [{"arch": {}, "top1_val": 3}]})):
        front.write_text(content)
        ended = zygote.run(searching(run, f"from={front.parent}"))
        as_documented("arch.json or front.json is damaged", ended, "Search")


def test_a_latency_model_that_is_damaged(zygote: Zygote, whole: Path, tmp_path: Path) -> None:
    run, file = copied(whole, tmp_path), tmp_path / "latency.json"
    space = "tiny"
    contents: tuple[Any, ...] = (
        {"format": "latency-model-1"},
        {"format": "latency-model-1", "space": space, "genes": 3, "factors": []},
        {"format": "latency-model-1", "space": space, "genes": [{"name": 1}], "factors": []},
        [],
    )
    for content in contents:
        write_json(file, content)
        ended = zygote.run(searching(run, f"latency={file}", "constraint.latency_ms=3"))
        as_documented("a latency model is damaged", ended, "Search")
    assert not (run / "search").exists()


def test_a_checkpoint_that_is_damaged(zygote: Zygote, whole: Path, tmp_path: Path) -> None:
    run = copied(whole, tmp_path)
    content = (run / "checkpoint.pt").read_bytes()
    (run / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    as_documented("the checkpoint to search is damaged", zygote.run(searching(run)), "Search")
    assert not (run / "search").exists()
