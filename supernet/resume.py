"""Which run `resume` means, and whether it can be continued with what is here now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supernet.errors import UserError
from supernet.runs import CHECKPOINT, RESULTS, is_locked, plain, read_json
from supernet.setup import with_defaults

if TYPE_CHECKING:
    from supernet.data import Data

# What may be given beside `resume`; everything else comes from the run's own configuration.
ALLOWED = ("resume", "device", "dry_run", "logger", "runs_dir", "data.root")


def resumed_config(config: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], Path]:
    """The stored configuration and the folder of the run that `resume` names.

    `resume=auto` is the newest unfinished run under `runs_dir`; `overrides` is what was typed: nothing but `ALLOWED`,
    or all that the run was started with.

    Raises:
        UserError: if there is nothing to resume, the run is finished, or other settings are asked for.
    """
    folder = _newest_unfinished(Path(config["runs_dir"])) if config["resume"] == "auto" else Path(config["resume"])
    if not (folder / "config.json").is_file():
        raise UserError(f"resume={folder}: no run is there (config.json is missing)")
    if (folder / RESULTS).exists():
        raise UserError(f"resume={folder}: this run is finished; start from its weights with init_from={folder}")
    if not (folder / CHECKPOINT).is_file():
        raise UserError(f"resume={folder}: the run was stopped before its first checkpoint; start it again")
    stored = read_json(folder / "config.json")
    _refuse_other_settings(config, stored, overrides)
    # What a run of an older version does not say is as it is by default: nothing else can be typed with `resume`.
    resumed = {**config, **stored, **{key: config[key] for key in ALLOWED if key in config}}
    if any(_key(word) == "data.root" for word in overrides):
        resumed["data"] = {**stored["data"], "root": config["data"]["root"]}
    return resumed, folder


def _refuse_other_settings(config: Mapping[str, Any], stored: Mapping[str, Any], overrides: Sequence[str]) -> None:
    typed = [word for word in overrides if _key(word) not in ALLOWED and not _key(word).startswith("logger.")]
    changed = list(_changed(stored, plain(dict(with_defaults(dict(config)))))) if typed else []
    if changed:
        others = f"{', '.join(ALLOWED[1:-1])} and +{ALLOWED[-1]}"
        raise UserError(
            f"{typed[0]}: a resumed run keeps its own settings, and {changed[0]} would differ (only {others} can): "
            "give the run's own settings or none, or start a new run from these weights with init_from="
        )


def _changed(stored: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Names of the settings that differ, those of `ALLOWED` left out."""
    for key in now:
        name = f"{prefix}{key}"
        if name in ALLOWED or key not in stored:
            continue
        if isinstance(stored[key], dict) and isinstance(now[key], dict):
            yield from _changed(stored[key], now[key], f"{name}.")
        elif stored[key] != now[key]:
            yield name


def check_same_splits(folder: Path, data: Data) -> None:
    """Refuse to continue on other images than the run began with.

    Raises:
        UserError: naming the splits that differ.
    """
    before, now = read_json(folder / "splits.json"), plain(data.split_record())
    changed = [key for key in before if before[key] != now.get(key)]
    if changed:
        raise UserError(f"resume={folder}: the data has changed since the run began ({', '.join(changed)} differ)")


def _newest_unfinished(root: Path) -> Path:
    checkpoints = [file for kind in ("train", "subnet") for file in (root / kind).glob(f"*/{CHECKPOINT}")]
    unfinished = [f for f in checkpoints if not (f.parent / RESULTS).exists() and not is_locked(f.parent)]
    if not unfinished:
        raise UserError(f"resume=auto: no unfinished run under {root}; start one without resume")
    return max(unfinished, key=lambda file: file.stat().st_mtime_ns).parent


def _key(override: str) -> str:
    return override.split("=")[0].lstrip("+~")
