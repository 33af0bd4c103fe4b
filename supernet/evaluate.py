"""Accuracy of one network; and of a subnet, always with statistics of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.calibrate import calibrate
from supernet.distributed import ALONE, Ranks
from supernet.passes import PLAIN, Passes
from supernet.space import Arch

if TYPE_CHECKING:
    from supernet.data import Data
    from supernet.sharing.members import AnySupernet


class Metrics(NamedTuple):
    """top1 in percent, mean cross-entropy in nats, number of images."""

    top1: float
    loss: float
    images: int


class Stopped(NamedTuple):
    """A pass that ended early: top-1 over all images lies from `low` to `high`, percent."""

    low: float
    high: float
    images: int


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], passes: Passes = PLAIN, ranks: Ranks = ALONE
) -> Metrics:
    """Top-1 and loss over (images [B, C, S, S], targets [B]) in eval mode; the mode is restored.

    Each of `ranks` takes its share of `batches`, which are the same in every process, as the network is; all of them
    get the numbers of all images.

    Raises:
        ValueError: if there are no images.
    """
    if not batches:
        raise ValueError("evaluation needs at least one image")
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    correct, loss = torch.zeros((), device=device), torch.zeros((), device=device)
    count = 0
    with passes.precision(device):
        for images, targets in ranks.part(batches):  # sums stay on the device: one synchronisation at the end
            right, summed = score(passes.logits(model, images), targets)
            correct += right
            loss += summed
            count += len(targets)
    model.train(was_training)
    if ranks.world > 1:
        sums = ranks.gather([correct.item(), loss.item(), count])  # counts are whole numbers: exact
        right, nats, count = (sum(values) for values in zip(*sums, strict=True))
        return Metrics(100.0 * right / count, nats / count, count)
    return Metrics(100.0 * correct.item() / count, loss.item() / count, count)


@torch.no_grad()
def evaluate_unless_below(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    total: int,
    stop_below: float,
    passes: Passes = PLAIN,
) -> Metrics | Stopped:
    """As `evaluate`, but the pass ends as soon as top-1 (percent) must end below `stop_below`.

    `total` is the number of images in `batches`. The bound is exact: every image not seen yet is taken as right. A pass
    that is not stopped gives the numbers of `evaluate`, bit for bit. It waits for the device after every batch.

    Raises:
        ValueError: if there are no images.
    """
    if not batches:
        raise ValueError("evaluation needs at least one image")
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    loss = torch.zeros((), device=device)
    correct = seen = 0
    with passes.precision(device):
        for images, targets in batches:
            right, summed = score(passes.logits(model, images), targets)
            correct += int(right)
            loss += summed
            seen += len(targets)
            stopped = beyond(correct, seen, total, stop_below)
            if stopped is not None:
                model.train(was_training)
                return stopped
    model.train(was_training)
    return Metrics(100.0 * correct / total, loss.item() / total, total)


def score(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """How many images of a batch are right, and their summed cross-entropy; both stay on the device."""
    return (logits.argmax(1) == targets).sum(), F.cross_entropy(logits, targets, reduction="sum")


def beyond(correct: int, seen: int, total: int, stop_below: float) -> Stopped | None:
    """What is known of a pass over `total` images if top-1 must end below `stop_below`, percent; else None."""
    high = 100.0 * (correct + total - seen) / total
    return Stopped(100.0 * correct / total, high, seen) if high < stop_below and seen < total else None


def calibrated_subnet(
    net: AnySupernet,
    arch: Arch,
    data: Data | None,
    calibration_images: int,
    passes: Passes = PLAIN,
    ranks: Ranks = ALONE,
) -> nn.Module:
    """extract -> calibrate: the one way from the supernet to a network that can be scored or shipped.

    With 0 calibration images (or no data) it keeps its slice of the statistics that the supernet holds. `ranks` share
    the images, and all get the same network.
    """
    if not calibration_images or data is None:
        return net.extract(arch).eval()
    subnet = net.extract(arch)
    with passes.precision(next(subnet.parameters()).device):
        return calibrate(subnet, data.calibration(net.space.resolution(arch), calibration_images), ranks)


def evaluate_subnet(
    net: AnySupernet, arch: Arch, data: Data, split: str, calibration_images: int, passes: Passes = PLAIN
) -> Metrics:
    """extract -> calibrate -> evaluate on one split. The supernet is left as it was."""
    subnet = calibrated_subnet(net, arch, data, calibration_images, passes)
    return evaluate(subnet, data.evaluation(split, net.space.resolution(arch)), passes)


def evaluate_subnet_unless_below(
    net: AnySupernet,
    arch: Arch,
    data: Data,
    split: str,
    calibration_images: int,
    stop_below: float,
    passes: Passes = PLAIN,
) -> Metrics | Stopped:
    """`evaluate_subnet`, whose pass over the split ends once top-1 (percent) must end below `stop_below`."""
    subnet = calibrated_subnet(net, arch, data, calibration_images, passes)
    batches = data.evaluation(split, net.space.resolution(arch))
    return evaluate_unless_below(subnet, batches, data.sizes[split], stop_below, passes)
