"""What looks at the passes of a training step: the gradients of single passes, and how much images matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from supernet.samplers.base import Slot
from supernet.step import Pass

OnGradients = Callable[[Slot, Mapping[str, Tensor]], None]


class SlotGradients:
    """Hands on the gradients that each slot alone gives, before they join the sum.

    While such a slot runs, its gradients go to buffers of their own, which are added to the sum afterwards: the very
    sum that would have been, bit for bit. Every parameter must have a gradient (see `supernet.optim.zero_gradients`).

    Args:
        net: `Supernet.net`; gradients carry its parameter names.
        on_gradients: called after each slot that `chosen` accepts, with what the slot gave, its weight included.
        chosen: which slots.
    """

    def __init__(self, net: nn.Module, on_gradients: OnGradients, chosen: Callable[[Slot], bool]) -> None:
        self._parameters = dict(net.named_parameters())
        self._on_gradients, self._chosen = on_gradients, chosen
        self._own: dict[str, Tensor] = {}
        self._sums: list[Tensor] = []

    def before(self, slot: Slot) -> None:
        if not self._chosen(slot):
            return
        parameters = self._parameters.values()
        self._sums = [p.grad for p in parameters if p.grad is not None]
        assert len(self._sums) == len(self._parameters)
        if not self._own:
            self._own = {name: torch.zeros_like(p) for name, p in self._parameters.items()}
        torch._foreach_zero_(list(self._own.values()))
        for parameter, buffer in zip(parameters, self._own.values(), strict=True):
            parameter.grad = buffer

    def after(self, slot: Slot, done: Pass) -> None:
        if not self._chosen(slot):
            return
        self._on_gradients(slot, self._own)
        torch._foreach_add_(self._sums, list(self._own.values()))
        for parameter, total in zip(self._parameters.values(), self._sums, strict=True):
            parameter.grad = total


class ImageScores:
    """How much each image of the batch matters: the norm of its loss's gradient with respect to its logits.

    For cross-entropy that is ||softmax(z) - target||_2, between 0 and sqrt(2), with the label as target, or the
    teacher's softmax where a teacher is followed (PA&DA, CVPR 2023, section 3.3); for other losses what their own
    gradient says. Mean over the slots that count.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def before(self, slot: Slot) -> None:
        pass

    def after(self, slot: Slot, done: Pass) -> None:
        if done.by_logits is not None:
            score = done.by_logits.norm(dim=1)
            self._sum = score if self._sum is None else self._sum + score
            self._count += 1

    @property
    def scores(self) -> Tensor | None:
        """[B], after the last slot; None if no slot counted."""
        return None if self._sum is None else self._sum / self._count
