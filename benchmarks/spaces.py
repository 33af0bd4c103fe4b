"""The named spaces of `configs/space`, without their networks."""

from __future__ import annotations

from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from supernet.build import make_space
from supernet.runs import config_dir
from supernet.space import Space


def names_of_spaces() -> list[str]:
    return sorted(path.stem for path in (config_dir() / "space").glob("*.yaml"))


def space_config(name: str) -> dict[str, Any]:
    """The description of a named space, as `train.py space=<name>` composes it."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("train", [f"space={name}"]).space, resolve=True)
    return dict(config)


def named_space(name: str) -> Space:
    """A named space for 1000 classes."""
    return make_space(space_config(name), num_classes=1000, in_channels=3)
