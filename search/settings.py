"""Validated settings of a search: `configs/search.yaml` but for algorithm, constraint and what other modes read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from supernet.construct import coerce, construct, shown
from supernet.errors import UserError
from supernet.export import check_formats
from supernet.settings import LONGEST_S, check_sections

COSTS = ("macs", "params", "latency_ms", "memory_mb", "size_mb")
# What only mode=latency reads, see `search.latency.mode.LatencySettings`.
MEASURING = ("source", "batch", "dtype", "threads", "memory_format", "minutes", "subnets", "held_out")
SECTIONS = ("algorithm", "constraint", "data")
GRADIENT = "search.gradient.search.GradientSearch"  # `_target_` of the algorithms that train while they search


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
    timeout_s: float
    evaluations: int
    calibration_images: int | None
    finalists: int
    objectives: tuple[str, ...]
    cache: bool
    stop_early: bool
    eval_batch: int | Literal["auto"] | None
    eval_dtype: Literal["float32", "bfloat16", "auto"]
    reuse_mb: float
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
        if isinstance(self.eval_batch, int) and self.eval_batch < 1:
            raise UserError(f"eval_batch={self.eval_batch}: must be at least 1, auto, or null")
        if not 0 <= self.reuse_mb < math.inf:
            raise UserError(f"reuse_mb={self.reuse_mb}: must not be negative or infinite")
        if not 0 < self.timeout_s <= LONGEST_S:
            raise UserError(f"timeout_s={self.timeout_s}: must be above 0, at most {LONGEST_S:,} (a day)")
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: must not be negative")
        if not 2 <= len(set(self.objectives)) == len(self.objectives) <= 3 or "top1" not in self.objectives:
            raise UserError(f"objectives={list(self.objectives)}: top1 and one or two of {list(COSTS)}")
        if unknown := set(self.objectives) - {"top1", *COSTS}:
            raise UserError(f"objectives: no such cost {sorted(unknown)}; choose from {list(COSTS)}")
        if self.arch is not None and self.resume is not None:
            raise UserError("arch= evaluates one subnet, there is nothing to resume: drop one of the two")
        if self.is_fresh:
            self._check_fresh()
        check_formats(self.formats)

    def _check_fresh(self) -> None:
        """Refuse what needs trained weights."""
        untrained = "space=<name> starts from untrained weights"
        if "_target_" not in self.data and self.resume is None:
            raise UserError(f"{untrained}, so it needs images to train on: say data=digits, data=fashion_mnist, ...")
        for name, path in (("checkpoint", self.checkpoint), ("family", self.family)):
            if path is not None:
                raise UserError(f"{name}={path} names trained weights, {untrained}: drop one of the two")
        for name, subnet in (("arch", self.arch), ("from", self.reselect)):
            if subnet is not None:
                raise UserError(
                    f"{name}={subnet} needs trained weights, {untrained}: drop space=, say checkpoint=<run>"
                )

    @staticmethod
    def of(config: Mapping[str, Any]) -> SearchSettings:
        """Raises UserError for unknown, missing or ill-typed entries."""
        check_config(config)
        if not isinstance(config["space"], Mapping):
            raise UserError(f"space={shown(config['space'])}: expected a mapping, or a file of configs/space")
        if "_target_" in config["space"] and not is_gradient(config["algorithm"]):
            raise UserError(
                f"space=<name> starts from untrained weights, which algorithm={short_name(config['algorithm'])} cannot "
                "search: train first (python train.py space=...), or use a gradient algorithm (tangle, darts, drnas, "
                "gdas, snas, proxyless, rarts)"
            )
        elsewhere = {"algorithm", "constraint", "data", "from", "truth", *MEASURING}
        own = {key: value for key, value in config.items() if key not in elsewhere}
        own["reselect"] = config.get("from")  # the word is Python's
        target = {"_target_": "search.settings.SearchSettings", **own}
        described = {"data": config["data"]}  # not yet the data
        if "_target_" in config["space"]:
            described["space"] = config["space"]  # not yet the space
        settings: SearchSettings = construct(target, "", **described)
        return settings

    @property
    def is_fresh(self) -> bool:
        """Whether the search trains the weights itself, from initial ones: `space` is then a whole space."""
        return "_target_" in self.space

    @property
    def data_overrides(self) -> dict[str, Any]:
        """Entries that replace the training run's own; null keeps those."""
        return {key: value for key, value in self.data.items() if value is not None}


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse a search configuration that lacks a key, or whose sections are something else.

    Raises:
        UserError: naming the key.
    """
    own = set(SearchSettings.__dataclass_fields__) - {"reselect", *SECTIONS}
    check_sections(config, SECTIONS, sorted(own | {"from", "truth", *MEASURING}))
    for key in ("resume", "from", "family", "arch"):
        coerce(config[key], str | dict | None if key == "arch" else str | None, key)
    coerce(config["runs_dir"], str, "runs_dir")
    if config["arch"] is not None and not config["arch"]:
        raise UserError(f"arch={config['arch']}: names no subnet; null is a search, largest the largest subnet")


def is_gradient(algorithm: Mapping[str, Any]) -> bool:
    """Whether this section of a configuration describes gradient-based search."""
    return algorithm.get("_target_") == GRADIENT


def short_name(algorithm: Mapping[str, Any]) -> str:
    """An algorithm's name in messages: its own if it has one, else that of its file."""
    return str(algorithm.get("name") or str(algorithm.get("_target_")).rpartition(".")[0].rpartition(".")[2])
