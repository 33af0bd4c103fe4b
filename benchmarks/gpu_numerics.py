"""Section `numerics`: subnets, sandwich steps and mixtures on the device in fp32 against fp64 on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_report import Clock, Report, Setting, exact, relative
from supernet.build import build
from supernet.distill import SoftCrossEntropy
from supernet.mixture import Mixture
from supernet.net import Supernet
from supernet.samplers.base import Slot
from supernet.space import Arch
from supernet.step import accumulate

FAMILIES: dict[str, tuple[int, int]] = {  # sides of the images, px: in full, and quick
    "mbv3_tiny": (28, 16),
    "alphanet": (128, 32),
    "ofa_mbv3": (128, 64),
    "ofa_resnet50": (128, 64),
    "autoformer_tiny": (224, 32),
}
MIXED = ("mbv3_tiny", "alphanet", "autoformer_tiny")
BATCH = 8
BRANCH = 0.2  # scale of residual branches
# Relative errors of fp32; gradients jump where rounding crosses the kink of a ReLU. `SLACK` times the CPU's own error
# is allowed in any case, up to `MOST`.
LOGITS, GRADIENTS, SLACK, MOST = 1e-4, 1e-2, 4.0, 0.1

Run = Callable[[Supernet, Tensor, Tensor], Tensor]  # (network, images, targets) -> what is compared; adds gradients


@dataclass(frozen=True)
class Case:
    """A network on the CPU in fp64 and fp32 and on the device, with one batch of images."""

    name: str
    wide: Supernet
    plain: Supernet
    there: Supernet
    images: Tensor  # [B, C, S, S], fp64
    targets: Tensor  # [B]

    def errors(self, run: Run, autocast: bool = False) -> dict[str, float]:
        """Relative errors of values and gradients: "logits", "gradients" on the device; "cpu ..." on the CPU."""
        reference = _outcome(self.wide, run, self.images, self.targets)
        device = next(self.there.parameters()).device
        images = self.images.float().to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            found = _outcome(self.there, run, images, self.targets.to(device))
        errors = dict(zip(("logits", "gradients"), map(relative, found, reference), strict=True))
        if not autocast and device.type != "cpu":
            own = _outcome(self.plain, run, self.images.float(), self.targets)
            errors |= dict(zip(("cpu logits", "cpu gradients"), map(relative, own, reference), strict=True))
        return errors


def run(setting: Setting, report: Report, clock: Clock) -> None:
    """All families, the cheap ones first."""
    for name, sides in FAMILIES.items():
        if setting.quick and name not in MIXED:
            continue
        if clock.spent(3.0):
            report.add(name, "left out: no time")
            continue
        with exact():
            check_family(
                make_case(name, sides[setting.quick], setting.device), report, clock, 1 if setting.quick else 2
            )


def make_case(name: str, side: int, device: torch.device, classes: int = 10) -> Case:
    """Random weights and images, the same in every run."""
    torch.manual_seed(0)
    plain = build(name, num_classes=classes, resolution=[side]).train()
    with torch.no_grad():  # weak branches: otherwise depth amplifies rounding, and mistakes would hide behind it
        for module in plain.modules():
            norm = getattr(module, "last_norm", None)
            if isinstance(norm, torch.nn.BatchNorm2d) and norm.affine:
                norm.weight.fill_(BRANCH)
    images = torch.randn(BATCH, 3, side, side, dtype=torch.float64)
    targets = torch.arange(BATCH) % classes
    return Case(name, copy.deepcopy(plain).double(), plain, copy.deepcopy(plain).to(device), images, targets)


def check_family(case: Case, report: Report, clock: Clock, num_random: int = 2) -> None:
    """Subnets; and while there is time, a sandwich step, a mixture, extraction, bf16."""
    space = case.plain.space
    drawn = space.sample(np.random.default_rng(0), n=num_random)
    archs = [space.largest(), space.smallest(), *drawn]
    worst: dict[str, float] = {}
    for arch in archs:
        for key, value in case.errors(_subnet(arch)).items():
            worst[key] = max(worst.get(key, 0.0), value)
    _judge(report, f"{case.name}: {len(archs)} subnets", worst)
    if clock.spent():
        report.add(case.name, "the rest left out: no time")
        return
    _judge(report, f"{case.name}: sandwich step", case.errors(_sandwich(archs)))
    if case.name in MIXED:
        _judge(report, f"{case.name}: mixture", case.errors(_mixture(case.plain)))
    same, error = extracted(case, drawn[0])
    how = "bit for bit" if same else f"to {error:.1e}"
    report.add(f"{case.name}: net(x, arch) and extract(arch)(x)", f"equal {how}", f"{LOGITS:.0e}", error <= LOGITS)
    bf16 = case.errors(_subnet(space.largest()), autocast=True)
    finite = all(np.isfinite(value) for value in bf16.values())
    report.add(f"{case.name}: largest in bf16", _shown(bf16), "finite", finite, **{f"{case.name} bf16": bf16})


def extracted(case: Case, arch: Arch) -> tuple[bool, float]:
    """Whether the extracted subnet gives the very logits of the supernet on the device; and the relative error."""
    device = next(case.there.parameters()).device
    images = case.images.float().to(device)
    with torch.no_grad():
        inside, outside = case.there(images, arch), case.there.extract(arch)(images)
    return torch.equal(inside, outside), relative(outside, inside)


def _outcome(net: Supernet, run: Run, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What `run` returns and all gradients in one vector, fp64 on the CPU."""
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    values = run(net, images, targets)
    gradients = [p.grad.double().cpu().flatten() for p in net.parameters() if p.grad is not None]
    return values.detach().double().cpu(), torch.cat(gradients)


