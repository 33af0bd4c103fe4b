"""Depthwise convolutions whose smaller kernels are learned maps of the larger ones (Once-for-All, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from supernet.slicing import CONV_KERNEL_DIMS, take


class KernelTransformConv2d(nn.Conv2d):
    """A depthwise convolution with the largest kernel, and one matrix for each step down to a smaller one.

    The k x k kernel is the centre of the next larger one, flattened row by row, times the transposed matrix
    [k², k²] of that step; all channels share it. The matrices start as the identity: a plain centre crop.

    Args:
        chain: all kernel sizes in descending order; the first is the layer's own.
    """

    def __init__(self, channels: int, chain: Sequence[int], **settings: Any) -> None:
        super().__init__(channels, channels, chain[0], groups=channels, **settings)
        self.chain = tuple(chain)
        self.transform = nn.ParameterDict(
            {f"{large}to{small}": torch.eye(small**2) for large, small in pairwise(self.chain)}
        )

    def reset_parameters(self) -> None:
        """PyTorch's initial weights, and identity matrices."""
        super().reset_parameters()
        if "transform" in self._modules:  # not yet while the base class is built
            for matrix in self.transform.values():
                nn.init.eye_(matrix)

    def slice_weight(self, shape: Sequence[int]) -> Tensor:
        """The kernels of a subnet, of the given `shape` [C, 1, k, k].

        Raises:
            ValueError: if k is not in the chain.
        """
        channels, inner, size, _ = shape
        if size not in self.chain:
            raise ValueError(f"a kernel of {size} is not one of {list(self.chain)}")
        weight = take(self.weight, (channels, inner, *self.kernel_size))
        for large, small in pairwise(self.chain[: self.chain.index(size) + 1]):
            centre = take(weight, (channels, inner, small, small), CONV_KERNEL_DIMS)
            weight = (centre.reshape(channels, small**2) @ self.transform[f"{large}to{small}"].T).view(centre.shape)
        return weight
