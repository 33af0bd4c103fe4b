"""What a search works on: the opened run, its data, the budget; and the folder that takes the results."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from search.constraint import Budget, Constraint, range_of
from search.latency.model import LatencyModel
from search.limits import LABELS, shown
from search.settings import SearchSettings
from supernet.build import OpenedRun, changed_splits, make_data, open_run, pick_device
from supernet.calibrate import has_statistics
from supernet.construct import construct
from supernet.distributed import ALONE, Ranks
from supernet.errors import UserError
from supernet.runs import CHECKPOINT, RESULTS, is_locked, newest_finished, plain, read_json

if TYPE_CHECKING:
    from supernet.data import Data, DataInfo

TRIALS = "trials.jsonl"
PUBLISHED_CALIBRATION = 2000  # images; what Once-for-All takes
SUFFIX = re.compile(r"(\.pth)?\.(tar|pth|pt)$")  # of checkpoint files; other dots belong to their names
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Job:
    """One search: `config` is the whole configuration, `settings` its validated part.

    `data` is None where a checkpoint published elsewhere is exported without any.
    """

    settings: SearchSettings
    config: Mapping[str, Any]
    run: OpenedRun
    data: Data | None
    budget: Budget
    latency: LatencyModel | None = None
    ranks: Ranks = ALONE

    @property
    def root(self) -> Path:
        """The folder of all searches in the training run; of a file published elsewhere, a folder in `runs_dir`."""
        if not self.run.config:
            return Path(self.settings.runs_dir) / "pretrained" / SUFFIX.sub("", self.run.source.name) / "search"
        return self.run.folder / "search"

    @property
    def images(self) -> Data:
        """The data, where scores are needed."""
        assert self.data is not None
        return self.data

    @property
    def info(self) -> DataInfo:
        """Facts about the data; where none is given, the published codes' normalisation of colour images."""
        if self.data is not None:
            return self.data.info
        from supernet.data.base import DataInfo

        space = self.run.net.space
        classes, side = int(space.description["num_classes"]), space.resolution(space.largest())
        channels = int(space.description["in_channels"])
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.0,) * channels, (1.0,) * channels)
        return DataInfo("unknown", classes, (), channels, side, mean, std, (side,))

    @property
    def calibration_images(self) -> int:
        """As asked for, else as the training run has it: scores are then those that the run reported."""
        if self.data is None:
            return 0
        if self.settings.calibration_images is not None:
            return self.settings.calibration_images
        return int(self.run.config["train"]["calibration_images"]) if self.run.config else PUBLISHED_CALIBRATION

    def facts(self) -> list[str]:
        """Lines that tell the user what is searched, and what is reachable."""
        space = self.budget.space
        ranges = {
            name: f"{shown(name, low)} to {shown(name, high)}" for name, (low, high) in range_of(self.budget).items()
        }
        newest = " (the newest finished training run)" if self.settings.checkpoint is None else ""
        if not self.run.config:
            newest += " (published elsewhere)"
        elif not (self.run.folder / RESULTS).exists():
            newest += f" (its training has not ended: step {self.run.step:,})"
        binds = "" if not self.budget.feasible(space.largest()) else " (does not bind: the largest subnet is inside)"
        reach = ", ".join(f"{reached} {LABELS.get(name, name)}" for name, reached in ranges.items())
        kept = (
            ""
            if self.calibration_images or not has_statistics(self.run.net)
            else ("statistics: the checkpoint's own, which fit only the subnet that they were measured on")
        )
        facts = [
            f"checkpoint: {self.run.source}{newest}",
            f"space {space.name!r}: {_count(space.size())} subnets, {reach}",
            f"budget: {self.budget.describe()}{binds}",
            *([kept] if kept else []),
        ]
        if self.data is None:
            return [*facts, "images: none, so nothing is scored; to score: data=imagenet data.root=<folder>"]
        sizes = self.data.sizes
        splits = f"{sizes['search']:,} to search on, {sizes['val']:,} to choose among the finalists"
        return [*facts, f"images: {splits}, {sizes['test']:,} to test"]

    def setup(self) -> dict[str, Any]:
        """Whatever decides scores and proposals; a resumed search must have the same."""
        return {
            "space": self.budget.space.config,
            "weights": _fingerprint(self.run.net),
            "algorithm": self.config["algorithm"],
            "constraint": dict(self.budget.windows),
            "seed": self.settings.seed,
            "calibration_images": self.calibration_images,
            **({"latency": self.settings.latency} if self.settings.latency else {}),
            **({"stop_early": True} if self.settings.stop_early else {}),
            "data": {
                **{key: value for key, value in self.settings.data_overrides.items() if key != "root"},
                "splits": None if self.data is None else plain(self.data.split_record()),
            },
        }

    def resumable(self) -> Path | None:
        """The folder that `resume` names; None for a new search.

        Raises:
            UserError: if it holds no search, or a finished one, or "auto" finds no unfinished one.
        """
        resume = self.settings.resume
        if resume is None:
            return None
        if resume == "auto":
            newest = newest_unfinished(self.root, "*")
            if newest is None:
                raise UserError(f"resume=auto: no unfinished search under {self.root}; start one without resume=")
            return newest
        folder = Path(resume)
        if not (folder / TRIALS).is_file():
            raise UserError(f"resume={resume}: no search is there ({TRIALS} is missing)")
        if (folder / RESULTS).exists():
            raise UserError(f"resume={resume}: that search is finished, see {folder / RESULTS}; drop resume=")
        return folder


