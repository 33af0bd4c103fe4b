"""Small training runs for tests: digits, a space of three genes and a dozen optimizer steps, about a second."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from supernet import checkpoint
from supernet.runs import config_dir

REPOSITORY = Path(__file__).resolve().parent.parent

SPACE = """
_target_: supernet.models.mbconv.space
name: tiny
resolution: [6, 8]
stem: {width: [8], kernel: 3, stride: 1}
stages:
  - {width: [8, 12], depth: [1, 2], kernel: [3], expand: [2], stride: 2, act: hswish, se: true}
head: {width: [16]}
"""

# 1,437 - 180 - 180 training images in batches of 256: 4 steps an epoch.
OVERRIDES = (
    "space=tiny",
    "data.size=8",
    "data.resolution=[6,8]",
    "train.epochs=3",
    "train.batch_size=256",
    "train.eval_random=1",
    "train.calibration_images=64",
    "train.log_every=1",
    "train.channels_last=true",  # measuring could choose either, so small are these networks
    "device=cpu",
)


def tiny_config(folder: Path, *overrides: str) -> dict[str, Any]:
    """`configs/train.yaml` with the tiny space and `overrides`, as `train.py` would compose it."""
    search = f"hydra.searchpath=[file://{spaces(folder)}]"
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", [search, f"runs_dir={folder / 'runs'}", *OVERRIDES, *overrides])
    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return plain  # type: ignore[no-any-return]


def spaces(folder: Path) -> Path:
    """A folder for Hydra's `-cd` that holds `space/tiny.yaml`."""
    file = folder / "configs" / "space" / "tiny.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(SPACE)
    return file.parent.parent


def command(folder: Path, *overrides: str, script: Path = REPOSITORY / "train.py") -> list[str]:
    """The command line of the same run."""
    given = [f"runs_dir={folder / 'runs'}", *OVERRIDES, *overrides]
    return [sys.executable, str(script), "-cd", str(spaces(folder)), *given]


def resume_command(folder: Path, run: Path) -> list[str]:
    """The command line that continues a run: it keeps its own settings, so none is given."""
    argv = command(folder)
    return [*argv[: argv.index("-cd") + 2], f"resume={run}"]


def search_config(run: Path, *overrides: str) -> dict[str, Any]:
    """A small search of `run`, as `search.py` would compose it."""
    words = [f"checkpoint={run}", f"runs_dir={run.parent.parent}", "evaluations=4", "finalists=1", "device=cpu"]
    words += ["constraint.macs=1.0", "eval_batch=null"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        composed = compose("search", [*words, *overrides])
    plain = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def start(*argv: str, own_group: bool = False) -> subprocess.Popen[str]:
    """Start a program with as many threads as this process computes with, so that sums round alike.

    `own_group` makes it the leader of a new process group, for signals to all of the group.
    """
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "OMP_WAIT_POLICY": "PASSIVE"}
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    return subprocess.Popen(
        argv,
        stdin=subprocess.PIPE if own_group else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=own_group,
        env={**os.environ, **threads, "PYTHONPATH": path},
    )


def only_run(folder: Path, kind: str = "train") -> Path:
    """The one run folder below `folder`."""
    (found,) = (folder / "runs" / kind).iterdir()
    return found


def state_of(run: Path) -> dict[str, Any]:
    """What a run's checkpoint holds."""
    return checkpoint.load(run / "checkpoint.pt")


def assert_same(actual: Any, expected: Any, where: str = "state") -> None:
    """Nested plain values and tensors are equal, tensors bit for bit."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected), where
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_same(actual[key], value, f"{where}[{key!r}]")
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), where
        for i, value in enumerate(expected):
            assert_same(actual[i], value, f"{where}[{i}]")
    else:
        assert actual == expected, where


def assert_same_training(actual: Path, expected: Path) -> None:
    """Two runs ended with the same weights, moving average, optimizer state and step."""
    one, other = state_of(actual), state_of(expected)
    for key in ("model", "ema", "optimizer", "step", "best"):
        assert_same(one[key], other[key], key)
