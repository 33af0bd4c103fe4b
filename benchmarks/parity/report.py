"""What was compared, how far apart it is, and how far apart it may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

HEADERS = ("what", "cases", "worst error", "of", "tolerance", "ok")


@dataclass(frozen=True)
class Row:
    """One comparison. `worst` is the error of the case named `where`, in the measure `of`."""

    what: str
    cases: int
    worst: float
    where: str
    of: str
    tolerance: float

    @property
    def passed(self) -> bool:
        """False also where there was nothing to compare, or the error is no number."""
        return self.cases > 0 and self.worst <= self.tolerance

    def cells(self) -> list[str]:
        """In the order of `HEADERS`."""
        exact = self.tolerance == 0
        numbers = ["0" if value == 0 else f"{value:.1e}" for value in (self.worst, self.tolerance)]
        limit = "exact" if exact else numbers[1]
        return [self.what, f"{self.cases:,}", numbers[0], self.of, limit, "yes" if self.passed else "NO"]


@dataclass
class Report:
    """Collects rows, and prints each as it comes. `tables` are further ones by title: header, rows."""

    console: Console
    rows: list[Row] = field(default_factory=list)
    tables: dict[str, list[Sequence[str]]] = field(default_factory=dict)

    def add(self, what: str, errors: Mapping[str, float], tolerance: float, of: str) -> None:
        """Add the comparison `what`: the error of each case by its name, in the measure `of`."""
        where = max(errors, key=lambda name: (errors[name] != errors[name], errors[name]), default="nothing")
        row = Row(what, len(errors), errors.get(where, float("nan")), where, of, tolerance)
        self.rows.append(row)
        state = "ok" if row.passed else "[red]NOT OK[/red]"
        self.console.print(f"{state}  {what}: {row.worst:.2e} of {tolerance:.0e} in {row.cases} cases, at {where}")

    def equal(self, what: str, pairs: Mapping[str, tuple[Any, Any]]) -> None:
        """Add a comparison of values that must be equal, (ours, the original's) by case; numbers by difference."""
        self.add(what, {name: _distance(ours, theirs) for name, (ours, theirs) in pairs.items()}, 0.0, "absolute")

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.passed for row in self.rows)

    def show(self) -> None:
        """Print the table of all comparisons, and all tables as Markdown."""
        table = Table(*HEADERS, title="against the original codes")
        for row in self.rows:
            table.add_row(*row.cells(), style="" if row.passed else "red")
        self.console.print(table)
        print(_markdown([HEADERS, *(row.cells() for row in self.rows)]))
        for title, lines in self.tables.items():
            print(f"\n{title}\n\n{_markdown(lines)}")

    def as_json(self) -> dict[str, Any]:
        """All of it, for a file."""
        rows = [{**vars(row), "passed": row.passed} for row in self.rows]
        return {"passed": self.passed, "rows": rows, "tables": self.tables}


def _distance(ours: Any, theirs: Any) -> float:
    """0 where equal; of numbers their difference, else infinite."""
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return float(abs(ours - theirs))
    return 0.0 if ours == theirs else float("inf")


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    rows = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([rows[0], f"|{'---|' * len(lines[0])}", *rows[1:]])
