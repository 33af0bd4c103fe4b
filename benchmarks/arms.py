"""Trainings of a comparison: each in a folder of its own, resumed where it was stopped, never repeated; and scores.

Below the folder of an arm: its run `train/<time>-<name>/` (see `supernet.job`) and files of scores, a line for each
subnet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from supernet.build import make_data, make_space, open_run, pick_device
from supernet.construct import construct
from supernet.data import Data
from supernet.errors import UserError
from supernet.evaluate import calibrated_subnet, evaluate
from supernet.horizon import Horizon
from supernet.job import main as train
from supernet.log import read_rows
from supernet.paths.base import Path as Subnet
from supernet.phases.base import Phase, Phases
from supernet.runs import RESULTS, config_dir, environment, lock, plain, read_json
from supernet.samplers.base import ArchSampler, Slot
from supernet.space import Arch, Space

# What may differ between a stored run and the one that is asked for.
FREE = ("runs_dir", "resume", "device", "logger", "name", "dry_run")


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """`configs/train.yaml` with Hydra overrides, plain."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("train", list(overrides)), resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    return config


def open_data(config: Mapping[str, Any]) -> tuple[Data, Space]:
    """The data of a configuration, and the space that it trains."""
    data = make_data(config, pick_device(config["device"]))
    return data, make_space(config["space"], data.info.num_classes, data.info.channels)


def passes(config: Mapping[str, Any], space: Space, horizon: Horizon) -> int:
    """How many subnets a whole run trains, counted pass by pass; candidates that are only looked at do not count."""
    schedule = construct(config["schedule"], "schedule")
    phases: Phases = construct(config["phases"], "phases", space=space, horizon=horizon, schedule=schedule)
    smallest = Subnet(space.smallest())  # which subnets are drawn does not change their number

    @cache
    def sampler(phase: Phase) -> ArchSampler:
        random = {} if phase.num_random is None else {"num_random": phase.num_random}
        made: ArchSampler = construct({**config["sampler"], **random}, "sampler", space=phase.space)
        return made

    def slots(step: int) -> list[Slot]:
        phase = phases.phase(step)
        if phase.largest_only:
            return phases.slots(step, [Slot(space.largest(), "largest")])
        return phases.slots(step, sampler(phase).slots(step, lambda count: [smallest] * count))

    return sum(len(slots(step)) for step in range(horizon.total_steps))


@contextmanager
def hold(root: Path) -> Iterator[None]:
    """Hold an arm's folder for this process. Raises UserError where another one works on it."""
    root.mkdir(parents=True, exist_ok=True)
    with lock(root):
        yield


def finished(root: Path) -> Path | None:
    """The finished run below an arm's folder."""
    found = sorted(root.glob(f"train/*/{RESULTS}"))
    return found[0].parent if found else None


def train_once(config: Mapping[str, Any], root: Path) -> Path:
    """The finished run of `config` below `root`: trained now, or to its end, where there is none yet.

    Raises:
        UserError: if what is there was trained with other settings, or if the training cannot go on.
    """
    done = finished(root)
    started = sorted(root.glob("train/*/checkpoint.pt"))
    if done or started:
        folder = done or started[-1].parent
        if changed := differences(read_json(folder / "config.json"), plain(dict(config))):
            raise UserError(f"{folder} has other settings ({', '.join(changed)}): remove it, or choose another --runs")
    if done is None:
        resume = {"resume": str(started[-1].parent)} if started else {}
        train({**config, "runs_dir": str(root), **resume})
        done = finished(root)
    assert done is not None
    return done


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of settings that both have and that are not equal; those of `FREE` may differ."""
    found = []
    for key in sorted(stored.keys() & wanted.keys()):
        one, other = stored[key], wanted[key]
        if not prefix and key in FREE:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, f"{prefix}{key}.")
        elif one != other and other != "auto":  # the stored one is then what was measured
            found.append(f"{prefix}{key}")
    return found


def scores(
    run: Path, archs: Sequence[Arch], file: Path, images: int | None, calibration_images: int, device: str = "cpu"
) -> list[float]:
    """Top-1 (percent) with inherited weights of `archs` on the first `images` of the test split; None: all of it.

    Each subnet is extracted, calibrated and evaluated. What `file` holds already is not computed again.
    """
    known = read_scores(file)
    missing = [arch for arch in archs if _key(arch) not in known]
    if missing:
        opened = open_run(run, pick_device(device))
        data = make_data(opened.config, pick_device(device))
        with file.open("a", encoding="utf-8") as lines:
            if lines.tell() and not file.read_bytes().endswith(b"\n"):
                lines.write("\n")  # after a line that was cut off
            for arch in missing:
                subnet = calibrated_subnet(opened.net, arch, data, calibration_images)
                top1 = evaluate(subnet, data.evaluation("test", opened.net.space.resolution(arch), images)).top1
                known[_key(arch)] = top1
                lines.write(json.dumps({"arch": arch.to_json(), "top1": top1}) + "\n")
                lines.flush()
    return [known[_key(arch)] for arch in archs]


def read_scores(file: Path) -> dict[str, float]:
    """Top-1 by the JSON text of the subnet, of a file that `scores` wrote."""
    return {_text(row["arch"]): row["top1"] for row in read_rows(file)}


def known_scores(file: Path, archs: Sequence[Arch]) -> list[float] | None:
    """Scores of `archs` where the file has all of them."""
    known = read_scores(file)
    return [known[_key(arch)] for arch in archs] if all(_key(arch) in known for arch in archs) else None


def machine() -> dict[str, Any]:
    """Where and with what versions figures were measured; without the command line, which holds folders."""
    return {key: value for key, value in environment().items() if key != "argv"}


def use_threads(count: int) -> None:
    """Compute with so many threads; 0 leaves it to PyTorch."""
    if count:
        torch.set_num_threads(count)


def _key(arch: Arch) -> str:
    return _text(arch.to_json())


def _text(arch: Mapping[str, Any]) -> str:
    return json.dumps(arch, sort_keys=True)
