"""Searches that are interrupted, for tests."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from search.algorithm import Trial
from search.evaluator import SupernetEvaluator
from supernet.space import Arch


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Ctrl-C in call number `count` + 1 of the evaluator; with reuse_mb=0 that is one call for every subnet."""
    original, calls = SupernetEvaluator.__call__, iter(range(10**6))

    def call(self: SupernetEvaluator, archs: Sequence[Arch]) -> list[Trial]:
        if next(calls) == count:
            raise KeyboardInterrupt
        return original(self, archs)

    monkeypatch.setattr(SupernetEvaluator, "__call__", call)
