"""The training step: several subnets, one set of gradients, one optimizer step. No logging, no files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from supernet.data.base import resize
from supernet.distill import DistillLoss
from supernet.net import Supernet
from supernet.samplers.base import Slot

LabelLoss = Callable[[Tensor, Tensor], Tensor]  # logits [B, K], targets [B] or [B, K] -> scalar


def accumulate(
    net: Supernet,
    images: Tensor,
    targets: Tensor,
    slots: Sequence[Slot],
    label_loss: LabelLoss,
    distill: DistillLoss,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    autocast: bool = False,
) -> list[Tensor]:
    """Add the gradients of every slot to the parameters' `.grad`; returns the detached losses, one per slot.

    The largest slot is regularised and learns from the labels; its logits, detached, teach the slots after it.
    Gradients are summed, not averaged (BigNAS, section 3.1). Slots run one after another, each freeing its graph,
    so the peak memory is that of the largest. images: [B, C, S, S], resized once per resolution.
    """
    resized: dict[int, Tensor] = {}
    losses, teacher = [], None
    for slot in slots:
        side = net.space.resolution(slot.arch)
        if side not in resized:
            resized[side] = resize(images, side)
        largest = slot.role == "largest"
        rates = {"dropout": dropout, "drop_path": drop_path} if largest else {}
        with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
            logits = net(resized[side], slot.arch, **rates)
        loss = label_loss(logits, targets) if teacher is None else distill(logits, teacher, targets).mean()
        (loss * slot.weight).backward()
        if largest:
            teacher = logits.detach()
        losses.append(loss.detach())
    return losses


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
    optimizer.zero_grad(set_to_none=False)  # see `supernet.optim.zero_gradients`
