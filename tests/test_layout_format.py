"""The memory format that is chosen by measuring."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_space

from supernet import layout
from supernet.net import Supernet, memory_format

SECONDS = {  # of passes in channels_last, in NCHW
    "faster": (1.0, 2.0, True),
    "alike": (1.0, 0.9, True),
    "slower": (1.0, 0.5, False),
}


@pytest.mark.parametrize(("last", "nchw", "expected"), SECONDS.values(), ids=SECONDS.keys())
def test_the_faster_format_is_taken_and_stored(
    last: float, nchw: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_pass", lambda net, *_: last if memory_format(net) is torch.channels_last else nchw)
    net = Supernet(tiny_space())
    config = layout.with_format({"seed": 3, "train": {"channels_last": "auto", "batch_size": 4}}, net, 3)
    assert config == {"seed": 3, "train": {"channels_last": expected, "batch_size": 4}}
    assert memory_format(net) is (torch.channels_last if expected else torch.contiguous_format)


@pytest.mark.parametrize("given", [True, False])
def test_a_given_format_is_not_measured(given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "channels_last_is_fast", None)
    net = Supernet(tiny_space())
    config = {"train": {"channels_last": given, "batch_size": 4}}
    assert layout.with_format(config, net, 3) == config
    assert memory_format(net) is (torch.channels_last if given else torch.contiguous_format)


def test_measuring_leaves_no_trace() -> None:
    net = Supernet(tiny_space())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    assert layout.channels_last_is_fast(net, 3, 4) in (True, False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
