"""The training step: several subnets, one set of gradients, one optimizer step. No logging, no files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from supernet.compiling import Compiled
from supernet.data.base import resize
from supernet.distill import DistillLoss
from supernet.micro_batch import micro_batches
from supernet.net import Supernet
from supernet.samplers.base import Slot

# logits [B, K], targets [B] or [B, K] -> losses [B]; their mean will do where images have no weights
LabelLoss = Callable[[Tensor, Tensor], Tensor]


class Pass(NamedTuple):
    """What one slot computed; everything is detached.

    Attributes:
        logits: [B, K].
        teacher: the logits [B, K] that it learned from; None: it learned from the labels.
        targets: labels [B] or class probabilities [B, K].
        loss: mean over the batch, weighted by image if images have weights, not by the slot's weight.
        by_logits: gradient of each image's own loss by its logits [B, K], no weights in it; None: the slot's is 0.
    """

    logits: Tensor
    teacher: Tensor | None
    targets: Tensor
    loss: Tensor
    by_logits: Tensor | None = None


class Observer(Protocol):
    """Looks at the passes of a step. It must not change the network, its sums of gradients or random states."""

    def before(self, slot: Slot) -> None:
        """Before the forward pass of `slot`."""

    def after(self, slot: Slot, done: Pass) -> None:
        """After its backward pass."""


def accumulate(
    net: Supernet | Compiled,
    images: Tensor,
    targets: Tensor,
    slots: Sequence[Slot],
    label_loss: LabelLoss,
    distill: DistillLoss,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    autocast: bool = False,
    weights: Tensor | None = None,
    teacher: Tensor | None = None,
    observers: Sequence[Observer] = (),
    micro_batch: int | None = None,
    total: int | None = None,
) -> list[Tensor]:
    """Add the gradients of every slot to the parameters' `.grad`; returns the detached losses, one per slot.

    The largest slot is regularised and learns from the labels; its logits, detached, teach the slots after it. Without
    one, every slot is regularised (SPOS, AutoFormer, Once-for-All). Where `teacher` is given (logits [B, K] of another
    network), it teaches every slot. Gradients are summed, not averaged (BigNAS, section 3.1). Slots run one after
    another, each freeing its graph, so the peak memory is that of the largest; with `micro_batch` that of so many
    images, see `supernet.micro_batch`. images: [B, C, S, S], resized once per resolution; weights: factors [B] on the
    images' losses. `total` counts the images of the whole batch, where these are one process's share of it: the sum of
    all processes' gradients is then that of the mean over the whole batch. Losses are means over the share.
    """
    total = len(images) if total is None else total
    resized: dict[int, Tensor] = {}
    losses: list[Tensor] = []
    other, has_largest = teacher is not None, any(slot.role == "largest" for slot in slots)
    for slot in slots:
        for observer in observers:
            observer.before(slot)
        side = net.space.resolution(slot.arch)
        if side not in resized:
            resized[side] = resize(images, side)
        largest = slot.role == "largest"
        rates = {"dropout": dropout, "drop_path": drop_path} if largest or not has_largest else {}
        taught_by, passes = teacher, []
        for part in micro_batches(len(images), micro_batch):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
                logits = net(resized[side][part], slot.arch, **rates)
            if observers:
                logits.retain_grad()
            if taught_by is None:
                each = label_loss(logits, targets[part])
            else:
                each = distill(logits, taught_by[part], targets[part])
            loss = (each if weights is None else each * weights[part]).mean()
            (loss * (slot.weight * (len(logits) / total))).backward()
            passes.append((logits, loss.detach()))
        found, loss, gradient = _joined(passes)
        losses.append(loss)
        if largest and not other:
            teacher = found
        for observer in observers:
            by_logits = _of_each_image(gradient, slot.weight, weights, total)
            observer.after(slot, Pass(found, taught_by, targets, loss, by_logits))
    return losses


def _joined(passes: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits [B, K], mean loss and the loss's gradient by the logits of a whole batch, from those of its parts."""
    if len(passes) == 1:
        logits, loss = passes[0]
        return logits.detach(), loss, logits.grad if logits.retains_grad else None
    whole = torch.cat([logits.detach() for logits, _ in passes])
    loss = torch.stack([loss * (len(logits) / len(whole)) for logits, loss in passes]).sum()
    gradients = [logits.grad for logits, _ in passes if logits.retains_grad and logits.grad is not None]
    return whole, loss, torch.cat(gradients) if gradients else None


def _of_each_image(gradient: Tensor | None, slot_weight: float, weights: Tensor | None, total: int) -> Tensor | None:
    """From the gradient of the weighted mean by the logits [B, K] to those of the images' own losses."""
    if gradient is None or slot_weight == 0:
        return None
    each = gradient.float() if gradient.dtype in (torch.float16, torch.bfloat16) else gradient
    each = each * (total / slot_weight)
    return each if weights is None else each / weights[:, None]


def update(
    optimizer: torch.optim.Optimizer,
    lr: float,
    clip_value: float | None = None,
    clip_norm: float | None = None,
) -> None:
    """Clip the accumulated gradients, take one optimizer step at rate `lr`, and clear them."""
    parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
    if clip_value is not None:
        nn.utils.clip_grad_value_(parameters, clip_value)
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(parameters, clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    # In place, see `supernet.optim.zero_gradients`; all at once, which the optimizer's own method may not do.
    if gradients := [p.grad for p in parameters if p.grad is not None]:  # none: no member trains in this step
        torch._foreach_zero_(gradients)
