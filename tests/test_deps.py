"""DepS: the largest subnet alone, the ramp of the children's weights, and the settings that are plain training."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from nets import CONFIGS
from tiny import tiny_space
from torch import Tensor

from supernet.construct import construct
from supernet.distill import SoftCrossEntropy
from supernet.errors import UserError
from supernet.horizon import Horizon
from supernet.init import initialise
from supernet.net import Supernet
from supernet.optim import zero_gradients
from supernet.paths.base import Path
from supernet.phases.base import Phases, Single
from supernet.phases.deps import DelayedShrinking
from supernet.samplers.base import Slot
from supernet.samplers.largest import Largest
from supernet.samplers.sandwich import Sandwich
from supernet.samplers.uniform import Uniform
from supernet.schedule import Cosine
from supernet.step import accumulate, update

SPACE = tiny_space()
PUBLISHED = Horizon(steps_per_epoch=10, total_steps=2700)
SHARES = {"delay": 150 / 270, "ramp": 5 / 270}
BASE_LR = 2.6
SMALL = Horizon(steps_per_epoch=4, total_steps=20)


def by_epoch(step: int, steps_per_epoch: int, total_steps: int) -> float:
    """The released code's: a cosine that changes at the start of epochs only."""
    return 0.5 * (1 + math.cos(math.pi * (step // steps_per_epoch) / (total_steps / steps_per_epoch)))


def draw(step: int) -> Any:
    """Random subnets that count by half and by 1.5, as importance weights would have it."""

    def paths(count: int) -> list[Path]:
        rng = np.random.default_rng((7, step))
        return [Path(arch, 0.5 + i) for i, arch in enumerate(SPACE.sample(rng, count))]

    return paths


SANDWICH = Sandwich(SPACE, num_random=2)


def test_the_numbers_of_the_release() -> None:
    deps = DelayedShrinking(SPACE, PUBLISHED, by_epoch, **SHARES)
    assert (deps.start, deps.full_weight) == (1450, 1500)
    assert BASE_LR * deps.lr(1500) == pytest.approx(1.0743, abs=5e-5)
    assert BASE_LR * deps.lr(1450) == pytest.approx(1.1491, abs=5e-5)
    assert deps.beta(1450) == pytest.approx(0.0187, abs=5e-5)
    assert deps.beta(1450) == pytest.approx(0.02 * deps.lr(1500) / deps.lr(1450), rel=1e-12)
    assert deps.beta(1449) == 0


def test_the_configuration_file_is_the_published_one() -> None:
    config = yaml.safe_load((CONFIGS / "phases" / "deps.yaml").read_text())
    deps = construct(config, "phases", space=SPACE, horizon=PUBLISHED, schedule=Cosine())
    assert (deps.start, deps.full_weight, deps.multiplier) == (1450, 1500, 1.0)
    assert deps.phase(1450).sort_channels is None


@pytest.mark.parametrize("schedule", [by_epoch, Cosine(warmup_epochs=5, final=1e-3)])
@pytest.mark.parametrize("multiplier", [1.0, 0.4])
def test_the_children_s_rate_rises_linearly_and_then_follows_the_schedule(schedule: Any, multiplier: float) -> None:
    deps = DelayedShrinking(SPACE, PUBLISHED, schedule, **SHARES, multiplier=multiplier)
    rates = [deps.beta(step) * deps.lr(step) for step in range(2700)]
    full = multiplier * schedule(1500, 10, 2700)
    assert not any(rates[:1450])
    assert rates[1450:1500] == pytest.approx([full * j / 50 for j in range(1, 51)], rel=1e-12)
    assert rates[1500] == pytest.approx(rates[1499], rel=1e-12)  # continuous
    assert rates[1500:] == pytest.approx([multiplier * schedule(step, 10, 2700) for step in range(1500, 2700)])
    assert all(later - earlier > 0 for earlier, later in pairwise(rates[1449:1500]))


def test_shorter_runs_keep_the_shape() -> None:
    short = DelayedShrinking(SPACE, Horizon(3, 270), Cosine(), **SHARES)
    assert (short.start, short.full_weight) == (145, 150)
    assert DelayedShrinking(SPACE, Horizon(3, 9), Cosine(), **SHARES).start == 5  # the ramp is shorter than a step


def test_a_warm_up_under_the_ramp_does_not_raise_the_weight_over_its_end() -> None:
    """lr(e_w) / lr(t) would be 1000 at the first step of a run."""
    deps = DelayedShrinking(SPACE, Horizon(10, 100), Cosine(warmup_epochs=5, warmup_start=0.0), delay=0.5, ramp=0.5)
    betas = [deps.beta(step) for step in range(60)]
    assert max(betas) == 1
    assert all(math.isfinite(beta) and beta > 0 for beta in betas)


def test_phases_and_their_samplers_space() -> None:
    deps = DelayedShrinking(SPACE, SMALL, Cosine(), delay=0.5, ramp=0.2, sort_channels=True)
    full, shrinking = deps.phase(0), deps.phase(6)
    assert [deps.phase(step) is full for step in range(20)] == [True] * 6 + [False] * 14
    assert all(deps.phase(step) is shrinking for step in range(6, 20))
    assert (full.start, full.largest_only, full.sort_channels) == (0, True, None)
    assert (shrinking.start, shrinking.largest_only, shrinking.sort_channels) == (6, False, 0)
    assert full.space is SPACE
    assert shrinking.space is SPACE  # what a path sampler has learned stays its own
    assert not shrinking.fresh_optimizer  # momentum of the largest subnet goes on


def test_slots_of_a_sandwich() -> None:
    deps = DelayedShrinking(SPACE, SMALL, by_epoch, delay=0.5, ramp=0.2, multiplier=2.0)
    for step in range(20):
        given = SANDWICH.slots(step, draw(step))
        slots = deps.slots(step, given)
        assert slots[0] == Slot(SPACE.largest(), "largest")
        if step < 6:
            assert len(slots) == 1
            continue
        beta = deps.beta(step)
        assert [slot.weight for slot in slots] == [1, 0.5 * beta, 1.5 * beta, beta]
        assert [(slot.arch, slot.role) for slot in slots] == [(slot.arch, slot.role) for slot in given]


def test_the_largest_subnet_is_in_every_step_and_first() -> None:
    deps = DelayedShrinking(SPACE, SMALL, Cosine(), delay=0.5, ramp=0.0)
    sampler = Uniform(SPACE, num_random=2)
    for step in (0, 9):
        assert deps.slots(step, sampler.slots(step, draw(step))) == [Slot(SPACE.largest(), "largest")]
    for step in (10, 19):
        given = sampler.slots(step, draw(step))
        assert deps.slots(step, given) == [Slot(SPACE.largest(), "largest"), *given]


def net_() -> Supernet:
    net = Supernet(SPACE)
    initialise(net, 0, "torch", "none")
    return net.train()


def label_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


def batch(step: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(step)
    return torch.randn(6, 3, 12, 12, generator=rng), torch.randint(4, (6,), generator=rng)


def trained(phases: Phases, sampler: Any) -> list[Tensor]:
    """The weights after the steps around the ramp of 6 to 10, with momentum, decay, dropout and clipping."""
    net = net_()
    decayed = torch.optim.SGD(net.parameters(), 99.0, momentum=0.9, nesterov=True, weight_decay=1e-3)
    zero_gradients(net)
    for step in range(4, 13):
        torch.manual_seed(step)
        slots = phases.slots(step, sampler.slots(step, draw(step)))
        accumulate(net, *batch(step), slots, label_loss, SoftCrossEntropy(), dropout=0.2, drop_path=0.2)
        update(decayed, 0.05 * phases.lr(step), clip_norm=1.0)
    return [parameter.detach() for parameter in net.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_multiplier_zero_is_training_of_the_largest_alone_bit_for_bit() -> None:
    alone = trained(Single(SPACE, SMALL, Cosine()), Largest(SPACE))
    assert same(trained(DelayedShrinking(SPACE, SMALL, Cosine(), 0.5, 0.2, multiplier=0.0), SANDWICH), alone)
    assert not same(trained(DelayedShrinking(SPACE, SMALL, Cosine(), 0.5, 0.2, multiplier=0.1), SANDWICH), alone)


def test_no_delay_is_the_plain_sandwich_bit_for_bit() -> None:
    phases = DelayedShrinking(SPACE, SMALL, Cosine(), delay=0.0, ramp=0.0)
    assert [phases.phase(0).name, phases.phase(19).name] == ["shrinking", "shrinking"]
    assert same(trained(phases, SANDWICH), trained(Single(SPACE, SMALL, Cosine()), SANDWICH))


def test_a_step_in_the_ramp_is_the_largest_plus_beta_times_the_children() -> None:
    phases = DelayedShrinking(SPACE, SMALL, by_epoch, delay=0.5, ramp=0.2)
    net, given = net_().double(), SANDWICH.slots(7, draw(7))
    images, targets = batch(0)

    def gradients(slots: list[Slot]) -> list[Tensor]:
        zero_gradients(net)
        accumulate(net, images.double(), targets, slots, label_loss, SoftCrossEntropy())
        return [p.grad.clone() for p in net.parameters() if p.grad is not None]

    largest = gradients(given[:1])
    children = [a - b for a, b in zip(gradients(given), largest, strict=True)]
    beta = 2 / 4 * by_epoch(10, 4, 20) / by_epoch(7, 4, 20)
    assert 0.1 < beta < 0.9
    weighted = gradients(phases.slots(7, given))
    scale = max(float(g.abs().max()) for g in weighted)
    assert max(float(g.abs().max()) for g in children) > 0.01 * scale
    for actual, top, rest in zip(weighted, largest, children, strict=True):
        assert float((actual - (top + beta * rest)).abs().max()) < 1e-12 * scale


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"delay": 1.0}, "delay=1.0: a share of the run"),
        ({"delay": -0.1}, "delay=-0.1"),
        ({"delay": 150}, "delay=150"),
        ({"delay": 0.0}, "ramp=0.0185: a share of the run that ends at delay=0.0: give 0 to 0.0"),
        ({"delay": 0.01, "ramp": 0.02}, "ramp=0.02"),
        ({"ramp": -0.01}, "ramp=-0.01"),
        ({"multiplier": -1.0}, "multiplier=-1.0"),
        ({"multiplier": math.nan}, "multiplier=nan"),
        ({"delay": 0.0, "ramp": 0.0, "sort_channels": True}, "sort_channels=true: there is nothing to sort by"),
    ],
)
def test_senseless_settings_are_one_clear_line(settings: dict[str, Any], words: str) -> None:
    config = {"_target_": "supernet.phases.deps.DelayedShrinking", **settings}
    with pytest.raises(UserError) as caught:
        construct(config, "phases", space=SPACE, horizon=SMALL, schedule=Cosine())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_spaces_without_channels_of_their_own_are_refused_before_the_run() -> None:
    plain = {"width": [8], "depth": [1], "kernel": [3], "expand": [1], "stride": 1}
    with pytest.raises(ValueError, match="has no blocks with channels of their own"):
        DelayedShrinking(tiny_space(stages=[plain]), SMALL, Cosine(), sort_channels=True)


def test_importance_weights_and_slots_are_left_as_they_were() -> None:
    """Weighting makes new slots: a sampler may hand out the same list again."""
    given = SANDWICH.slots(7, draw(7))
    kept = [replace(slot) for slot in given]
    DelayedShrinking(SPACE, SMALL, Cosine(), delay=0.5, ramp=0.2).slots(7, given)
    assert given == kept
