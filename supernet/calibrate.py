"""Batch-norm statistics for one subnet: measured, never inherited."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from supernet.distributed import ALONE, Ranks
from supernet.reduce import sum_over


def track_statistics(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Give every batch norm of `model` fresh running statistics, in place; returns those norms."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    like = next((p for p in model.parameters()), None)  # norms need not have any themselves
    for norm in norms:
        assert like is not None
        norm.track_running_stats = True
        norm.running_mean = like.new_zeros(norm.num_features)
        norm.running_var = like.new_ones(norm.num_features)
        norm.num_batches_tracked = torch.zeros((), dtype=torch.long, device=like.device)
    return norms


def has_statistics(model: nn.Module) -> bool:
    """Whether the batch norms of `model` hold running statistics."""
    return any(isinstance(module, nn.BatchNorm2d) and module.running_mean is not None for module in model.modules())


@torch.no_grad()
def calibrate(subnet: nn.Module, batches: Iterable[Tensor], ranks: Ranks = ALONE) -> nn.Module:
    """Set the batch-norm statistics of an extracted subnet; returns it, in eval mode.

    Means and (biased) variances are averaged over `batches` ([B, C, S, S] at the subnet's resolution, plain training
    images), each batch counting by its number of images; every batch is normalised with its own statistics, as in
    training. This is Once-for-All's rule (section 3.4 of the paper): the variance between the batches' means is left
    out. Only the norms are in train mode meanwhile, so dropout and drop-path stay off. Afterwards they are ordinary
    batch norms that fine-tuning updates as usual. A subnet without batch norms is returned as it is.

    Each of `ranks` takes its share of `batches`, a sequence then, which are the same in every process, as the subnet
    is; all of them get the average over all batches, the same bits.

    Raises:
        ValueError: if `batches` is empty.
    """
    subnet.eval()
    norms = track_statistics(subnet)
    if not norms:
        return subnet
    per_channel: dict[nn.Module, float] = {}
    watches = [norm.register_forward_pre_hook(_watch(per_channel)) for norm in norms]
    means, variances = _statistics(norms)
    mean, var = ([torch.zeros_like(values) for values in group] for group in (means, variances))
    for norm in norms:
        norm.momentum = 1.0  # running statistics are then those of the last batch
        norm.train()
    count = 0
    for images in batches if ranks.world == 1 else ranks.part(cast(Sequence[Tensor], batches)):
        subnet(images)
        count += len(images)
        weight = len(images) / count
        biased = [(per_channel[norm] - 1) / per_channel[norm] for norm in norms]  # the layer's own is unbiased
        torch._foreach_lerp_(mean, means, weight)  # all norms at once: one launch on a GPU instead of one for each
        torch._foreach_lerp_(var, torch._foreach_mul(variances, biased), weight)
    for watch in watches:
        watch.remove()
    count = count if ranks.world == 1 else _join(ranks, norms, [*mean, *var], count)
    if not count:
        raise ValueError("calibration needs at least one batch")
    torch._foreach_copy_(means, mean)
    torch._foreach_copy_(variances, var)
    for norm in norms:
        norm.momentum = 0.1
    return subnet.eval()


def _join(ranks: Ranks, norms: Sequence[nn.BatchNorm2d], averages: list[Tensor], count: int) -> int:
    """Make averages over `count` images of this process those over all of them; returns how many these are."""
    counts = ranks.gather([count, *(int(norm.num_batches_tracked or 0) for norm in norms[:1])])
    total, batches = (sum(numbers) for numbers in zip(*counts, strict=True))
    torch._foreach_mul_(averages, count / max(total, 1))
    sum_over(ranks, averages)
    for norm in norms:
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.fill_(batches)
    return int(total)


def _statistics(norms: Sequence[nn.BatchNorm2d]) -> tuple[list[Tensor], list[Tensor]]:
    """The running means and variances themselves."""
    means = [norm.running_mean for norm in norms if norm.running_mean is not None]
    variances = [norm.running_var for norm in norms if norm.running_var is not None]
    assert len(means) == len(variances) == len(norms)
    return means, variances


def _watch(per_channel: dict[nn.Module, float]) -> Callable[[nn.Module, tuple[Tensor]], None]:
    """A hook that notes how many values each channel of a norm's input has."""

    def note(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        per_channel[norm] = inputs[0].numel() / inputs[0].shape[1]

    return note
