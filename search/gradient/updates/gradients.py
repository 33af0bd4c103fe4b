"""Gradients of a loss with respect to some parameters only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def accumulate(loss: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Add d loss / d parameter to the `.grad` of these parameters; all others keep theirs.

    A parameter that the loss does not depend on keeps its gradient too, be it zeros or None.

    Args:
        loss: 0-d; a constant adds nothing.
        parameters: leaves; those with `requires_grad` off are passed over.
    """
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    if learning and loss.requires_grad:
        torch.autograd.backward(loss, inputs=learning)
