"""The search's configuration files compose, build, and are named in the help."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tiny import tiny_space

from search.constraint import Constraint
from search.gradient.search import GradientSearch
from search.settings import SearchSettings, is_gradient
from supernet.construct import construct
from supernet.runs import config_dir

ALGORITHMS = sorted(path.stem for path in (config_dir() / "algorithm").glob("*.yaml"))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_composes_and_builds(name: str) -> None:
    with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
        config = OmegaConf.to_container(compose("search", [f"algorithm={name}", "constraint.macs=300M"]))
    assert isinstance(config, dict)
    settings = SearchSettings.of({str(key): value for key, value in config.items()})
    assert settings.data_overrides == {}
    constraint = construct(config["constraint"], "constraint")
    assert constraint == Constraint(macs="300M")
    budget = constraint.on(tiny_space())
    if is_gradient(config["algorithm"]):
        assert GradientSearch.of(config["algorithm"], budget).name == name
        return
    algorithm = construct(config["algorithm"], "algorithm", budget=budget, seed=0)
    proposals = algorithm.ask(4)
    assert len(proposals) == 4
    assert all(budget.feasible(arch) for arch in proposals)


def test_the_help_names_every_algorithm() -> None:
    text = (config_dir() / "search.yaml").read_text()
    assert all(f"algorithm={name}" in text for name in ALGORITHMS)
