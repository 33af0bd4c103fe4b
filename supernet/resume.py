"""Which run `resume` means, and whether it can be continued with what is here now."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supernet.checkpoint import kept_files, load, newest_whole
from supernet.errors import UserError
from supernet.runs import CHECKPOINT, RESULTS, folder_of, is_locked, plain, read_json, refuse_held
from supernet.setup import with_defaults
from supernet.stored import DESCRIPTION, checked, without_downloads

if TYPE_CHECKING:
    from supernet.data import Data

# What may be given beside `resume`; everything else comes from the run's own configuration.
ALLOWED = (
    *("resume", "device", "dry_run", "logger", "runs_dir", "timeout_s"),
    *("data.root", "data.on_bad_image", "data.download"),
)
# What the start of a run has settled where it said auto.
SETTLED = {
    "train.channels_last": "train.channels_last",
    "train.micro_batch": "train.micro_batch",
    "train.checkpoint_activations": "train.micro_batch",
}
CONFIG, SPLITS = "config.json", "splits.json"


def resumed_config(config: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], Path]:
    """The stored configuration and the folder of the run that `resume` names.

    `resume=auto` is the newest unfinished run under `runs_dir`; `overrides` is what was typed: nothing but `ALLOWED`,
    or all that the run was started with.

    Raises:
        UserError: if there is nothing to resume, the run is finished, or other settings are asked for.
    """
    folder = _newest_unfinished(Path(config["runs_dir"])) if config["resume"] == "auto" else folder_of(config["resume"])
    checkpoints = kept_files(folder / CHECKPOINT)
    if not (folder / CONFIG).is_file() and not checkpoints:
        raise UserError(f"resume={folder}: no run is there ({CONFIG} is missing)")
    if (folder / RESULTS).exists():
        raise UserError(f"resume={folder}: this run is finished; start from its weights with init_from={folder}")
    if not checkpoints:
        raise UserError(f"resume={folder}: the run was stopped before its first checkpoint; start it again")
    stored = _recorded(folder, CONFIG)
    _refuse_other_settings(config, stored, overrides, named=_named(config, overrides))
    # What a run of an older version does not say is as it is by default: nothing else can be typed with `resume`.
    # Nothing that is stored orders a download: the run folder may be somebody else's.
    resumed = {**config, **without_downloads(stored), **{key: config[key] for key in ALLOWED if key in config}}
    for name in {_key(word) for word in overrides} & {key for key in ALLOWED if key.startswith("data.")}:
        key = name.removeprefix("data.")
        resumed["data"] = {**resumed["data"], key: config["data"][key]}
    return resumed, folder


def own_unfinished(config: Mapping[str, Any], overrides: Sequence[str]) -> Path | None:
    """The newest unfinished run that the same settings have started; None if there is none.

    What a job goes on with that its launcher starts again and again with one command.

    Raises:
        UserError: if another process is at work on it.
    """
    for folder in _unfinished(Path(config["runs_dir"])):
        with suppress(UserError):
            _refuse_other_settings(config, _recorded(folder, CONFIG), overrides)
            break
    else:
        return None
    refuse_held(folder)
    return folder


def _recorded(folder: Path, name: str) -> dict[str, Any]:
    """What the run has stored in the file `name`; where that is damaged or missing, the checkpoint's copy of it."""
    try:
        found = read_json(folder / name)
        problem = f"{folder / name} is damaged"
    except UserError as error:
        found, problem = None, str(error)
    if not isinstance(found, dict):
        newest = newest_whole(folder / CHECKPOINT)
        key = name.removesuffix(".json")
        state = load(newest)
        if not isinstance(state.get(key), dict):
            raise UserError(f"{problem}, and {newest} holds no copy of it")
        found = checked(newest, state, {key: DESCRIPTION})[key]
        if os.environ.get("RANK", "0") == "0":
            print(f"warning: {problem}; going on with the copy in {newest.name}", file=sys.stderr)
    return found


def _named(config: Mapping[str, Any], overrides: Sequence[str]) -> tuple[str, ...] | None:
    """The settings that were typed, by name; None where what was typed stands for settings of other names."""
    keys = tuple(_key(word) for word in overrides)
    return keys if all(key.split(".")[0] in config for key in keys) else None


def _refuse_other_settings(
    config: Mapping[str, Any],
    stored: Mapping[str, Any],
    overrides: Sequence[str],
    named: tuple[str, ...] | None = None,
) -> None:
    """Compare what was typed, `named`, with what is stored; None: compare everything, defaults too."""
    typed = [word for word in overrides if _key(word) not in ALLOWED and not _key(word).startswith("logger.")]
    now = plain(dict(with_defaults(dict(config)))) if typed else {}
    changed = [name for name in _changed(stored, now) if now["train"].get(_last(SETTLED.get(name, ""))) != "auto"]
    if named is not None:
        changed = [name for name in changed if any(f"{name}.".startswith(f"{key}.") for key in named)]
    if changed:
        others = ", ".join(f"+{key}" if "." in key else key for key in ALLOWED[1:])
        raise UserError(
            f"{_word_of(changed[0], typed)}: a resumed run keeps its own settings, and {changed[0]} would differ (only "
            f"{others} can): "
            "give the run's own settings or none, or start a new run from these weights with init_from="
        )


def _word_of(name: str, typed: Sequence[str]) -> str:
    return next((word for word in typed if f"{name}.".startswith(f"{_key(word)}.")), typed[0])


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
    before, now = _recorded(folder, SPLITS), plain(data.split_record())
    changed = [key for key in before if before[key] != now.get(key)]
    if changed:
        raise UserError(f"resume={folder}: the data has changed since the run began ({', '.join(changed)} differ)")


def _unfinished(root: Path) -> list[Path]:
    """Folders of runs with a checkpoint, the newest first."""
    folders = [folder for kind in ("train", "subnet") for folder in (root / kind).glob("*")]
    checkpoints = [file for folder in folders for file in kept_files(folder / CHECKPOINT)]
    unfinished = [file for file in checkpoints if not (file.parent / RESULTS).exists()]
    newest_first = sorted(unfinished, key=lambda file: file.stat().st_mtime_ns, reverse=True)
    return list(dict.fromkeys(file.parent for file in newest_first))


def _newest_unfinished(root: Path) -> Path:
    unfinished = _unfinished(root)
    if not unfinished:
        raise UserError(f"resume=auto: no unfinished run under {root}; start one without resume")
    free = [folder for folder in unfinished if not is_locked(folder)]
    if not free:
        refuse_held(unfinished[0])
    return free[0] if free else unfinished[0]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _key(override: str) -> str:
    return override.split("=")[0].lstrip("+~")
