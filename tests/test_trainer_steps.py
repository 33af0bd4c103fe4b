"""The trainer's steps against the same computed by hand from the network's forward pass alone."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tiny_run import tiny_config
from torch import Tensor

from supernet.build import make_data
from supernet.data import Batch
from supernet.describe import rehearsal
from supernet.net import Supernet
from supernet.setup import make_net
from supernet.trainer import Trainer


def small_trainer(folder: Path, *overrides: str) -> tuple[Trainer, list[Batch]]:
    """A trainer in fp64 that writes nowhere, and the batches of its first epoch."""
    config = tiny_config(folder, "train.channels_last=false", "train.dropout=0", *overrides)
    data = make_data(config, torch.device("cpu"))
    net = make_net(config, data, torch.device("cpu")).double().train()
    batches = [batch._replace(images=batch.images.double()) for batch in data.train(0)]
    return rehearsal(config, net, data), batches


def sandwich_gradients(net: Supernet, batch: Batch, seed: int, step: int, smoothing: float) -> list[Tensor]:
    """Gradients of the sum of the losses: smoothed labels for the largest, its prediction for the others."""
    space = net.space
    rngs = [np.random.default_rng((seed, step, slot)) for slot in range(2)]
    archs = [space.largest(), *(space.sample(rng) for rng in rngs), space.smallest()]
    target = F.one_hot(batch.targets, 10).double() * (1 - smoothing) + smoothing / 10
    total = torch.zeros((), dtype=torch.double)
    for arch in archs:
        side = (arch["resolution"],) * 2
        logits = net(F.interpolate(batch.images, side, mode="bicubic", align_corners=False), arch)
        total = total - (target * logits.log_softmax(1)).sum(1).mean()
        if arch is archs[0]:
            target = logits.detach().softmax(1)
    gradients = torch.autograd.grad(total, list(net.parameters()), allow_unused=True, materialize_grads=True)
    return list(gradients)


def test_training_steps_equal_those_written_by_hand(tmp_path: Path) -> None:
    """Three whole steps: subnets, distillation, summed gradients, decay, Nesterov momentum, learning rate."""
    options = ("optim.weight_decay=0.01", "train.label_smoothing=0.2", "seed=3", "schedule.warmup_epochs=0.5")
    found, batches = small_trainer(tmp_path, *options)
    net = copy.deepcopy(found.net)
    speed = [torch.zeros_like(parameter) for parameter in net.parameters()]
    for step, batch in enumerate(batches[:3]):
        found.train_step(batch)
        rate = 0.1 * 0.5 * (1 + math.cos(math.pi * step / 12)) * min(1, 0.001 + 0.999 * step / 2)
        gradients = sandwich_gradients(net, batch, seed=3, step=step, smoothing=0.2)
        with torch.no_grad():
            for parameter, gradient, velocity in zip(net.parameters(), gradients, speed, strict=True):
                gradient = gradient + 0.01 * parameter * (parameter.ndim > 1)
                velocity.mul_(0.9).add_(gradient)
                parameter -= rate * (gradient + 0.9 * velocity)
        for (name, actual), expected in zip(found.net.named_parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_the_moving_average_follows_the_steps(tmp_path: Path) -> None:
    """The first update copies the weights; then the decay warms up to the one that is set."""
    found, batches = small_trainer(tmp_path, "train.ema_decay=0.2")
    expected: list[Tensor] = []
    for n, batch in enumerate(batches):
        found.train_step(batch)
        decay = min(0.2, (1 + n) / (10 + n)) if n else 0.0
        now = [parameter.detach().clone() for parameter in found.net.parameters()]
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected or now, now, strict=True)]
        for actual, wanted in zip(found.scored_net.parameters(), expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-12)
    assert not torch.equal(expected[0], next(found.net.parameters()))


def test_scoring_candidates_leaves_no_trace(tmp_path: Path) -> None:
    """Weights, gradients, buffers and random states stay as they were; dropout is off, so equal calls agree."""
    made, batches = small_trainer(tmp_path, "train.dropout=0.5", "train.drop_path=0.5")
    made.train_step(batches[0])
    for parameter in made.net.parameters():
        assert parameter.grad is not None
        parameter.grad.fill_(0.25)
    before = {name: tensor.clone() for name, tensor in made.net.state_dict().items()}
    state, other = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    archs = [made.net.space.largest(), made.net.space.smallest()]
    losses = [made._loss_of(arch, batches[1].images, batches[1].targets) for arch in archs for _ in range(2)]
    assert losses[0] == losses[1] != losses[2] == losses[3]
    assert not losses[0].requires_grad
    assert made.net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.net.state_dict().items())
    assert all((parameter.grad == 0.25).all() for parameter in made.net.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == other).all()  # type: ignore[index]
