"""A search from initial weights: the supernet that it trains itself, and where that is saved for later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from search.settings import SearchSettings
from supernet import checkpoint
from supernet.build import OpenedRun, make_data, make_space
from supernet.construct import construct
from supernet.layout import AUTO, with_format
from supernet.net import Supernet
from supernet.runs import CHECKPOINT, RESULTS, config_dir, plain, write_json
from supernet.settings import TrainSettings
from supernet.sharing.make import FULL, make_network
from supernet.sharing.members import initialise_members

if TYPE_CHECKING:
    from supernet.data import Data

SUPERNET = "supernet"  # folder of the supernet inside the search's


def open_fresh(settings: SearchSettings, algorithm: Mapping[str, Any], device: torch.device) -> tuple[OpenedRun, Data]:
    """A supernet of the space that `settings` describe, with the initial weights that `train.py` would give it.

    Its configuration is that of `fresh_run_config`. It lies nowhere yet, its source is its space's name.

    Raises:
        UserError: for wrong settings of space and data, or missing images.
    """
    config = fresh_run_config(settings, algorithm)
    train: TrainSettings = construct(config["train"], "train")
    data = make_data(config, device)
    space = make_space(config["space"], data.info.num_classes, data.info.channels)
    net = make_network(config, space)
    initialise_members(net, config["seed"], train.init, train.zero_gamma)
    if config["train"]["channels_last"] == AUTO:  # a resumed search must not measure, and find otherwise
        config["train"]["channels_last"] = True
    config = with_format(config, net.to(device), data.info.channels)
    folder = Path(settings.runs_dir) / "search"
    supernet = cast(Supernet, net)
    return OpenedRun(supernet, config, folder, Path(space.name), 0, plain(data.split_record())), data


def fresh_run_config(settings: SearchSettings, algorithm: Mapping[str, Any]) -> dict[str, Any]:
    """The training-run configuration of a supernet that a search trains: all that reading and searching it again needs.

    The section `train` has the settings
    of the algorithm where it has some of the same name, and otherwise the defaults of that file.

    Raises:
        UserError: if the configuration files are missing.
    """
    from omegaconf import OmegaConf

    defaults: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / "train.yaml"))
    own = {key: value for key, value in algorithm.items() if key in defaults["train"] and value is not None}
    train = {**defaults["train"], **own, "_target_": defaults["train"]["_target_"]}
    if settings.calibration_images:
        train["calibration_images"] = settings.calibration_images
    data = dict(settings.data_overrides)
    if algorithm.get("batch_size") is not None:
        data["batch_size"] = algorithm["batch_size"]
    train["batch_size"] = data.get("batch_size", train["batch_size"])
    return {
        "seed": settings.seed,
        "name": None,
        "runs_dir": settings.runs_dir,
        "arch": None,
        "init_from": None,
        "space": dict(settings.space),
        "data": data,
        "sharing": FULL,
        "train": train,
        "algorithm": dict(algorithm),
    }


def save_weights(
    folder: Path, net: Supernet, config: Mapping[str, Any], data: Data, step: int, results: Mapping[str, Any]
) -> Path:
    """Save the supernet that the search in `folder` has trained as a finished training run, in `folder`/supernet.

    That folder is then a `checkpoint` to search again, and an `init_from` to tune subnets from.

    Args:
        config: that of the fresh run, see `fresh_run_config`.
        step: optimizer steps of the weights.
        results: what the run's results say besides.

    Returns:
        The supernet's folder.
    """
    run, splits = folder / SUPERNET, plain(data.split_record())
    run.mkdir(exist_ok=True)
    write_json(run / "config.json", config)
    write_json(run / "splits.json", splits)
    state = {"config": dict(config), "space": net.space.config, "splits": splits, "model": net.state_dict()}
    checkpoint.save(run / CHECKPOINT, {**state, "ema": None, "step": step})
    write_json(run / RESULTS, {"steps": step, "splits": dict(data.sizes), **results})  # last: it is finished
    return run
