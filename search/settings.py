"""Validated settings of a search: all of `configs/search.yaml` but the algorithm and the constraint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from supernet.construct import construct
from supernet.errors import UserError
from supernet.export import check_formats


@dataclass(frozen=True)
class SearchSettings:
    """See `configs/search.yaml` for the meaning of each."""

    checkpoint: str | None
    family: str | None
    space: Mapping[str, Any]
    runs_dir: str
    arch: str | Mapping[str, Any] | None
    resume: str | None
    seed: int
    device: str
    evaluations: int
    calibration_images: int | None
    finalists: int
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
        if self.arch is not None and self.resume is not None:
            raise UserError("arch= evaluates one subnet, there is nothing to resume: drop one of the two")
        check_formats(self.formats)

    @staticmethod
    def of(config: Mapping[str, Any]) -> SearchSettings:
        """Raises UserError for unknown, missing or ill-typed entries."""
        own = {key: value for key, value in config.items() if key not in ("algorithm", "constraint", "data")}
        if not isinstance(config["data"], Mapping):
            raise UserError(f"data={config['data']}: expected a mapping, or a file of configs/data")
        target = {"_target_": "search.settings.SearchSettings", **own}
        settings: SearchSettings = construct(target, "", data=config["data"])  # a description, not yet the data
        return settings

    @property
    def data_overrides(self) -> dict[str, Any]:
        """Entries that replace the training run's own; null keeps those."""
        return {key: value for key, value in self.data.items() if value is not None}
