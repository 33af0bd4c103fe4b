"""From names, configurations and files to objects: `build`, `load_supernet`, and what the entry points share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from supernet import checkpoint, references
from supernet.construct import construct_only, nearest, shown
from supernet.errors import UserError
from supernet.net import Supernet
from supernet.runs import CHECKPOINT, config_dir, plain, read_json
from supernet.sharing.make import make_network
from supernet.space import Arch, Space, load_space
from supernet.stored import OPENED, UNFIT, checked, reason, run_config

if TYPE_CHECKING:
    from supernet.data import Data


def build(name: str, num_classes: int = 1000, in_channels: int = 3, **overrides: Any) -> Supernet:
    """The supernet of a named space, with PyTorch's initial weights.

    Args:
        name: a file name in `configs/space`, such as "alphanet", or the path of a YAML file of your own.
        overrides: entries of that file to replace, such as `resolution=[160, 192]`.

    Raises:
        UserError: unknown name (gives the nearest ones) or an impossible space.
    """
    from omegaconf import OmegaConf

    folder = config_dir() / "space"
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        raise UserError(f"unknown space {name!r}: did you mean {nearest(name, known) or known}?")
    config: Any = OmegaConf.to_container(_composed(path), resolve=True)
    return Supernet(make_space({**config, **overrides}, num_classes, in_channels))


def _composed(path: Path) -> Any:
    """A YAML file over those of its folder that it names under `defaults`, as Hydra composes them."""
    from omegaconf import OmegaConf

    own: Any = OmegaConf.load(path)
    others = [_composed(path.with_name(f"{name}.yaml")) for name in own.pop("defaults", []) if name != "_self_"]
    return OmegaConf.merge(*others, own)


def make_space(config: Mapping[str, Any], num_classes: int, in_channels: int) -> Space:
    """A space from its configuration, for data of that many classes and channels."""
    return load_space(config, num_classes=num_classes, in_channels=in_channels)


def make_data(config: Mapping[str, Any], device: torch.device, overrides: Mapping[str, Any] | None = None) -> Data:
    """The data of a training configuration, with entries of its `data` section replaced by `overrides`."""
    section = {**config.get("data", {}), **(overrides or {})}
    data: Data = construct_only(section, "data", ("supernet.data.",), device=device)
    return data


def changed_splits(run: OpenedRun, data: Data) -> list[str]:
    """What differs between the splits a run was trained on and those of `data`; empty where nothing does."""
    if run.splits is None:
        return []
    now = plain(data.split_record())
    return [key for key, value in run.splits.items() if value != now.get(key)]


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; anything else is PyTorch's device string.

    Raises:
        UserError: if the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        if "device type" in reason:  # torch lists twenty
            reason = "no such device"
        choices = "choose auto, cpu, cuda or cuda:<number>"
        raise UserError(f"device={name}: not available here ({reason}); {choices}") from None
    return device


def load_supernet(path: str | Path) -> Supernet:
    """The supernet of a training run: `path` is a run folder or one of its checkpoint files. On the CPU.

    A checkpoint file that was published elsewhere is recognised, see `supernet.load_pretrained`.

    Raises:
        UserError: if it is missing, damaged or of an unknown kind.
    """
    return open_run(Path(path), torch.device("cpu")).net


@dataclass(frozen=True)
class OpenedRun:
    """A trained supernet with what is known about it. Weights are the moving average where the run kept one.

    `source` is what names these weights: the run's folder, or the checkpoint file that was asked for. `splits` is the
    record of the images it was trained on; None in checkpoints that hold none. `config` is what the run was started
    with, but it orders no download. Of a checkpoint file that was published elsewhere nothing is known but the weights:
    `config` is empty.
    """

    net: Supernet
    config: dict[str, Any]
    folder: Path
    source: Path
    step: int
    splits: dict[str, Any] | None


def open_run(
    path: Path,
    device: torch.device,
    family: str | None = None,
    space: Mapping[str, Any] | None = None,
    earlier: bool = False,
) -> OpenedRun:
    """Load the supernet of a run folder or checkpoint file, also of one that was published elsewhere.

    For the latter, `family` and `space` are those of `supernet.load_pretrained`. `earlier`: where the newest checkpoint
    of a run folder is damaged or missing, take the one before it.

    Raises:
        UserError: see `load_supernet`.
    """
    file = path / CHECKPOINT if path.is_dir() else path
    if earlier and path.is_dir():
        file = checkpoint.newest_whole(file)
    try:
        state = checkpoint.load(file)
    except checkpoint.DamagedCheckpointError as error:
        before = [kept for kept in checkpoint.kept_files(file) if kept != file]
        raise UserError(f"{error}; before it was {before[0]}" if before else str(error)) from None
    except checkpoint.ForeignCheckpointError:
        if path.is_dir():
            raise
        from supernet.pretrained import load_pretrained  # it builds families, so it imports this module

        net = load_pretrained(file, family, **(space or {}))
        return OpenedRun(net.to(device), {}, file.parent, path, 0, None)
    if family is not None or space:
        raise UserError(f"{file} says itself what it holds: drop family= and space=, they are for files of others")
    state = checked(file, state, OPENED)
    weights, config = state.get("ema") or state["model"], run_config(state)
    space_of_run = load_space(state["space"])
    if _bytes_held(weights) < space_of_run.widest.params:  # a file gets memory only for what it holds
        raise UserError(f"checkpoint {file} does not fit its own space: it holds fewer weights")
    net = cast(Supernet, make_network(config, space_of_run))  # grouped ones offer the same
    try:
        net.load_state_dict(weights)
    except UNFIT as error:
        raise UserError(f"checkpoint {file} does not fit its own space: {reason(error)}") from None
    if config.get("train", {}).get("channels_last", False):
        net.to(memory_format=torch.channels_last)
    return OpenedRun(net.to(device), config, file.parent, path, state["step"], state.get("splits"))


def _bytes_held(weights: Mapping[str, Any]) -> int:
    """Of the storages of the tensors, each counted once: strides of 0 make tensors of any size of a single value.

    `checkpoint.load` gives none but plain tensors on the CPU: one of the meta device has no bytes, and claims to.
    """
    storages = [value.untyped_storage() for value in weights.values()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def parse_arch(space: Space, text: str | Mapping[str, Any]) -> Arch:
    """An arch as users name it.

    `text` is "smallest", "largest", "random:<seed>", a published subnet such as "alphanet_a4" (or "alphanet_a4@224", at
    another resolution), a JSON file that holds an arch, a row of a front such as "runs/.../front.json#3", the JSON text
    itself, or the readable dictionary.

    Raises:
        UserError: saying what is wrong with it.
    """
    import numpy as np

    if isinstance(text, Mapping):
        return _from_json(space, text, "arch")
    if text in ("smallest", "largest"):
        return space.smallest() if text == "smallest" else space.largest()
    if text.startswith("random:") and text[7:].isdecimal() and len(text) < 30:
        return space.sample(np.random.default_rng(int(text[7:])))
    if text.lstrip().startswith("{"):
        try:
            return _from_json(space, json.loads(text), "arch")
        except (ValueError, RecursionError) as error:
            raise UserError(f"arch={shown(text)}: not valid JSON ({error})") from None
    name, _, row = text.partition("#")
    if not Path(name).is_file():
        return _reference(space, text)
    data = read_json(Path(name))
    if isinstance(data, dict) and "rows" in data:
        rows = data["rows"]
        if not isinstance(rows, list) or not all(isinstance(each, dict) and "arch" in each for each in rows):
            raise UserError(f"arch={text}: {name} is damaged or is not a front")
        if not row.isdecimal() or len(row) > 9 or int(row) >= len(rows):
            raise UserError(f"arch={text}: choose a row of {name} from #0 to #{len(rows) - 1}")
        data = rows[int(row)]["arch"]
    elif row:
        raise UserError(f"arch={text}: {name} is not a front, so it has no row #{row}")
    return _from_json(space, data, name)


def _reference(space: Space, text: str) -> Arch:
    """A published subnet by name."""
    known = references.names()
    if text.partition("@")[0] not in known:
        close = nearest(text, known)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise UserError(
            f"arch={text}: no such file; {hint}give smallest, largest, random:<seed>, a published subnet such as "
            "alphanet_a4, a JSON file, or front.json#<row>"
        )
    reference = references.lookup(text)
    if reference.space != space.name:
        raise UserError(f"arch={text}: that subnet is of space {reference.space!r}, this supernet is {space.name!r}")
    try:
        return space.from_json(reference.arch)
    except ValueError as error:
        key = str(error).partition("=")[0].partition("[")[0]
        raise UserError(
            f"arch={text}: {error}; a published checkpoint can have more: +space.{key}=[<its options and this one>]"
        ) from None


def _from_json(space: Space, data: Any, where: str) -> Arch:
    try:
        return space.from_json(data)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from None
