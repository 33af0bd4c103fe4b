"""Batch augmentation against references that work image by image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from supernet.data import Augment
from supernet.data.augment import shift_flip
from supernet.data.base import Normalise, generator
from supernet.errors import UserError

PIXELS = Normalise([0.0], [1.0], "cpu")


def reference_shift_flip(image: Tensor, dy: int, dx: int, flip: bool) -> Tensor:
    """Move the pixels of one image `[C, H, W]` one by one, then mirror it."""
    out = torch.zeros_like(image)
    height, width = image.shape[1:]
    for y in range(height):
        for x in range(width):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                out[:, y + dy, x + dx] = image[:, y, x]
    return out.flip(2) if flip else out


def test_shift_flip_equals_the_reference() -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (40, 3, 5, 7), generator=rng, dtype=torch.uint8)
    dy, dx = torch.randint(-3, 4, (2, 40), generator=rng)
    flip = torch.rand(40, generator=rng) < 0.5
    out = shift_flip(images, dy, dx, flip, most=3)
    assert out.dtype == torch.uint8
    for i in range(40):
        assert torch.equal(out[i], reference_shift_flip(images[i], int(dy[i]), int(dx[i]), bool(flip[i])))


def run(images: Tensor, seed: int = 0, **options: Any) -> Tensor:
    return Augment(**options)(images, PIXELS, generator(seed))


def test_off_is_plain_normalisation() -> None:
    images = torch.randint(0, 256, (4, 1, 6, 6), dtype=torch.uint8)
    torch.testing.assert_close(run(images), images / 255)


def test_shifts_and_flips_cover_their_range_evenly() -> None:
    images = torch.zeros(4000, 1, 9, 9, dtype=torch.uint8)
    images[:, 0, 4, 4] = 255
    place = run(images, shift=2, flip=True).flatten(1).argmax(1)
    counts = torch.stack([place // 9 - 2, place % 9 - 2]).flatten().bincount(minlength=5)
    assert len(counts) == 5
    assert ((counts / 8000 - 0.2).abs() < 0.03).all()
    images[:, 0, 4, 4], images[:, 0, 4, 0] = 0, 255
    mirrored = run(images, flip=True)[:, 0, 4, 8] > 0
    assert abs(mirrored.float().mean() - 0.5) < 0.04


def test_rotation_and_zoom_equal_torchvision() -> None:
    images = torch.randint(0, 256, (6, 1, 16, 16), dtype=torch.uint8)
    out = run(images, rotate=20, scale=0.2)
    turn, zoom = torch.rand(2, 6, generator=generator(0)) * 2 - 1
    for image, result, t, z in zip(images, out, turn.tolist(), zoom.tolist(), strict=True):
        # torchvision counts degrees clockwise, as seen in an image.
        expected = tv.affine(
            image.float(),
            angle=-20 * t,
            translate=[0, 0],
            scale=1 + 0.2 * z,
            shear=[0.0, 0.0],
            interpolation=tv.InterpolationMode.BILINEAR,
        )
        torch.testing.assert_close(result, expected / 255, atol=2e-3, rtol=0)


def test_erasing_is_one_rectangle_of_the_mean_with_the_stated_probability() -> None:
    images = torch.full((3000, 1, 20, 20), 200, dtype=torch.uint8)
    erased = Augment(erase=0.25)(images, Normalise([0.5], [0.25], "cpu"), generator(1)) == 0
    hit = erased.flatten(1).any(1)
    assert abs(hit.float().mean() - 0.25) < 0.03
    rows, columns = erased[hit].any(3).sum(2), erased[hit].any(2).sum(2)
    area = erased[hit].flatten(1).sum(1)
    assert torch.equal(area, (rows * columns).flatten()), "each is a full rectangle"
    share = area / 400
    assert share.min() > 0.005
    assert share.max() < 0.38
    assert abs(share.mean() - 0.175) < 0.02
    assert (erased[hit].float().mean(0) > 0).all(), "every pixel can be hit"


def test_cutout_is_a_square_cut_at_the_border() -> None:
    images = torch.full((2000, 1, 10, 10), 255, dtype=torch.uint8)
    holes = run(images, cutout=4) == 0
    sides = torch.cat([holes.any(3).sum(2), holes.any(2).sum(2)], 1)
    assert sides.max() == 4
    assert sides.min() == 2
    assert torch.equal(holes.flatten(1).sum(1), sides.prod(1))


def test_draws_follow_the_generator() -> None:
    images = torch.randint(0, 256, (8, 1, 12, 12), dtype=torch.uint8)
    options: dict[str, Any] = {"shift": 2, "flip": True, "rotate": 5, "scale": 0.1, "erase": 0.5, "cutout": 2}
    assert torch.equal(run(images, seed=3, **options), run(images, seed=3, **options))
    assert not torch.equal(run(images, seed=3, **options), run(images, seed=4, **options))


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"shift": -1}, r"data\.augment\.shift=-1"),
        ({"flip": 1}, r"data\.augment\.flip=1"),
        ({"erase": 1.5}, r"data\.augment\.erase=1\.5"),
        ({"rotate": "ten"}, r"data\.augment\.rotate='ten'"),
        ({"cutuot": 3}, r"data\.augment\.cutuot does not exist: choose from shift, flip"),
    ],
)
def test_bad_options_name_the_key(options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        Augment.from_config(options)
