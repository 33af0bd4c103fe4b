"""What a training run starts from: its folder, its data, and a network with initial weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from supernet.build import make_space, open_run, parse_arch
from supernet.construct import construct
from supernet.errors import UserError
from supernet.init import initialise
from supernet.net import Supernet
from supernet.runs import CHECKPOINT, RESULTS, new_run, newest_finished, read_json
from supernet.settings import TrainSettings
from supernet.slicing import copy_slices

if TYPE_CHECKING:
    from supernet.data import Data

# What may be given beside `resume`: everything else comes from the run's own configuration.
WITH_RESUME = ("resume", "device", "dry_run", "logger", "runs_dir")


def resumed_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], Path]:
    """The stored configuration and the folder of the run that `resume` names.

    `resume=auto` is the newest unfinished run under `runs_dir`.

    Raises:
        UserError: if there is nothing to resume, or the run is finished.
    """
    root = Path(config["runs_dir"])
    if config["resume"] == "auto":
        checkpoints = [file for kind in ("train", "subnet") for file in (root / kind).glob(f"*/{CHECKPOINT}")]
        unfinished = [file for file in checkpoints if not (file.parent / RESULTS).exists()]
        if not unfinished:
            raise UserError(f"resume=auto: no unfinished run under {root}; start one without resume")
        folder = max(unfinished, key=lambda file: file.stat().st_mtime_ns).parent
    else:
        folder = Path(config["resume"])
    if not (folder / "config.json").is_file():
        raise UserError(f"resume={folder}: no run is there (config.json is missing)")
    if (folder / RESULTS).exists():
        raise UserError(f"resume={folder}: this run is finished; start from its weights with init_from={folder}")
    if not (folder / CHECKPOINT).is_file():
        raise UserError(f"resume={folder}: the run was stopped before its first checkpoint; start it again")
    stored = read_json(folder / "config.json")
    return {**stored, **{key: config[key] for key in WITH_RESUME}}, folder


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with what depends on `arch` filled in, so that the stored one says what was done.

    One subnet alone is a supernet of one: it is trained by the sampler `largest`. Weights to inherit come from the
    newest finished run unless `init_from` says otherwise.

    Raises:
        UserError: if there is no such run.
    """
    if config["arch"] is None:
        return config
    config = {**config, "sampler": {"_target_": "supernet.samplers.largest.Largest"}}
    if config["init"] == "supernet" and config["init_from"] is None:
        config["init_from"] = str(newest_finished(Path(config["runs_dir"]) / "train"))
    return config


def new_folder(config: Mapping[str, Any]) -> Path:
    """`<runs_dir>/train/<time>-<name>`, or `subnet` instead of `train` where one subnet is trained alone."""
    kind = "train" if config["arch"] is None else "subnet"
    default = f"{config['space']['name']}-{config['data']['_target_'].split('.')[-2]}"
    return new_run(Path(config["runs_dir"]) / kind, config["name"] or default)


def make_net(config: Mapping[str, Any], data: Data, device: torch.device) -> Supernet:
    """The network to train, with its initial weights: the supernet, or one subnet where `arch` is given.

    Raises:
        UserError: if the source of the weights is missing or does not fit the data or the space.
    """
    settings: TrainSettings = construct(config["train"], "train")
    source = None
    if config["init_from"]:
        path = Path(config["init_from"])
        run = open_run(path, torch.device("cpu"))
        source = run.net
        _check_fits(source, data, path)
        if run.config["data"]["_target_"] != config["data"]["_target_"]:
            trained_on = run.config["data"]["_target_"].split(".")[-2]
            print(f"warning: the weights of {path} come from other data ({trained_on})", file=sys.stderr)
        space = source.space
    else:
        space = make_space(config["space"], data.info.num_classes, data.info.channels)
    if config["arch"] is not None:
        space = space.only(parse_arch(space, config["arch"]))
    net = Supernet(space)
    if source is not None and config["init"] == "supernet":
        copy_slices(source.net, net.net)
    else:
        initialise(net, config["seed"], settings.init, settings.zero_gamma)
    return net.to(device)


def _check_fits(net: Supernet, data: Data, path: Path) -> None:
    config = net.space.config
    have = (config.get("num_classes"), config.get("in_channels"))
    if have != (data.info.num_classes, data.info.channels):
        raise UserError(
            f"{path} was trained for {have[0]} classes and {have[1]} channels, but data {data.info.name!r} has "
            f"{data.info.num_classes} and {data.info.channels}"
        )
