"""Batch-norm statistics for one subnet: measured, never inherited."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def track_statistics(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Give every batch norm of `model` fresh running statistics, in place; returns those norms."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = True
        norm.running_mean = torch.zeros_like(norm.weight, requires_grad=False)
        norm.running_var = torch.ones_like(norm.weight, requires_grad=False)
        norm.num_batches_tracked = torch.zeros((), dtype=torch.long, device=norm.weight.device)
    return norms


def has_statistics(model: nn.Module) -> bool:
    """Whether the batch norms of `model` hold running statistics."""
    return any(isinstance(module, nn.BatchNorm2d) and module.running_mean is not None for module in model.modules())


@torch.no_grad()
def calibrate(subnet: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Set the batch-norm statistics of an extracted subnet; returns it, in eval mode.

    Means and (biased) variances are averaged over `batches` ([B, C, S, S] at the subnet's resolution, plain training
    images), each batch counting by its number of images; every batch is normalised with its own statistics, as in
    training. This is Once-for-All's rule (section 3.4 of the paper): the variance between the batches' means is left
    out. Only the norms are in train mode meanwhile, so dropout and drop-path stay off. Afterwards they are ordinary
    batch norms that fine-tuning updates as usual. A subnet without batch norms is returned as it is.

    Raises:
        ValueError: if `batches` is empty.
    """
    subnet.eval()
    norms = track_statistics(subnet)
    if not norms:
        return subnet
    per_channel: dict[nn.Module, float] = {}
    watches = [norm.register_forward_pre_hook(_watch(per_channel)) for norm in norms]
    averages = [tuple(torch.zeros_like(values) for values in _statistics(norm)) for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # running statistics are then those of the last batch
        norm.train()
    count = 0
    for images in batches:
        subnet(images)
        count += len(images)
        for norm, (mean, var) in zip(norms, averages, strict=True):
            of_batch, n, weight = _statistics(norm), per_channel[norm], len(images) / count
            mean.lerp_(of_batch[0], weight)
            var.lerp_(of_batch[1] * ((n - 1) / n), weight)  # the layer's own is the unbiased estimate
    for watch in watches:
        watch.remove()
    if not count:
        raise ValueError("calibration needs at least one batch")
    for norm, (mean, var) in zip(norms, averages, strict=True):
        for values, average in zip(_statistics(norm), (mean, var), strict=True):
            values.copy_(average)
        norm.momentum = 0.1
    return subnet.eval()


def _statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def _watch(per_channel: dict[nn.Module, float]) -> Callable[[nn.Module, tuple[Tensor]], None]:
    """A hook that notes how many values each channel of a norm's input has."""

    def note(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        per_channel[norm] = inputs[0].numel() / inputs[0].shape[1]

    return note
