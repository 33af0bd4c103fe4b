"""How a network that is scored runs: how many images at a time, and in which precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from supernet.distill import at_least_fp32


@dataclass(frozen=True)
class Passes:
    """Forward passes of evaluation.

    A batch of the data runs in equal parts, and its logits are scored together. How many images run at a time changes
    logits by rounding at most (libraries choose their kernels by it), so a score only where classes tie. Calibration
    takes the data's batches whole, because their size decides the statistics.

    Args:
        sizes: the most images at a time, by the side of the images, px; of other sides, whole batches.
        dtype: of convolutions and matrix products, by autocast, in calibration too. Weights, statistics of norms and
            logits stay float32.
    """

    sizes: Mapping[int, int] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    def precision(self, device: torch.device) -> AbstractContextManager[object]:
        """The context to run in; entered once for many batches, it converts every weight once."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(device.type, self.dtype)

    def parts(self, images: Tensor) -> Sequence[Tensor]:
        """`images` [B, C, S, S] in parts, as views; they differ in size by at most one image."""
        size = self.sizes.get(images.shape[-1], len(images))
        return images.tensor_split(-(-len(images) // size)) if size < len(images) else [images]

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, C, S, S], at least fp32."""
        return joined([model(part) for part in self.parts(images)])


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Logits of the parts of a batch, one after another, at least fp32."""
    return at_least_fp32(parts[0] if len(parts) == 1 else torch.cat(list(parts)))


PLAIN = Passes()
