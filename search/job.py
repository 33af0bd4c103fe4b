"""What a search works on: the opened run, its data, the budget; and the folder that takes the results."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from search.begun import STATE, TRIALS, as_begun, begun_config, checkpoint_of, newest_unfinished
from search.constraint import ENUMERABLE, Budget, Constraint, range_of
from search.fresh import SUPERNET, open_fresh
from search.latency.model import LatencyModel
from search.limits import LABELS, shown
from search.settings import SearchSettings, is_gradient, short_name
from supernet.build import OpenedRun, changed_splits, make_data, open_run, pick_device
from supernet.calibrate import has_statistics
from supernet.construct import construct
from supernet.distributed import ALONE, Ranks
from supernet.errors import UserError
from supernet.restart import begun_before, launcher
from supernet.runs import RESULTS, folder_of, plain, refuse_held

if TYPE_CHECKING:
    from supernet.data import Data, DataInfo

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
        """The folder of all searches in the training run; of others a folder in `runs_dir`."""
        if self.settings.is_fresh:
            return Path(self.settings.runs_dir) / "search"
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

    @property
    def batch_size(self) -> int:
        """Of the training images."""
        size = {**self.run.config.get("data", {}), **_data_overrides(self.settings, self.config)}.get("batch_size")
        assert isinstance(size, int)
        return size

    def saved_in(self, folder: Path) -> Job:
        """The same job, its supernet named by where the search in `folder` saves it, if it trains one of its own."""
        if not self.settings.is_fresh:
            return self
        return replace(self, run=replace(self.run, folder=folder / SUPERNET, source=folder / SUPERNET))

    def facts(self) -> list[str]:
        """Lines that tell the user what is searched, and what is reachable."""
        space = self.budget.space
        ranges = {
            name: f"{shown(name, low)} to {shown(name, high)}" for name, (low, high) in range_of(self.budget).items()
        }
        binds = "" if not self.budget.feasible(space.largest()) else " (does not bind: the largest subnet is inside)"
        reach = ", ".join(f"{reached} {LABELS.get(name, name)}" for name, reached in ranges.items())
        kept = (
            ""
            if self.calibration_images or not has_statistics(self.run.net)
            else ("statistics: the checkpoint's own, which fit only the subnet that they were measured on")
        )
        facts = [
            self._origin(),
            f"space {space.name!r}: {_count(space.size())} subnets, {reach}",
            *([] if self.settings.arch else [f"budget: {self.budget.describe()}{binds}{self._inside()}"]),
            *([kept] if kept else []),
        ]
        if self.data is None:
            return [*facts, "images: none, so nothing is scored; to score: data=imagenet data.root=<folder>"]
        sizes = self.data.sizes
        splits = f"{sizes['search']:,} to search on, {sizes['val']:,} to choose among the finalists"
        return [*facts, f"images: {splits}, {sizes['test']:,} to test"]

    def _inside(self) -> str:
        """How many subnets of a small space meet the budget."""
        space = self.budget.space
        counted = space.size() <= ENUMERABLE and all(gene.parent is None for gene in space.genes)
        if not counted or self.budget.feasible(space.largest()):
            return ""
        rows = np.indices([len(gene.options) for gene in space.genes]).reshape(len(space.genes), -1).T
        inside = int((self.budget.violations(rows) == 0).sum())
        return f": {inside:,} of {space.size():,} subnets"

    def _origin(self) -> str:
        """Where the weights come from."""
        if self.settings.is_fresh:
            return f"supernet: space {self.budget.space.name!r} from initial weights (seed {self.settings.seed})"
        newest = " (the newest finished training run)" if self.settings.checkpoint is None else ""
        if not self.run.config:
            newest += " (published elsewhere)"
        elif not (self.run.folder / RESULTS).exists():
            newest += f" (its training has not ended: step {self.run.step:,})"
        return f"checkpoint: {self.run.source}{newest}"

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
        """The folder that `resume` names, or that an earlier start by this launcher has begun; None for a new search.

        Raises:
            UserError: if it holds no search, or a finished one, or "auto" finds no unfinished one.
        """
        resume = self.settings.resume
        if (begun := begun_before(self.root)) is not None and not (begun / RESULTS).exists():
            return self._same_kind(begun) if any((begun / name).is_file() for name in (TRIALS, STATE)) else None
        if resume is None:
            return None
        if resume == "auto":
            newest = newest_unfinished(self.root, "*")
            if newest is None and launcher() is not None:
                return None  # one command for the first start and for all others
            if newest is None and (held := newest_unfinished(self.root, "*", held=True)):
                refuse_held(held)
            if newest is None:
                raise UserError(f"resume=auto: no unfinished search under {self.root}; start one without resume=")
            return self._same_kind(newest)
        folder = folder_of(resume)
        if not any((folder / name).is_file() for name in (TRIALS, STATE)):
            raise UserError(f"resume={resume}: no search is there ({TRIALS} or {STATE} is missing)")
        if (folder / RESULTS).exists():
            raise UserError(f"resume={resume}: that search is finished, see {folder / RESULTS}; drop resume=")
        return self._same_kind(folder)

    def _same_kind(self, folder: Path) -> Path:
        """`folder`; UserError if the search in it has trials where this one has gradients, or the reverse."""
        saved, now = begun_config(folder), self.config["algorithm"]
        begun = now if saved is None else saved["algorithm"]
        if is_gradient(begun) != is_gradient(now):
            raise UserError(
                f"resume={folder}: begun with algorithm={short_name(begun)}, which algorithm={short_name(now)} cannot "
                "go on with; repeat the first command's settings"
            )
        return folder


def open_job(config: Mapping[str, Any], ranks: Ranks = ALONE, typed: Sequence[str] | None = None) -> Job:
    """Open what the configuration names; `ranks` are the processes that share the work.

    `typed`: the overrides of the command line, see `search.begun.as_begun`.

    Raises:
        UserError: for any setting that is wrong, a missing or damaged checkpoint, missing data, or data whose
            classes or channels are not those of the supernet.
    """
    config = ranks.once(lambda: as_begun(config, typed))  # what is newest may be another one a moment later
    settings = SearchSettings.of(config)
    constraint: Constraint = construct(config["constraint"], "constraint")
    device = ranks.device(pick_device(settings.device))
    if settings.is_fresh:
        run, data = open_fresh(settings, config["algorithm"], device)
    else:
        run, data = open_run(_checkpoint(settings, ranks), device, settings.family, settings.space), None
    space = run.net.space
    if space.size() == 1 and settings.arch is None:
        instead = "" if settings.is_fresh else ": evaluate it with arch=largest"
        raise UserError(f"{run.source} holds one subnet only, there is nothing to search{instead}")
    model = None if settings.latency is None else LatencyModel.load(settings.latency, space)
    budget = constraint.on(space, None if model is None else model.additive)
    if "latency_ms" in settings.objectives and model is None:
        raise UserError("objectives: latency_ms needs latency=<folder>; make one with mode=latency")
    if not settings.is_fresh:
        data = _open_data(run, settings, config, device)
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


def _checkpoint(settings: SearchSettings, ranks: Ranks) -> Path:
    return Path(ranks.once(lambda: str(checkpoint_of(settings))))


def _data_overrides(settings: SearchSettings, config: Mapping[str, Any]) -> dict[str, Any]:
    """Entries that replace the training run's own. An algorithm that trains may ask for batches of its own size."""
    algorithm = config["algorithm"]
    size = algorithm.get("batch_size") if is_gradient(algorithm) else None
    return {**settings.data_overrides, **({} if size is None else {"batch_size": size})}


def _open_data(
    run: OpenedRun, settings: SearchSettings, config: Mapping[str, Any], device: torch.device
) -> Data | None:
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
    data = make_data(run.config, device, _data_overrides(settings, config))
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


def _fingerprint(net: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in net.state_dict().items():
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _count(size: int) -> str:
    return f"{size:,}" if size < 10**7 else f"{size:.3g}"
