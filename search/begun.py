"""Searches that were begun earlier: which one `resume` and `from` mean, and what they were begun with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.fresh import SUPERNET
from search.settings import SearchSettings, is_gradient
from supernet.errors import UserError
from supernet.restart import launcher
from supernet.runs import CHECKPOINT, RESULTS, is_locked, newest_finished, read_json
from supernet.stored import without_downloads

TRIALS = "trials.jsonl"
STATE = "search.pt"  # of a gradient-based search


def as_begun(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """With `resume` or `from`, what names the space and the data of the search that is meant, where it is not repeated.

    Of searches whose run does not say: those of published files, and those from initial weights. A gradient-based
    search goes on as one, whether its algorithm is repeated or not.
    """
    resume = config["resume"] or config["from"]
    if resume == "auto" and config["checkpoint"] is None:
        found = _newest_begun(Path(config["runs_dir"]), fresh="_target_" in (config["space"] or {}))
        resume = None if found is None else str(found)
    begun = begun_config(Path(resume)) if resume else None
    if begun is None:
        return config
    kept = {key: begun[key] for key in ("family", "space") if not config[key] and begun.get(key)}
    if "_target_" in begun["data"] and "_target_" not in config["data"]:
        kept["data"] = {**begun["data"], **{key: value for key, value in config["data"].items() if value is not None}}
    if "_target_" in begun["space"] and (config["from"] or config["checkpoint"]):
        return config  # its weights are trained by now, and their run says the rest
    if config["resume"] and is_gradient(begun["algorithm"]) and not is_gradient(config["algorithm"]):
        kept["algorithm"] = begun["algorithm"]
    return {**config, **kept}


def begun_config(folder: Path) -> dict[str, Any] | None:
    """The configuration that the search in `folder` was begun with; None where that is not recorded.

    It orders no download: whoever wants one again types data.download=true again.

    Raises:
        UserError: if the record is damaged, or is none of a search.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    begun = without_downloads(read_json(path))
    if isinstance(begun, dict):
        begun |= {key: begun.get(key) or {} for key in ("space", "data", "algorithm")}
        sections = all(isinstance(begun[key], dict) for key in ("space", "data", "algorithm"))
        if sections and isinstance(begun.get("checkpoint"), str):
            return begun
    raise UserError(
        f"{path} does not say what was searched: it is damaged, or of another mode; to go on with a search, remove "
        "that file and repeat all of the first command's settings, with checkpoint="
    )


def checkpoint_of(settings: SearchSettings) -> Path:
    """As given; else that of the search to resume or to choose from; else the newest finished training run's.

    Raises:
        UserError: if there is none.
    """
    if settings.checkpoint is not None:
        return Path(settings.checkpoint)
    runs = Path(settings.runs_dir) / "train"
    begun = _newest_begun(runs.parent) if settings.resume == "auto" else settings.resume or settings.reselect
    if begun is not None:
        saved = begun_config(Path(begun))
        if saved is not None:  # a search lies in its run's folder, wherever that was moved
            own = Path(begun) / SUPERNET
            if (
                settings.reselect is not None and (own / CHECKPOINT).is_file()
            ):  # trained by the search: its scores' weights
                return own
            source, run = Path(saved["checkpoint"]), Path(begun).parent.parent
            moved = run / source.name if source.suffix == ".pt" else run
            return moved if moved.is_file() or (moved / CHECKPOINT).is_file() else source
    if settings.resume == "auto" and launcher() is None:
        raise UserError(f"resume=auto: no unfinished search under {settings.runs_dir}; start one without resume=")
    return newest_finished(runs)


def newest_unfinished(root: Path, pattern: str) -> Path | None:
    """The newest search folder under `root` that is begun but has no results, and that no process writes to."""
    begun = [
        folder
        for folder in {path.parent for name in (TRIALS, STATE) for path in root.glob(f"{pattern}/{name}")}
        if not (folder / RESULTS).exists() and not is_locked(folder)
    ]
    return max(begun, key=lambda folder: (_last_written(folder), folder.name), default=None)


def _newest_begun(runs: Path, fresh: bool = False) -> Path | None:
    """The newest unfinished search of any supernet; `fresh`: among those from initial weights."""
    places = [(runs / "search", "*")]
    if not fresh:
        places += [(runs / "train", "*/search/*"), (runs / "pretrained", "*/search/*")]
        places += [(runs / "search", f"*/{SUPERNET}/search/*")]
    found = [folder for root, pattern in places if (folder := newest_unfinished(root, pattern))]
    return max(found, key=_last_written, default=None)


def _last_written(folder: Path) -> int:
    """When a search last saved something, ns."""
    return max(path.stat().st_mtime_ns for name in (TRIALS, STATE) if (path := folder / name).exists())
