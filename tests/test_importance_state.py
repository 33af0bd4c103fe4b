"""Path importance sampling: what it reports, what a checkpoint brings back, and its configuration."""

from __future__ import annotations

from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from torch import Tensor
from toy_paths import (
    HORIZON,
    SCORES,
    TINY,
    drawn,
    no_loss,
    real_gradients,
    sampler,
)

from supernet.construct import construct
from supernet.errors import UserError
from supernet.learned import Learned
from supernet.paths.base import Path, WatchesGradients
from supernet.paths.importance import Importance
from supernet.runs import config_dir


def test_the_report_says_how_far_from_uniform_it_draws() -> None:
    made = sampler(scores={"op": (1.0, 1.0, 0.0), "kernel[0]": (1.0, 0.0)}, tau=1.0, mode="unbiased", max_weight=None)
    weights = [path.weight for path in drawn(made, range(10), count=20)]
    report = made.report()
    entropies = [np.log(2) / np.log(3), 1.0, 0.0, 1.0]
    assert report["entropy"] == pytest.approx(np.mean(entropies))
    assert report["observed"] == pytest.approx(5 / 9)
    assert report["tau"] == 1.0
    assert report["ess"] == pytest.approx(sum(weights) ** 2 / (200 * sum(weight**2 for weight in weights)))
    made = sampler(scores=SCORES, tau=0.9, mode="unbiased")
    drawn(made, [0], count=100)
    assert 0 < made.report()["ess"] < 0.95
    assert made.report()["ess"] == 1.0  # nothing drawn since the last one
    fresh = sampler().report()
    assert (fresh["entropy"], fresh["observed"]) == (pytest.approx(1.0), 0.0)


def run(made: Importance, steps: range) -> list[Path]:
    """Draws and observations, as in training."""
    found = []
    for step in steps:
        paths = made.draw(step, 2, no_loss)
        found += paths
        if made.wants(step):
            for i, path in enumerate(paths):
                made.observe(step, path.arch, real_gradients(2 * step + i))
    return found


@pytest.mark.parametrize("stop", [14, 20, 25])
@pytest.mark.parametrize("config", [{"mode": "unbiased"}, {"share": "key", "restart": True, "update_every": 2}])
def test_a_restart_changes_nothing(stop: int, config: dict[str, Any], tmp_path: File) -> None:
    config = {"warmup_epochs": 1.0, "tau": 0.9, **config}
    whole = sampler(TINY, **config)
    expected = run(whole, range(32))
    first = sampler(TINY, **config)
    begun = run(first, range(stop))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = sampler(TINY, **config)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert begun + run(second, range(stop, 32)) == expected
    assert second.report() == whole.report()
    for key, value in whole.state_dict().items():
        other = second.state_dict()[key]
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other


def test_a_state_is_not_changed_by_what_follows() -> None:
    made = sampler(TINY, tau=0.5)
    run(made, range(12))
    state = made.state_dict()
    copies = {key: value.clone() for key, value in state.items() if isinstance(value, Tensor)}
    run(made, range(12, 24))
    assert all(torch.equal(state[key], value) for key, value in copies.items())


def test_the_state_of_another_space_is_refused() -> None:
    with pytest.raises(ValueError, match="scores of"):
        sampler(TINY).load_state_dict(sampler().state_dict())


def configured(**overrides: Any) -> Importance:
    config = yaml.safe_load((config_dir() / "path_sampler" / "importance.yaml").read_text())
    made: Importance = construct({**config, **overrides}, "path_sampler", space=TINY, seed=1, horizon=HORIZON)
    return made


def test_it_is_made_of_its_config_file() -> None:
    made = configured()
    assert isinstance(made, WatchesGradients)
    assert isinstance(made, Learned)
    default = Importance(TINY, 1, HORIZON)
    for name, value in vars(default).items():
        if isinstance(value, str | float | int | bool | None):
            assert getattr(made, name) == value, name
    assert made.indicators.kind == default.indicators.kind == "rms"
    assert configured(ema="halved", tau=1).ema == "halved"


@pytest.mark.parametrize(
    "wrong",
    [
        {"indicator": "size"},
        {"mode": "biased"},
        {"share": "stage"},
        {"ema": 1.0},
        {"ema": "half"},
        {"update_every": 0},
        {"warmup_epochs": -1},
        {"tau": 1.5},
        {"tau_max": -0.1},
        {"max_weight": 0.5},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_mistakes_are_named_in_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError) as error:
        configured(**wrong)
    ((name, value),) = wrong.items()
    assert f"{name}={value}" in str(error.value).replace("'", "")
    assert "\n" not in str(error.value)


def test_a_space_without_choices_has_one_path() -> None:
    space = TINY.only(TINY.largest())
    made = sampler(space, tau=0.9)
    assert made.draw(0, 2, no_loss) == [Path(space.largest())] * 2
    assert made.report() == {"entropy": 1.0, "tau": 0.9, "ess": 1.0, "observed": 1.0}
