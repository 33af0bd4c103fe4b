"""Settings without effect are named, others are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import tiny_config

from supernet.notes import notes


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        ((), None),
        (("sampler=uniform", "distill=none"), None),
        (("sampler=uniform", "phases=deps"), None),
        (("sampler=uniform", "teacher=somewhere"), None),
        (("path_sampler=importance", "phases=deps"), None),
        (("sampler=uniform", "distill=ofa"), "labels alone"),
        (("teacher=somewhere", "distill=none"), "teacher has no effect"),
        (("sampler=largest", "path_sampler=importance"), "path_sampler has no effect"),
        (("sampler.num_random=0", "path_sampler=attentive"), "path_sampler has no effect"),
        (("sampler=largest", "phases=deps"), "phases=deps has no effect"),
        (("sharing=groups", "sharing.groups=2", "sharing.archs=x.json"), "path_sampler=listed"),
    ],
)
def test_what_does_nothing_is_said(overrides: tuple[str, ...], word: str | None, tmp_path: Path) -> None:
    found = notes(tiny_config(tmp_path, *overrides))
    assert len(found) == (0 if word is None else 1)
    assert word is None or word in found[0]
