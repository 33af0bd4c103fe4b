"""MixUp and CutMix."""

from __future__ import annotations

import pytest
import torch

from supernet.data import Mix
from supernet.errors import UserError


def test_off_returns_its_arguments() -> None:
    images, targets = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
    mixed, same = Mix(3)(images, targets)
    assert mixed is images
    assert same is targets


@pytest.mark.parametrize("alphas", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_targets_state_the_share_of_each_image(alphas: dict[str, float]) -> None:
    # Image i is constant i + 1 and of class i: its mean is the expected value under the targets.
    images = torch.arange(1.0, 7.0).view(6, 1, 1, 1).expand(6, 1, 16, 16)
    mix = Mix(6, **alphas)
    changed = 0
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, soft = mix(images, torch.arange(6))
        torch.testing.assert_close(soft.sum(1), torch.ones(6))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), soft @ torch.arange(1.0, 7.0))
        changed += not torch.equal(mixed, images)
        torch.manual_seed(seed)
        again, soft_again = mix(images, torch.arange(6))
        assert torch.equal(mixed, again)
        assert torch.equal(soft, soft_again)
    assert changed > 10


def test_a_negative_alpha_is_refused() -> None:
    with pytest.raises(UserError, match="cutmix=-1"):
        Mix(3, cutmix=-1)
