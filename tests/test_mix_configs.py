"""Mixes as the configuration describes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from search.gradient.mixes.dirichlet import Dirichlet
from search.gradient.mixes.gates import Gates
from search.gradient.mixes.gumbel import Gumbel
from search.gradient.mixes.softmax import Softmax
from search.gradient.mixes.sparsemax import Sparsemax
from search.gradient.mixes.uniform import Uniform
from supernet.construct import construct
from supernet.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs" / "algorithm" / "mix"


PUBLISHED = {
    "softmax": Softmax(),
    "sparsemax": Sparsemax(),
    "dirichlet": Dirichlet(),
    "gdas": Gumbel(hard=True, tau_max=10.0, tau_min=0.1),
    "snas": Gumbel(hard=False, tau_max=1.0, tau_min=0.1),
    "gates": Gates("two"),
    "uniform": Uniform(),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_make_the_mixes(name: str) -> None:
    made = construct(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()), "algorithm.mix")
    assert type(made) is type(PUBLISHED[name])
    assert vars(made) == vars(PUBLISHED[name])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gdas", {"tau_min": 0.0}, "tau_min=0"),
        ("snas", {"tau_max": 0.01}, "tau_max=0.01"),
        ("dirichlet", {"weight": -1.0}, "weight=-1"),
        ("dirichlet", {"anchor": "l1"}, "anchor=l1"),
        ("gates", {"paths": "three"}, "paths=three"),
    ],
)
def test_mistakes_are_named(name: str, change: dict[str, object], message: str) -> None:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    with pytest.raises(UserError, match=message):
        construct({**config, **change}, "algorithm.mix")
