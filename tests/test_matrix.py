"""Every combination of the training methods runs, resumes bit for bit, and does nothing where it is set to nothing."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import assert_same, only_run, state_of, tiny_config

from supernet.job import main
from supernet.log import read_metrics
from supernet.setup import make_net

SAMPLERS = ("uniform", "sandwich")
LOSSES = {"kl": ("distill=soft_ce",), "adaptive": ("distill=alpha", "train.clip_value=1")}
IMPORTANCE = {
    "none": (),
    "path": ("path_sampler=importance",),
    "data": ("data_sampler=importance",),
    "both": ("path_sampler=importance", "data_sampler=importance"),
}
# An epoch has four steps: the largest alone, a ramp, everything.
PHASES = {"plain": (), "deps": ("phases=deps", "phases.delay=0.5", "phases.ramp=0.25")}
QUICK = ("train.test=false", "train.eval_every=9", "train.eval_random=0", "train.calibration_images=32")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing them takes longer than these trainings."""
    monkeypatch.setattr("supernet.trainer.curves", lambda *files: None)
    monkeypatch.setattr("supernet.trainer.health", lambda *files: None)


def train(folder: Path, *overrides: str) -> Path:
    main(tiny_config(folder, *QUICK, *overrides))
    return only_run(folder)


def weights(run: Path) -> dict[str, Any]:
    model: dict[str, Any] = state_of(run)["model"]
    return model


# With sampler=uniform and a single phase nobody teaches, so there both losses are the same training: see README.
@pytest.mark.parametrize(("sampler", "loss", "importance", "phases"), [*product(SAMPLERS, LOSSES, IMPORTANCE, PHASES)])
def test_all_combinations_run(sampler: str, loss: str, importance: str, phases: str, tmp_path: Path) -> None:
    chosen = (f"sampler={sampler}", *LOSSES[loss], *IMPORTANCE[importance], *PHASES[phases])
    run = train(tmp_path, *chosen)
    state, records = state_of(run), read_metrics(run / "metrics.jsonl")
    learned = {"none": set(), "path": {"path_sampler"}, "data": {"data_sampler"}}
    learned["both"] = learned["path"] | learned["data"]
    assert state["step"] == 12
    assert set(state["course"]) == learned[importance]
    roles = {key for row in records if row["kind"] == "train" for key in row if key.startswith("loss/")}
    taught = {"loss/largest"} if phases == "deps" or sampler == "sandwich" else set()
    assert roles == {"loss/random"} | taught | ({"loss/smallest"} if sampler == "sandwich" else set())
    health = {key for row in records if row["kind"] == "health" for key in row}
    assert ("paths/entropy" in health) == (importance in ("path", "both"))
    assert ("data/coverage" in health) == (importance in ("data", "both"))
    assert all(math.isfinite(row[key]) for row in records for key in row if key.startswith("loss/"))


@pytest.mark.parametrize(
    "chosen",
    [
        ("sampler=sandwich", "path_sampler=importance", "data_sampler=importance", "distill=alpha", *PHASES["deps"]),
        (
            *("sampler=uniform", "sampler.num_random=2", "path_sampler=importance", "path_sampler.mode=unbiased"),
            *("data_sampler=importance", "data_sampler.mode=unbiased", "data_sampler.tau=0.5"),
        ),
        ("sampler=sandwich", "path_sampler=attentive", "path_sampler.candidates=2", "path_sampler.prior_samples=500"),
    ],
)
@pytest.mark.parametrize("stop", [6, 8])  # within an epoch, and at its end
def test_interrupted_and_resumed_is_the_same_bit_for_bit(chosen: tuple[str, ...], stop: int, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", *chosen)
    config = tiny_config(tmp_path / "cut", *QUICK, *chosen, "train.save_every=1")
    with pytest.MonkeyPatch.context() as patch:
        from supernet.trainer import Trainer

        step = Trainer.train_step

        def until(self: Trainer, batch: Any) -> dict[str, float]:
            if self.step == stop:
                raise KeyboardInterrupt
            return step(self, batch)

        patch.setattr(Trainer, "train_step", until)
        with pytest.raises(KeyboardInterrupt):
            main(config)
    cut = only_run(tmp_path / "cut")
    assert state_of(cut)["step"] == stop
    main({**config, "resume": str(cut)})
    one, other = state_of(cut), state_of(whole)
    for key in ("model", "optimizer", "step"):
        assert_same(one[key], other[key], key)


@pytest.mark.parametrize(
    ("baseline", "identity"),
    [
        (("sampler=uniform",), ("sampler=uniform", "path_sampler=importance", "path_sampler.tau=0")),
        ((), ("path_sampler=importance", "path_sampler.tau=0")),
        ((), ("data_sampler=importance", "data_sampler.tau=0")),
        ((), ("path_sampler=importance", "path_sampler.tau=0", "path_sampler.mode=unbiased")),
        ((), ("phases=deps", "phases.delay=0", "phases.ramp=0")),
        (("sampler=largest",), ("sampler=sandwich", "phases=deps", "phases.multiplier=0")),
    ],
)
def test_settings_that_mean_nothing_change_nothing(
    baseline: tuple[str, ...], identity: tuple[str, ...], tmp_path: Path
) -> None:
    """Bit for bit, but for what only subnets use where they have no weight: it still decays."""
    one, other = weights(train(tmp_path / "a", *baseline)), weights(train(tmp_path / "b", *identity))
    assert_same(one, other)


def test_equal_alphas_are_the_plain_divergence(tmp_path: Path) -> None:
    adaptive = ("distill=alpha", "distill.alpha_min=1", "distill.alpha_max=1")
    one, other = weights(train(tmp_path / "a", "distill=soft_ce")), weights(train(tmp_path / "b", *adaptive))
    for name, weight in one.items():
        assert torch.allclose(weight, other[name], rtol=1e-3, atol=2e-5), name
    start = make_initial(tmp_path)
    moved = max(float((one[name] - start[name]).abs().max()) for name in one)
    assert moved > 1e-2  # so that the tolerance means something


def make_initial(folder: Path) -> dict[str, Any]:
    from supernet.build import make_data

    config = tiny_config(folder)
    cpu = torch.device("cpu")
    return make_net(config, make_data(config, cpu), cpu).state_dict()