def open_job(config: Mapping[str, Any], ranks: Ranks = ALONE) -> Job:
    """Open what the configuration names; `ranks` are the processes that share the work.

    Raises:
        UserError: for any setting that is wrong, a missing or damaged checkpoint, missing data, or data whose
            classes or channels are not those of the supernet.
    """
    config = _as_begun(config)
    settings = SearchSettings.of(config)
    constraint: Constraint = construct(config["constraint"], "constraint")
    device = ranks.device(pick_device(settings.device))
    run = open_run(_checkpoint(settings), device, settings.family, settings.space)
    space = run.net.space
    if space.size() == 1 and settings.arch is None:
        raise UserError(
            f"{run.source} holds one subnet only, there is nothing to search: evaluate it with arch=largest"
        )
    model = None if settings.latency is None else LatencyModel.load(settings.latency, space)
    budget = constraint.on(space, None if model is None else model.additive)
    if "latency_ms" in settings.objectives and model is None:
        raise UserError("objectives: latency_ms needs latency=<folder>; make one with mode=latency")
    data = _open_data(run, settings, device)
    job = Job(settings, config, run, data, budget, model, ranks)
    if data is None and settings.calibration_images:
        raise UserError(
            f"calibration_images={settings.calibration_images}: there is no data to take them from; say data=imagenet "
            "data.root=<folder>"
        )
    has_norms = any(isinstance(module, torch.nn.BatchNorm2d) for module in run.net.modules())
    if not job.calibration_images and has_norms and not has_statistics(run.net):
        raise UserError(
            f"calibration_images=0 keeps the batch-norm statistics of the checkpoint, but {run.source} holds none"
        )
    return job


def _as_begun(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """With `resume` or `from`, what a search of a published file was begun with where it is not repeated."""
    resume = config["resume"] or config["from"]
    if resume == "auto" and config["checkpoint"] is None:
        found = _newest_begun(Path(config["runs_dir"]))
        resume = None if found is None else str(found)
    saved = Path(resume) / "config.json" if resume else None
    if saved is None or not saved.is_file():
        return config
    begun = read_json(saved)
    kept = {key: begun[key] for key in ("family", "space") if not config[key] and begun.get(key)}
    if "_target_" in begun.get("data", {}) and "_target_" not in config["data"]:
        kept["data"] = {**begun["data"], **{key: value for key, value in config["data"].items() if value is not None}}
    return {**config, **kept}


def _newest_begun(runs: Path) -> Path | None:
    """The newest unfinished search of any training run or published file."""
    patterns = [(runs / "train", "*/search/*"), (runs / "pretrained", "*/search/*")]
    found = [folder for root, pattern in patterns if (folder := newest_unfinished(root, pattern))]
    return max(found, key=lambda folder: (folder / TRIALS).stat().st_mtime_ns, default=None)


def _open_data(run: OpenedRun, settings: SearchSettings, device: torch.device) -> Data | None:
    """The training run's data, or what the configuration names; None if an export can do without.

    Raises:
        UserError: if it is missing, or is not what the supernet was trained for.
    """
    space = run.net.space
    if not run.config and "_target_" not in settings.data_overrides:
        if settings.arch is None:
            raise UserError(
                f"{run.source} brings no data to search on: say data=imagenet data.root=<folder>, or another data=; "
                "with arch=<subnet> a subnet is exported without"
            )
        return None
    data = make_data(run.config, device, settings.data_overrides)
    for key, mine in (("num_classes", data.info.num_classes), ("in_channels", data.info.channels)):
        theirs = space.description.get(key, mine)
        if theirs != mine:
            raise UserError(
                f"data {data.info.name!r} has {key} {mine}, the supernet of {run.source} has {theirs}: search on the "
                "data that it was trained for"
            )
    if changed := changed_splits(run, data):
        raise UserError(
            f"the data has changed since {run.source} was trained ({', '.join(changed)} differ): images held out here "
            "may have been trained on, so no score would mean anything; restore the data, or train again"
        )
    return data


def _checkpoint(settings: SearchSettings) -> Path:
    """As given; else that of the search to resume or to choose from; else the newest finished training run's."""
    if settings.checkpoint is not None:
        return Path(settings.checkpoint)
    runs = Path(settings.runs_dir) / "train"
    begun = _newest_begun(runs.parent) if settings.resume == "auto" else settings.resume or settings.reselect
    if begun is not None:
        saved = Path(begun) / "config.json"
        if saved.is_file():  # a search lies in its run's folder, wherever that was moved
            source, run = Path(read_json(saved)["checkpoint"]), Path(begun).parent.parent
            moved = run / source.name if source.suffix == ".pt" else run
            return moved if moved.is_file() or (moved / CHECKPOINT).is_file() else source
    if settings.resume == "auto":
        raise UserError(f"resume=auto: no unfinished search under {settings.runs_dir}; start one without resume=")
    return newest_finished(runs)


def newest_unfinished(root: Path, pattern: str) -> Path | None:
    """The newest search folder under `root` that has trials but no results, and that no process writes to."""
    begun = [
        path
        for path in root.glob(f"{pattern}/{TRIALS}")
        if not (path.parent / RESULTS).exists() and not is_locked(path.parent)
    ]
    newest = max(begun, key=lambda path: (path.stat().st_mtime_ns, path.parent.name), default=None)
    return None if newest is None else newest.parent


def _fingerprint(net: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in net.state_dict().items():
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _count(size: int) -> str:
    return f"{size:,}" if size < 10**7 else f"{size:.3g}"
