"""Searches that were begun earlier: which one `resume` and `from` mean, and what they were begun with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from search.fresh import SUPERNET
from search.settings import SearchSettings, is_gradient
from supernet.errors import UserError
from supernet.restart import launcher
from supernet.runs import CHECKPOINT, RESULTS, folder_of, is_locked, newest_finished, read_json, refuse_held
from supernet.stored import without_downloads

TRIALS = "trials.jsonl"
STATE = "search.pt"  # of a gradient-based search


# What may be typed beside `resume` alone; everything else is then as the search was begun.
ALLOWED = ("resume", "runs_dir", "device", "dry_run", "timeout_s", "checkpoint", "data.root", "data.download")


def as_begun(config: Mapping[str, Any], typed: Sequence[str] | None = None) -> Mapping[str, Any]:
    """With `resume` or `from`, what the search that is meant was begun with, where it is not repeated.

    Args:
        typed: the command line's overrides. With nothing but `ALLOWED`, all settings are those of the search that
            `resume` means. None, or others too: what names the space and the data of searches whose run does not say:
            those of published files, and those from initial weights. A gradient-based search goes on as one, whether
            its algorithm is repeated or not.
    """
    keys = {word.split("=")[0].lstrip("+") for word in typed or ()}
    if config["resume"] is not None and "resume" in keys and keys <= set(ALLOWED):
        return _all_as_begun(config, keys)
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


def _all_as_begun(config: Mapping[str, Any], typed: Set[str]) -> Mapping[str, Any]:
    """The settings of the search to go on with, but for those of `ALLOWED`."""
    runs = Path(config["runs_dir"])
    found = [_newest_begun(runs), _newest_begun(runs, fresh=True)] if config["resume"] == "auto" else []
    newest = max((folder for folder in found if folder is not None), key=_last_written, default=None)
    folder = folder_of(config["resume"]) if newest is None else newest
    begun = begun_config(folder)
    if begun is None:
        return config
    kept = {key: value for key, value in begun.items() if key in config and key not in ALLOWED}
    for name in typed & {"data.root", "data.download"}:
        key = name.removeprefix("data.")
        kept["data"] = {**kept["data"], key: config["data"][key]}
    return {**config, **kept, "resume": str(folder)}


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
        if held := _newest_begun(runs.parent, held=True):
            refuse_held(held)
        raise UserError(f"resume=auto: no unfinished search under {settings.runs_dir}; start one without resume=")
    return newest_finished(runs)


def newest_unfinished(root: Path, pattern: str, held: bool = False) -> Path | None:
    """The newest search folder under `root` that is begun but has no results, and that no process writes to.

    `held`: among those that one writes to.
    """
    begun = [
        folder
        for folder in {path.parent for name in (TRIALS, STATE) for path in root.glob(f"{pattern}/{name}")}
        if not (folder / RESULTS).exists() and is_locked(folder) == held
    ]
    return max(begun, key=lambda folder: (_last_written(folder), folder.name), default=None)


def _newest_begun(runs: Path, fresh: bool = False, held: bool = False) -> Path | None:
    """The newest unfinished search of any supernet; `fresh`: among those from initial weights; `held`: see
    `newest_unfinished`."""
    places = [(runs / "search", "*")]
    if not fresh:
        places += [(runs / "train", "*/search/*"), (runs / "pretrained", "*/search/*")]
        places += [(runs / "search", f"*/{SUPERNET}/search/*")]
    found = [folder for root, pattern in places if (folder := newest_unfinished(root, pattern, held))]
    return max(found, key=_last_written, default=None)


def _last_written(folder: Path) -> int:
    """When a search last saved something, ns."""
    return max(path.stat().st_mtime_ns for name in (TRIALS, STATE) if (path := folder / name).exists())
