"""Validated settings of a training run: the `train` section of the configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from supernet.construct import coerce, nearest, shown
from supernet.errors import UserError
from supernet.log import check_logger


@dataclass(frozen=True)
class TrainSettings:
    """How long, how regularised, how often evaluated. Rates are fractions, images counts, steps optimizer steps."""

    epochs: int
    batch_size: int
    label_smoothing: float = 0.1
    dropout: float = 0.0
    drop_path: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    clip_value: float | None = None
    clip_norm: float | None = None
    ema_decay: float | None = None
    init: Literal["fan_out", "torch", "trunc_normal"] = "fan_out"
    zero_gamma: Literal["identity", "all", "none"] = "identity"
    amp: bool = False
    channels_last: bool | Literal["auto"] = False
    compile: Literal["off", "blocks", "extremes"] = "off"
    checkpoint_activations: bool = False
    micro_batch: int | Literal["auto"] | None = None
    sync_batch_norm: bool = False
    eval_every: int = 1
    eval_steps: int = 0
    eval_random: int = 3
    eval_images: int | None = None
    calibration_images: int = 512
    save_every: int = 0
    keep_checkpoints: int = 2
    log_every: int = 50
    health_every: int = 100
    collapse: Literal["stop", "warn", "off"] = "stop"
    test: bool = True

    def __post_init__(self) -> None:
        for key in ("epochs", "batch_size", "calibration_images", "log_every", "eval_every", "keep_checkpoints"):
            if getattr(self, key) < 1:
                raise UserError(f"train.{key}={getattr(self, key)}: must be at least 1")
        if isinstance(self.micro_batch, int) and self.micro_batch < 1:
            raise UserError(f"train.micro_batch={self.micro_batch}: must be at least 1, auto or null")
        for key in ("dropout", "drop_path", "label_smoothing"):
            if not 0 <= getattr(self, key) < 1:
                raise UserError(f"train.{key}={getattr(self, key)}: must be in [0, 1)")
        for key in ("clip_value", "clip_norm", "eval_images"):
            if getattr(self, key) is not None and not getattr(self, key) > 0:
                raise UserError(f"train.{key}={getattr(self, key)}: must be positive, or null")
        for key in ("mixup", "cutmix", "save_every", "eval_random", "eval_steps", "health_every"):
            if not 0 <= getattr(self, key) < math.inf:
                raise UserError(f"train.{key}={getattr(self, key)}: must not be negative or infinite")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"train.ema_decay={self.ema_decay}: must be between 0 and 1, or null")


LONGEST_S = 86400  # of a wait for another process

TOP_LEVEL = {
    "seed": int,
    "name": str | None,
    "runs_dir": str,
    "device": str,
    "dry_run": bool,
    "resume": str | None,
    "init_from": str | None,
    "arch": str | dict | None,
    "init": Literal["supernet", "scratch"],
    "sort_channels": int | None,
    "teacher": str | None,
    "timeout_s": float,
}


SECTIONS = (
    *("space", "data", "sampler", "path_sampler", "data_sampler", "phases", "sharing"),
    *("distill", "optim", "schedule", "logger", "train"),
)


def check_sections(config: Mapping[str, Any], sections: Sequence[str], settings: Iterable[str] = ()) -> None:
    """Refuse a configuration from which something was taken away, or whose sections are something else.

    Raises:
        UserError: naming the key.
    """
    for key in (*settings, *sections):
        if key not in config:
            raise UserError(f"{key} is missing: it has no default, drop what takes it away (~{key}, {key}=null)")
        if key in sections and not isinstance(config[key], Mapping):
            raise UserError(
                f"{key}={shown(config[key])}: expected a section of settings, as a file of configs gives it"
            )


def check_top_level(config: Mapping[str, Any]) -> None:
    """Refuse ill-typed settings outside the groups.

    Raises:
        UserError: naming the key, the value and what was expected.
    """
    check_sections(config, SECTIONS, TOP_LEVEL)
    check_logger(config["logger"])
    known = [*SECTIONS, *TOP_LEVEL]
    for key in config:
        if key not in known:
            close = nearest(str(key), known)
            hint = f": did you mean {' or '.join(close)}?" if close else ""
            raise UserError(f"{key}: unknown setting{hint} (all: python train.py --help)")
    for key, annotation in TOP_LEVEL.items():
        coerce(config[key], annotation, key)
    if not 0 < config["timeout_s"] <= LONGEST_S:
        raise UserError(f"timeout_s={config['timeout_s']}: must be above 0, at most {LONGEST_S:,} (a day)")
    if config["seed"] < 0:
        raise UserError(f"seed={config['seed']}: must not be negative")
    if config["sort_channels"] is not None and not (config["sort_channels"] >= 0 and config["init_from"]):
        raise UserError(f"sort_channels={config['sort_channels']}: give 0, 1, ... and weights to sort, with init_from=")
    lr = coerce(config["optim"].get("lr"), float, "optim.lr")
    if not 0 <= lr < math.inf:
        raise UserError(f"optim.lr={lr}: must not be negative or infinite")
    mixing = [key for key in ("mixup", "cutmix") if config["train"].get(key)]
    if config["data_sampler"].get("mode") == "unbiased" and mixing:
        key = f"train.{mixing[0]}={config['train'][mixing[0]]}"
        raise UserError(f"{key}: a mixed image has no weight of its own; set it to 0, or data_sampler.mode=curriculum")
