"""Losses, images and weights that are not finite: training stops, and no checkpoint holds such numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from documented import as_documented
from faulty import RECIPE, training
from tiny_run import only_run
from zygote import Injection, Zygote

from supernet import checkpoint

FAULTS: dict[str, Injection] = {
    "NaN in the loss": ("not_finite_loss", 8, "nan"),
    "infinity in the loss": ("not_finite_loss", 8, "inf"),
    "NaN in an image": ("not_finite_image", 8, "nan"),
    "infinity in an image": ("not_finite_image", 8, "inf"),
    "NaN in a weight": ("not_finite_weight", 8, "nan"),
    "infinity in a weight": ("not_finite_weight", 8, "inf"),
}


SOME = ("NaN in the loss", "infinity in an image", "NaN in a weight")


@pytest.mark.parametrize(
    "name", [name if name in SOME else pytest.param(name, marks=pytest.mark.exhaustive) for name in FAULTS]
)
def test_numbers_that_are_not_finite(zygote: Zygote, tmp_path: Path, name: str) -> None:
    # The losses are read late, as they are by default: nothing may be saved in between.
    ended = zygote.run(training(tmp_path, *RECIPE, "train.log_every=100"), FAULTS[name])
    as_documented(name, ended)
    for file in checkpoint.kept_files(only_run(tmp_path) / "checkpoint.pt"):
        state = checkpoint.load(file)
        assert state["step"] <= 6
        assert all(value.isfinite().all() for part in ("model", "ema") for value in state[part].values())
