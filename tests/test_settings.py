"""Settings of a training run: what is refused, and that the message names the key."""

from __future__ import annotations

from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from supernet.construct import construct
from supernet.errors import UserError
from supernet.runs import config_dir
from supernet.settings import TrainSettings


def make(**overrides: Any) -> TrainSettings:
    config = yaml.safe_load((config_dir() / "train.yaml").read_text())["train"]
    settings: TrainSettings = construct({**config, **overrides}, "train")
    return settings


BAD = [
    *[(key, 0) for key in ("epochs", "batch_size", "calibration_images", "log_every", "eval_every")],
    *[(key, value) for key in ("dropout", "drop_path", "label_smoothing") for value in (-0.1, 1.0, 1)],
    *[(key, value) for key in ("clip_value", "clip_norm", "eval_images") for value in (0, -1)],
    *[(key, -1) for key in ("mixup", "cutmix", "save_every", "eval_random")],
    *[("ema_decay", value) for value in (0.0, 1.0, -0.5, 2.0)],
    *[("epochs", value) for value in ("3", 2.5, True, None)],
    *[("amp", value) for value in (1, "true", None)],
    ("init", "xavier"),
    ("zero_gamma", True),
    ("dropout", "much"),
    ("clip_norm", "1"),
]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_a_bad_value_is_refused_in_one_line_with_its_key(key: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        make(**{key: value})
    message = str(caught.value)
    assert message.startswith(f"train.{key}=")
    assert str(value) in message
    assert "\n" not in message


@pytest.mark.parametrize("key", ["dropout", "clip_norm", "label_smoothing"])
def test_not_a_number_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=rf"train\.{key}=nan"):
        make(**{key: float("nan")})


GOOD = [
    ("epochs", 1),
    ("clip_norm", 1),
    ("clip_value", None),
    ("ema_decay", 0.999),
    ("ema_decay", None),
    ("eval_random", 0),
    ("save_every", 0),
    ("dropout", 0),
    ("zero_gamma", "all"),
    ("eval_images", None),
]


@pytest.mark.parametrize(("key", "value"), GOOD)
def test_values_at_the_edge_are_accepted(key: str, value: object) -> None:
    assert getattr(make(**{key: value}), key) == value


def test_an_unknown_key_gets_a_hint() -> None:
    with pytest.raises(UserError, match=r"train\.epoch: unknown name; did you mean epochs"):
        make(epoch=3)


def test_every_setting_is_in_the_configuration_file_with_a_known_name() -> None:
    config = yaml.safe_load((config_dir() / "train.yaml").read_text())["train"]
    assert set(config) - {"_target_"} == set(TrainSettings.__dataclass_fields__)
