"""The table of docs/faults.md: what each fault looks like, and whether that is true."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from zygote import Ended

PAGE = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
ROW = re.compile(r"^\| (?P<name>[^|]+) \| (?P<line>[^|]+) \| (?P<kept>[^|]+) \| (?P<code>\d+) \|$", re.MULTILINE)
NOTHING = "nothing"


@dataclass(frozen=True)
class Row:
    """A fault, the one line that the user sees (… stands for anything), what is kept, and the exit code."""

    name: str
    line: str
    kept: str
    code: int


def rows(heading: str) -> dict[str, Row]:
    """The table under a heading of the page, by the name of the fault."""
    section = PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found = (
        Row(m["name"].strip(), m["line"].strip(), m["kept"].strip(), int(m["code"])) for m in ROW.finditer(section)
    )
    return {row.name: row for row in found}


def as_documented(name: str, ended: Ended, heading: str = "Training") -> None:
    """Assert that a run ended as the page says: exit code, the one line, no traceback."""
    row = rows(heading)[name]
    assert "Traceback" not in ended.out + ended.err, ended.text
    assert ended.code == row.code, ended.text
    lines = ended.err.splitlines()
    if row.line == NOTHING:
        assert lines == [], ended.text
        return
    pattern = ".*".join(re.escape(part) for part in row.line.strip("`").split("…"))
    if re.match(r"`(error|warning): ", row.line) and lines:
        assert len(lines) == 1, ended.text
        assert re.fullmatch(pattern, lines[0]), f"{pattern}\n{ended.text}"
    else:
        assert lines == [], ended.text
        assert any(re.fullmatch(pattern, line) for line in ended.out.splitlines()), f"{pattern}\n{ended.text}"
