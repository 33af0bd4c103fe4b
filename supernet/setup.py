"""What a new training run starts from: its folder, and a network with initial weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from supernet.build import changed_splits, make_space, open_run, parse_arch
from supernet.construct import construct
from supernet.errors import UserError
from supernet.net import Supernet
from supernet.runs import new_run, newest_finished
from supernet.settings import TrainSettings
from supernet.sharing.make import FULL, make_network, with_listed
from supernet.sharing.members import AnySupernet, inherit, initialise_members, members_of
from supernet.sorting import sort_channels

if TYPE_CHECKING:
    from supernet.data import Data


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with what depends on `arch` filled in, so that the stored one says what was done.

    One subnet alone is a supernet of one: it is trained by the sampler `largest`. Weights to inherit come from the
    newest finished run unless `init_from` says otherwise.

    Raises:
        UserError: if there is no such run.
    """
    config = {**config, **{part: with_listed(config[part], part) for part in ("sharing", "path_sampler")}}
    if config["arch"] is None:
        return config
    config = {**config, "sampler": {"_target_": "supernet.samplers.largest.Largest"}, "sharing": FULL}
    config["phases"] = {"_target_": "supernet.phases.base.Single"}
    if config["init"] == "supernet" and config["init_from"] is None:
        config["init_from"] = str(newest_finished(Path(config["runs_dir"]) / "train"))
    return config


def new_folder(config: Mapping[str, Any], space: str) -> Path:
    """`<runs_dir>/train/<time>-<name>`, or `subnet` instead of `train` where one subnet is trained alone."""
    kind = "train" if config["arch"] is None else "subnet"
    default = f"{space}-{config['data']['_target_'].split('.')[-2]}"
    return new_run(Path(config["runs_dir"]) / kind, config["name"] or default)


def make_net(config: Mapping[str, Any], data: Data, device: torch.device, own_space: bool = False) -> Supernet:
    """The network to train, with its initial weights: the supernet, or one subnet where `arch` is given.

    With `init_from` it has the space of the weights, or, with `own_space`, the configuration's: more or fewer options
    of the same layers, as Once-for-All's progressive shrinking adds them.

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
        changed = changed_splits(run, data)
        if "dataset" in changed:
            print(f"note: the weights of {path} come from other data", file=sys.stderr)
        elif changed:
            print(
                f"warning: {path} was trained on other splits of this data ({', '.join(changed)} differ): it may have "
                "seen images that are held out here",
                file=sys.stderr,
            )
        space = source.space
    if source is None or own_space:
        space = make_space(config["space"], data.info.num_classes, data.info.channels)
    if config["arch"] is not None:
        space = space.only(parse_arch(space, config["arch"]))
    net = make_network(config, space)
    if source is not None and config["init"] == "supernet":
        _inherit(source, net, config["sort_channels"], config["init_from"])
    else:
        initialise_members(net, config["seed"], settings.init, settings.zero_gamma)
    return cast(Supernet, net.to(device))  # grouped ones offer the same


def _inherit(source: AnySupernet, net: AnySupernet, sort: int | None, where: str) -> None:
    """Take the weights of `source`, its channels sorted first where asked for; `UserError` where they do not fit."""
    try:
        if sort is not None:
            for member in members_of(source):
                sort_channels(member, sort)
        inherit(source, net)
    except (AttributeError, ValueError) as error:
        raise UserError(f"init_from={where}: its weights do not fit space {net.space.name!r} ({error})") from None


def _check_fits(net: Supernet, data: Data, path: Path) -> None:
    config = net.space.description
    have = (config.get("num_classes"), config.get("in_channels"))
    if have != (data.info.num_classes, data.info.channels):
        raise UserError(
            f"{path} was trained for {have[0]} classes and {have[1]} channels, but data {data.info.name!r} has "
            f"{data.info.num_classes} and {data.info.channels}"
        )
