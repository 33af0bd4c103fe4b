"""Every fault on the page is one that a test brings about, and the other way round."""

from __future__ import annotations

import re
from pathlib import Path

from documented import rows
from test_disk import FAULTS as DISK
from test_kills import KILLS
from test_numbers import FAULTS as NUMBERS
from test_stop_signals import SIGNALS

HERE = Path(__file__).parent
KINDS = {"the newest checkpoint is ": ("cut", "flipped", "empty", "text", "missing")}
KINDS["an image file is "] = ("unreadable", "truncated", "empty", "missing", "a decompression bomb")


def test_the_page_lists_the_faults_that_are_tested() -> None:
    tested = {*DISK, *KILLS, *NUMBERS, *SIGNALS}
    tested |= {start + kind for start, kinds in KINDS.items() for kind in kinds}
    for file in HERE.glob("test_*.py"):
        if not file.name.startswith("test_search"):
            tested |= set(re.findall(r'as_documented\(\s*"([^"]+)"', file.read_text(encoding="utf-8")))
    table = rows("Training")
    assert tested == table.keys()
    assert len(table) >= 18
    assert all(row.kept for row in table.values())
