"""Validated settings of a search: `configs/search.yaml` but for algorithm, constraint and what other modes read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from supernet.construct import construct
from supernet.errors import UserError
from supernet.export import check_formats

COSTS = ("macs", "params", "latency_ms", "memory_mb", "size_mb")
# What only mode=latency reads, see `search.latency.mode.LatencySettings`.
MEASURING = ("source", "batch", "dtype", "threads", "memory_format", "minutes", "subnets", "held_out")


@dataclass(frozen=True)
class SearchSettings:
    """See `configs/search.yaml` for the meaning of each."""

    mode: Literal["search", "latency", "rank"]
    checkpoint: str | None
    family: str | None
    space: Mapping[str, Any]
    runs_dir: str
    latency: str | None
    arch: str | Mapping[str, Any] | None
    reselect: str | None
    resume: str | None
    seed: int
    device: str
    evaluations: int
    calibration_images: int | None
    finalists: int
    objectives: tuple[str, ...]
    cache: bool
    stop_early: bool
    baseline: Literal["random"] | None
    formats: tuple[str, ...]
    test: bool
    dry_run: bool
    data: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name in ("evaluations", "finalists"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.calibration_images is not None and self.calibration_images < 0:
            raise UserError(f"calibration_images={self.calibration_images}: must not be negative")
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: must not be negative")
        if not 2 <= len(set(self.objectives)) == len(self.objectives) <= 3 or "top1" not in self.objectives:
            raise UserError(f"objectives={list(self.objectives)}: top1 and one or two of {list(COSTS)}")
        if unknown := set(self.objectives) - {"top1", *COSTS}:
            raise UserError(f"objectives: no such cost {sorted(unknown)}; choose from {list(COSTS)}")
        if self.arch is not None and self.resume is not None:
            raise UserError("arch= evaluates one subnet, there is nothing to resume: drop one of the two")
        check_formats(self.formats)

    @staticmethod
    def of(config: Mapping[str, Any]) -> SearchSettings:
        """Raises UserError for unknown, missing or ill-typed entries."""
        if not isinstance(config["data"], Mapping):
            raise UserError(f"data={config['data']}: expected a mapping, or a file of configs/data")
        if not isinstance(config["space"], Mapping) or "_target_" in config["space"]:
            raise UserError("space=<name> goes with mode=latency; a search has the space of its checkpoint")
        elsewhere = {"algorithm", "constraint", "data", "from", "truth", *MEASURING}
        own = {key: value for key, value in config.items() if key not in elsewhere}
        own["reselect"] = config.get("from")  # the word is Python's
        target = {"_target_": "search.settings.SearchSettings", **own}
        settings: SearchSettings = construct(target, "", data=config["data"])  # a description, not yet the data
        return settings

    @property
    def data_overrides(self) -> dict[str, Any]:
        """Entries that replace the training run's own; null keeps those."""
        return {key: value for key, value in self.data.items() if value is not None}
