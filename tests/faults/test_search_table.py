"""Every fault of a search on the page is one that a test brings about, and looks up there."""

from __future__ import annotations

from pathlib import Path

from documented import rows


def test_the_page_lists_the_faults_that_are_tested() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_search_*.py"))
    table = rows("Search")
    assert not [name for name in table if f'"{name}"' not in tests]
    assert len(table) >= 25
    assert all(row.kept for row in table.values())
