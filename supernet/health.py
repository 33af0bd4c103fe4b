"""How the passes of a step get along: gradient norms, distance to the teacher, interference."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.distill import at_least_fp32
from supernet.meter import OverRanks, means_of
from supernet.samplers.base import Slot
from supernet.space import Arch
from supernet.step import Pass


class HealthMeter:
    """Means per role over the steps that it watched; read once per logging interval, without waiting before that.

    - `grad_norm/<role>`: L2 norm of the gradient that one slot alone gives, its weight taken out, before clipping;
    - `cosine/<role>`: of the angle between that gradient and the largest subnet's. Below 0 the two pull shared
      weights in opposite directions;
    - `gap/<role>`: KL(teacher || student) in nats, mean over the images;
    - `agreement/<role>`: share of images where student and teacher choose the same class.

    Args:
        weights_of: the network whose weights a subnet has, where there are several; directions are compared within one.
        over_ranks: as of `supernet.meter.LossMeter`. Gradients that are handed over are sums over processes already.
    """

    def __init__(
        self, weights_of: Callable[[Arch], object] = lambda arch: None, over_ranks: OverRanks | None = None
    ) -> None:
        self._weights_of, self._over_ranks = weights_of, over_ranks
        self._values: dict[str, list[Tensor]] = {}
        # Of this step's largest slot: its weights, their gradients, the norm of these.
        self._largest: tuple[object, dict[str, Tensor], Tensor] | None = None

    def before(self, slot: Slot) -> None:
        """Nothing to do; see `supernet.step.Observer`."""

    def after(self, slot: Slot, done: Pass) -> None:
        """Compare a taught slot with its teacher."""
        if done.teacher is None:
            return
        log_p, log_q = (F.log_softmax(at_least_fp32(z), dim=1) for z in (done.teacher, done.logits))
        self._add(f"gap/{slot.role}", (log_p.exp() * (log_p - log_q)).sum(1).mean())
        self._add(f"agreement/{slot.role}", (log_p.argmax(1) == log_q.argmax(1)).float().mean())

    def on_gradients(self, slot: Slot, gradients: Mapping[str, Tensor]) -> None:
        """Called with what each slot alone gives, before its gradients join the sum."""
        own = {name: gradient for name, gradient in gradients.items() if _holds_values(gradient)}
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(own.values()))))
        self._add(f"grad_norm/{slot.role}", norm)
        if slot.role == "largest":
            copies = torch._foreach_mul(list(own.values()), 1.0)
            self._largest = (self._weights_of(slot.arch), dict(zip(own, copies, strict=True)), norm)
        elif self._largest is not None and self._largest[0] is self._weights_of(slot.arch):
            _, largest, its_norm = self._largest
            both = [name for name in own if name in largest]
            products = torch._foreach_mul([largest[name] for name in both], [own[name] for name in both])
            dot = torch.stack([product.sum() for product in products]).sum()
            self._add(f"cosine/{slot.role}", dot / (norm * its_norm).clamp(min=torch.finfo(dot.dtype).tiny))

    def end_step(self) -> None:
        """After the last slot of a watched step: the next one's largest slot is another."""
        self._largest = None

    def read(self) -> dict[str, float]:
        """The means since the last reading, by name; starts anew. Waits for the device."""
        means = means_of(self._values, self._over_ranks)
        self._values.clear()
        return means

    def _add(self, name: str, value: Tensor) -> None:
        self._values.setdefault(name, []).append(value)


def _holds_values(gradient: Tensor) -> bool:
    """False for the zeros without memory that stand for unused weights: joint kernels cannot take them."""
    return not gradient.ndim or any(gradient.stride())
