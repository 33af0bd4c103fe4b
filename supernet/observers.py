"""What looks at the passes of a training step: the gradients of single passes, and how much images matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from supernet.distributed import ALONE, Ranks
from supernet.reduce import sum_over
from supernet.samplers.base import Slot
from supernet.step import Pass

OnGradients = Callable[[Slot, Mapping[str, Tensor]], None]


class SlotGradients:
    """Hands on the gradients that each slot alone gives, before they join the sum.

    While such a slot runs, the sums are put aside, so that autograd hands its gradients over as they are. They are
    added to the sums afterwards, which gives the very sums that would have been, bit for bit, at the cost of the
    addition that would have been. Every parameter must have a gradient (see `supernet.optim.zero_gradients`).

    Args:
        net: `Supernet.net`; gradients carry its parameter names.
        on_gradients: called after each slot that `chosen` accepts, with what the slot gave, its weight included.
        chosen: which slots.
        ranks: several processes. What each slot gives is then summed over them first, that of slots not chosen too, so
            that the sums need not be.
    """

    def __init__(
        self, net: nn.Module, on_gradients: OnGradients, chosen: Callable[[Slot], bool], ranks: Ranks = ALONE
    ) -> None:
        self._parameters = dict(net.named_parameters())
        self._on_gradients, self._chosen, self._ranks = on_gradients, chosen, ranks
        self._sums: list[Tensor] = []
        # For weights that the subnet does not use: zeros of their shapes, without memory.
        self._nothing = {name: p.detach().new_zeros(()).expand(p.shape) for name, p in self._parameters.items()}

    def before(self, slot: Slot) -> None:
        if not self._takes(slot):
            return
        parameters = self._parameters.values()
        self._sums = [p.grad for p in parameters if p.grad is not None]
        assert len(self._sums) == len(self._parameters)
        for parameter in parameters:
            parameter.grad = None

    def after(self, slot: Slot, done: Pass) -> None:
        if not self._takes(slot):
            return
        found = [parameter.grad for parameter in self._parameters.values()]
        sum_over(self._ranks, [given for given in found if given is not None])  # the same ones everywhere
        if self._chosen(slot):
            own = zip(self._nothing.items(), found, strict=True)
            self._on_gradients(slot, {name: nothing if given is None else given for (name, nothing), given in own})
        used = [(total, given) for total, given in zip(self._sums, found, strict=True) if given is not None]
        torch._foreach_add_([total for total, _ in used], [given for _, given in used])
        for parameter, total in zip(self._parameters.values(), self._sums, strict=True):
            parameter.grad = total

    def _takes(self, slot: Slot) -> bool:
        return self._ranks.world > 1 or self._chosen(slot)


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
