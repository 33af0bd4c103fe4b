"""MixUp and CutMix over a batch."""

from __future__ import annotations

from torch import Tensor

from supernet.data.base import check_int
from supernet.errors import UserError


class Mix:
    """Blend each image with another one of the batch; the targets become class probabilities.

    `mixup` (Zhang et al. 2017) and `cutmix` (Yun et al. 2019) are the α of their Beta distributions, 0
    switches one off. With both on, one of the two is drawn for each batch. With both off, nothing changes.
    Draws come from torch's global generator, which the caller seeds for each step.

    Raises UserError for a negative α.
    """

    def __init__(self, num_classes: int, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        check_int("num_classes", num_classes, minimum=1)
        for key, alpha in (("mixup", mixup), ("cutmix", cutmix)):
            if isinstance(alpha, bool) or not isinstance(alpha, int | float) or alpha < 0:
                raise UserError(f"{key}={alpha!r} is not valid: give a number of at least 0 (0 is off)")
        from torchvision.transforms import v2

        choices = [v2.MixUp(alpha=float(mixup), num_classes=num_classes)] if mixup else []
        choices += [v2.CutMix(alpha=float(cutmix), num_classes=num_classes)] if cutmix else []
        self._transform = v2.RandomChoice(choices) if choices else None

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images `[B, C, H, W]` and targets `[B]` into images and soft targets `[B, num_classes]`.

        With both off, returns its arguments.
        """
        if self._transform is None:
            return images, targets
        mixed, soft = self._transform(images, targets)
        return mixed, soft
