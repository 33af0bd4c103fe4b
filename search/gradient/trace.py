"""What a gradient-based search shows while it runs: of every epoch the decoded subnet, costs and probabilities."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from search.constraint import Budget
from search.limits import LABELS, shown
from supernet.runs import write_atomic
from supernet.space import Arch, Space

TRACE = "trace.jsonl"


@dataclass(frozen=True)
class Record:
    """The end of one epoch.

    Attributes:
        losses: means over the epoch, in nats.
        expected: expected costs by measure.
        bound: what the bound reports (multipliers).
        entropy: of every gene, as a share of the logarithm of its number of options; 0: decided.
        probs: [genes][options].
        decoded: the most probable subnet inside the budget, in its readable form, and its `costs`.
    """

    epoch: int
    step: int
    seconds: float
    losses: Mapping[str, float]
    lr: float
    expected: Mapping[str, float]
    bound: Mapping[str, float]
    entropy: Sequence[float]
    probs: Sequence[Sequence[float]]
    decoded: Mapping[str, Any]
    costs: Mapping[str, float]


class Trace:
    """The records of a search, in `trace.jsonl` of its folder."""

    def __init__(self, folder: Path, space: Space, budget: Budget) -> None:
        self.folder, self.space, self.budget = folder, space, budget
        self.records: list[Record] = []

    def add(self, record: Record) -> None:
        self.records.append(record)

    def mean_entropy(self, record: Record) -> float:
        """Over the genes that have a choice."""
        free = [value for value, gene in zip(record.entropy, self.space.genes, strict=True) if len(gene.options) > 1]
        return sum(free) / max(1, len(free))

    def line(self, record: Record) -> str:
        """For people."""
        losses = "  ".join(f"{name} {value:.4f}" for name, value in record.losses.items())
        names = list(self.budget.windows) or ["macs"]
        costs = "  ".join(
            f"{LABELS.get(name, name)} {shown(name, record.costs[name])}"
            + (f" (expected {shown(name, record.expected[name])})" if name in record.expected else "")
            for name in names
        )
        return f"epoch {record.epoch}  {losses}  entropy {self.mean_entropy(record):.3f}  decoded: {costs}"

    def archs(self) -> list[Arch]:
        """The decoded subnets, newest first, each once."""
        return list(dict.fromkeys(self.space.from_json(record.decoded) for record in reversed(self.records)))

    def dumps(self) -> str:
        """For checkpoints."""
        return "\n".join(json.dumps(asdict(record)) for record in self.records)

    def loads(self, text: str) -> None:
        """The inverse."""
        self.records = [Record(**json.loads(line)) for line in text.splitlines()]

    def write(self) -> None:
        """Replace the file."""
        text = "".join(json.dumps(asdict(record)) + "\n" for record in self.records)
        write_atomic(self.folder / TRACE, lambda file: file.write(text.encode()))
