"""The memory format to train in, chosen by measuring: which one is faster depends on device, library and network."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from supernet.sharing.members import AnySupernet

AUTO = "auto"
IMAGES = 16  # of a measured batch, at most
CLEARLY = 0.8  # NCHW must take at most this share of the time: noise must not change the choice
PATIENCE = 2.0  # seconds of one pass, above which it is not repeated
REPEATS = 3


def with_format(config: Mapping[str, Any], net: AnySupernet, channels: int) -> dict[str, Any]:
    """The configuration with `train.channels_last` decided, and `net` in that format.

    What was measured is then part of the run's configuration, so that a resumed run does not measure again.
    """
    train = dict(config["train"])
    if train.get("channels_last") == AUTO:
        train["channels_last"] = channels_last_is_fast(net, channels, train["batch_size"], bool(train.get("amp")))
    if train.get("channels_last"):
        net.to(memory_format=torch.channels_last)
    return {**config, "train": train}


def channels_last_is_fast(net: AnySupernet, channels: int, batch_size: int, amp: bool = False) -> bool:
    """Whether the largest subnet trains at least about as fast in channels_last as in NCHW.

    Forward and backward passes of at most `IMAGES` random images in each format, in turns. Leaves weights, gradients
    and random states alone; the network's format is changed.
    """
    arch, device = net.space.largest(), next(net.parameters()).device
    side = net.space.resolution(arch)
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(min(batch_size, IMAGES), channels, side, side, generator=rng).to(device)
    was_training = net.training
    net.train()
    best: dict[str, float] = {}
    formats: dict[str, Any] = {"channels_last": torch.channels_last, "nchw": torch.contiguous_format}
    for repeat in range(1 + REPEATS):
        for name, memory in formats.items():
            net.to(memory_format=memory)
            seconds = _pass(net, images.contiguous(memory_format=memory), arch, amp)
            if repeat:  # the first one warms up
                best[name] = min(seconds, best.get(name, seconds))
        if repeat and max(best.values()) > PATIENCE:
            break
    net.train(was_training)
    return best["nchw"] > CLEARLY * best["channels_last"]


def _pass(net: nn.Module, images: Tensor, arch: Any, amp: bool) -> float:
    """Seconds of a forward and a backward pass whose gradients go nowhere."""
    _wait(images.device)
    start = time.perf_counter()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
        out = net(images, arch)
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    torch.autograd.grad(out.float().sum(), weights, allow_unused=True)
    _wait(images.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
