"""Problems small enough to be solved by hand or differentiated twice: what an update is tested on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn


class Losses(Protocol):
    """Functions of the weights of one network, of the architecture parameters, and of the draw, 0-d."""

    def train(self, weights: Sequence[Tensor], arch: Sequence[Tensor], draw: Tensor) -> Tensor: ...

    def val(self, weights: Sequence[Tensor], arch: Sequence[Tensor], draw: Tensor) -> Tensor: ...


class Scalars:
    """The two-dimensional model of the DARTS paper: L_train = (w - a)^2, L_val = a w - 2 a + 1; optimum w = a = 1."""

    def train(self, weights: Sequence[Tensor], arch: Sequence[Tensor], draw: Tensor) -> Tensor:
        return (weights[0] - arch[0]) ** 2

    def val(self, weights: Sequence[Tensor], arch: Sequence[Tensor], draw: Tensor) -> Tensor:
        return arch[0] * weights[0] - 2 * arch[0] + 1


class Drawn(Scalars):
    """The same, with a training loss (w - s a)^2 in which s is drawn anew, from [1, 2), for every pass."""

    def train(self, weights: Sequence[Tensor], arch: Sequence[Tensor], draw: Tensor) -> Tensor:
        return (weights[0] - draw * arch[0]) ** 2


class Mlp:
    """Two layers whose hidden units are gated by softmax(a); other images for each of the two losses."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._images = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
        self._targets = torch.randn(2, 6, 2, generator=generator, dtype=torch.float64)
        shapes = ((5, 4), (5,), (2, 5))
        self.weights = [torch.randn(shape, generator=generator, dtype=torch.float64) / 2 for shape in shapes]
        self.arch = [torch.randn(5, generator=generator, dtype=torch.float64)]

    def _loss(self, which: int, weights: Sequence[Tensor], arch: Sequence[Tensor]) -> Tensor:
        hidden = torch.tanh(self._images[which] @ weights[0].T + weights[1]) * arch[0].softmax(0)
        return ((hidden @ weights[2].T - self._targets[which]) ** 2).sum()

    def train(self, weights: Sequence[Tensor], arch: Sequence[Tensor], draw: Tensor) -> Tensor:
        return self._loss(0, weights, arch)

    def val(self, weights: Sequence[Tensor], arch: Sequence[Tensor], draw: Tensor) -> Tensor:
        return self._loss(1, weights, arch)


class ToyProblem:
    """A `Problem` over given losses, with plain gradient descent unless optimizers are given.

    Attributes:
        passes: every forward pass so far: its loss, its network, whether it was for the weights alone.
        terms: coefficient of the architecture parameters' own loss, terms · sum(a).
    """

    def __init__(self, losses: Losses, copies: Sequence[Sequence[Tensor]], arch: Sequence[Tensor]) -> None:
        self._losses = losses
        self._copies = [[nn.Parameter(w.clone()) for w in weights] for weights in copies]
        self._arch = [nn.Parameter(a.clone()) for a in arch]
        self._optimizers = [torch.optim.SGD(weights, lr=0.1) for weights in self._copies]
        self._arch_optimizer = torch.optim.SGD(self._arch, lr=0.1)
        self._generator = torch.Generator().manual_seed(0)
        self._held: Tensor | None = None
        self.passes: list[tuple[str, int, bool]] = []
        self.terms = 0.0

    def optimizers(self, *weight_optimizers: torch.optim.Optimizer, arch: float) -> None:
        """Other optimizers of the weights, one per network, and another rate of the architecture parameters."""
        self._optimizers = list(weight_optimizers)  # type: ignore[arg-type]
        self._arch_optimizer = torch.optim.SGD(self._arch, lr=arch)

    def rates(self, weights: Sequence[float], arch: float) -> None:
        """Plain gradient descent with these learning rates."""
        pairs = zip(self._copies, weights, strict=True)
        self.optimizers(*(torch.optim.SGD(own, lr=rate) for own, rate in pairs), arch=arch)

    def values(self) -> list[float]:
        """All weights of all networks, then all architecture parameters."""
        parameters = [*(w for weights in self._copies for w in weights), *self._arch]
        return [x for p in parameters for x in p.detach().flatten().tolist()]

    def _draw(self) -> Tensor:
        if self._held is not None:
            self._generator.set_state(self._held)
        return 1 + torch.rand((), generator=self._generator, dtype=torch.float64)

    def train_loss(self, copy: int = 0, for_weights: bool = False) -> Tensor:
        self.passes.append(("train", copy, for_weights))
        return self._losses.train(self._copies[copy], self._arch, self._draw())

    def val_loss(self, copy: int = 0, for_weights: bool = False) -> Tensor:
        self.passes.append(("val", copy, for_weights))
        return self._losses.val(self._copies[copy], self._arch, self._draw())

    @contextmanager
    def same_draw(self) -> Iterator[None]:
        self._held = self._generator.get_state()
        try:
            yield
        finally:
            self._held = None

    def arch_terms(self) -> Tensor:
        if self.terms == 0:
            return torch.zeros((), dtype=torch.float64)
        return self.terms * torch.stack([a.sum() for a in self._arch]).sum()

    def weights(self, copy: int = 0) -> list[nn.Parameter]:
        return self._copies[copy]

    def arch(self) -> list[nn.Parameter]:
        return self._arch

    def weight_optimizer(self, copy: int = 0) -> torch.optim.Optimizer:
        return self._optimizers[copy]

    def step_weights(self, copy: int = 0) -> None:
        self._optimizers[copy].step()
        self._optimizers[copy].zero_grad()

    def step_arch(self) -> None:
        self._arch_optimizer.step()
        self._arch_optimizer.zero_grad()


def scalars(weights: Sequence[float], arch: float, losses: Losses | None = None) -> ToyProblem:
    """The two-dimensional model with one network per given weight."""
    start = [[torch.tensor(w, dtype=torch.float64)] for w in weights]
    return ToyProblem(losses or Scalars(), start, [torch.tensor(arch, dtype=torch.float64)])


def mlp(seed: int, copies: int = 1) -> ToyProblem:
    """The two layers, all networks with the same weights."""
    losses = Mlp(seed)
    return ToyProblem(losses, [losses.weights] * copies, losses.arch)