def _subnet(arch: Arch) -> Run:
    def run(net: Supernet, images: Tensor, targets: Tensor) -> Tensor:
        logits = net(images, arch)
        _label_loss(logits, targets).mean().backward()
        return logits

    return run


def _sandwich(archs: list[Arch]) -> Run:
    largest, smallest, *others = archs
    slots = [Slot(largest, "largest"), *(Slot(arch, "random") for arch in others), Slot(smallest, "smallest")]

    def run(net: Supernet, images: Tensor, targets: Tensor) -> Tensor:
        return torch.stack(accumulate(net, images, targets, slots, _label_loss, SoftCrossEntropy()))

    return run


def _mixture(net: Supernet) -> Run:
    """All options of every gene; the gradients of their probabilities are part of what is compared."""
    rng = torch.Generator().manual_seed(0)
    logits = [torch.randn(len(gene.options), generator=rng, dtype=torch.float64) for gene in net.space.genes]

    def run(net: Supernet, images: Tensor, targets: Tensor) -> Tensor:
        probs = [vector.softmax(0).to(images).requires_grad_() for vector in logits]
        found = net(images, Mixture.of(net.space, probs))
        _label_loss(found, targets).mean().backward()
        gradients: list[Any] = [p.grad.flatten() for p in probs if p.grad is not None]
        return torch.cat([found.flatten(), *gradients])

    return run


def _label_loss(logits: Tensor, targets: Tensor) -> Tensor:
    loss = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(loss, targets, reduction="none")


def _judge(report: Report, name: str, errors: dict[str, float]) -> None:
    limits = {"logits": LOGITS, "gradients": GRADIENTS}
    allowed = {key: max(limit, min(SLACK * errors.get(f"cpu {key}", 0.0), MOST)) for key, limit in limits.items()}
    inside = all(errors[key] <= allowed[key] for key in limits)
    target = f"{LOGITS:.0e}, {GRADIENTS:.0e}, or {SLACK:g} x the CPU's"
    report.add(f"{name}, fp32 against fp64", _shown(errors), target, inside, **{name: errors})


def _shown(errors: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.1e}" for key, value in errors.items())
