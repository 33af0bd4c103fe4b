"""The losses of one step, as functions of the present weights and architecture parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search.gradient.mixes.base import AfterStep, Draw
from search.gradient.parameters import to
from supernet.data.base import Batch, generator, resize
from supernet.distill import at_least_fp32
from supernet.mixture import Mixture

if TYPE_CHECKING:
    from search.gradient.learner import Learner

BASELINE_RATE = 0.05  # of the mean loss that resolutions are compared with


class Step:
    """One step of a `Learner`; what an update works with, see `search.gradient.updates.base.Problem`."""

    def __init__(self, learner: Learner, number: int, train: Batch, arch: Batch, lr: float) -> None:
        self.learner, self.number = learner, number
        self._train, self._arch = train, arch
        self._passes, self._held = 0, False
        self._drawn: Draw | None = None  # what the architecture parameters learn from
        self._seen: list[Tensor] = []  # losses of passes whose resolution was drawn
        for optimizer in learner.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr

    def train_loss(self, copy: int = 0, for_weights: bool = False) -> Tensor:
        return self._loss(copy, self._train, for_weights)

    def val_loss(self, copy: int = 0, for_weights: bool = False) -> Tensor:
        return self._loss(copy, self._arch, for_weights)

    @contextmanager
    def same_draw(self) -> Iterator[None]:
        self._passes += 1
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def arch_terms(self) -> Tensor:
        learner = self.learner
        term = learner.settings.mix.penalty(learner.arch.logits())
        return term + learner.settings.bound.term(learner.expected())

    def weights(self, copy: int = 0) -> list[nn.Parameter]:
        return [parameter for parameter in self.learner.nets[copy].parameters() if parameter.requires_grad]

    def arch(self) -> list[nn.Parameter]:
        return [self.learner.arch.flat]

    def weight_optimizer(self, copy: int = 0) -> torch.optim.Optimizer:
        return self.learner.optimizers[copy]

    def step_weights(self, copy: int = 0) -> None:
        optimizer, limit = self.learner.optimizers[copy], self.learner.settings.clip_norm
        if limit is not None:
            nn.utils.clip_grad_norm_(self.weights(copy), limit)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    def step_arch(self) -> None:
        learner = self.learner
        before = [logits.detach().clone() for logits in learner.arch.logits()]
        learner.arch_optimizer.step()
        learner.arch_optimizer.zero_grad(set_to_none=True)
        if not learner.arch.flat.isfinite().all():  # on the CPU: waits for nothing
            raise learner.diverged("the architecture parameters")
        mix = learner.settings.mix
        if isinstance(mix, AfterStep) and self._drawn is not None:
            with torch.no_grad():
                mix.after_step(learner.arch.logits(), before, self._drawn)
        with torch.no_grad():
            learner.settings.bound.observe(learner.expected())

    def end(self) -> None:
        """Move the running mean of the loss, once all passes are over."""
        if self._seen:
            value, before = torch.stack(self._seen).mean(), self.learner.baseline
            self.learner.baseline = value if before is None else before + BASELINE_RATE * (value - before)

    # Internals -------------------------------------------------------------------------------------------------

    def _loss(self, copy: int, batch: Batch, for_weights: bool) -> Tensor:
        learner, settings = self.learner, self.learner.settings
        if not self._held:
            self._passes += 1
        random = generator(learner.seed, self.number, self._passes)
        seed = int(torch.randint(2**62, (), generator=random))
        draw, side_loss = self._draw(random, for_weights)
        if not for_weights:
            self._drawn = draw
        net = learner.nets[copy]
        probs = to(draw, batch.images.device, next(net.parameters()).dtype)
        if for_weights:  # the architecture parameters learn nothing, so a certain choice is the plain subnet
            probs = tuple(p.detach() for p in probs)
        mixture = Mixture(learner.space, probs, draw.support, settings.partial_channels)
        with _seeded(seed, batch.images.device):
            logits = net(resize(batch.images, mixture.resolution), mixture, dropout=settings.dropout)
        loss = F.cross_entropy(at_least_fp32(logits), batch.targets, label_smoothing=settings.label_smoothing)
        return loss if for_weights or side_loss is None else self._with_side(loss, side_loss)

    def _draw(self, random: torch.Generator, for_weights: bool) -> tuple[Draw, Tensor | None]:
        """The probabilities of a pass; and the log probability of its resolution, where there are several."""
        learner = self.learner
        logits = learner.arch.logits()
        draw = learner.settings.mix.draw(logits, random, learner.progress, for_weights)
        probs, support = list(draw.probs), list(draw.support)
        if draw.drawn is not None and not for_weights:
            for gene in learner.operations:
                support[gene] = (draw.drawn[gene],)
        for gene, option in learner.frozen.items():
            probs[gene] = F.one_hot(torch.tensor(option), len(probs[gene])).to(probs[gene].dtype)
            support[gene] = (option,)
        log_p = None
        side = learner.side
        if side is not None and side not in learner.frozen:
            p = learner.settings.mix.mean(logits)[side]
            chosen = int(torch.multinomial(p.detach(), 1, generator=random))
            support[side] = (chosen,)
            log_p = p[chosen].log() if len(p) > 1 else None
        return replace(draw, probs=tuple(probs), support=tuple(support)), log_p

    def _with_side(self, loss: Tensor, log_p: Tensor) -> Tensor:
        """A pass has one resolution, drawn; its logits learn by the score function, less a running mean (REINFORCE).

        The mean is that before the step: one that knew a pass of the same draw would bias the gradient. Without any
        yet, nothing is learned.
        """
        value, baseline = loss.detach(), self.learner.baseline
        self._seen.append(value)
        if baseline is None:
            return loss
        score = (value - baseline) * log_p.to(loss.device, loss.dtype)
        return loss + score - score.detach()


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout's random numbers follow from `seed`; the global generators are put back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def frozen_probs(probs: Sequence[Tensor], frozen: dict[int, int]) -> list[Tensor]:
    """Probabilities [options] of every gene, those of `frozen` certain."""
    out = list(probs)
    for gene, option in frozen.items():
        out[gene] = F.one_hot(torch.tensor(option), len(out[gene])).to(out[gene].dtype)
    return out
