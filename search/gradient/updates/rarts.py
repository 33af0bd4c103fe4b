"""RARTS: a single-level problem over two sets of weights, which are tied, and shared architecture parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from search.gradient.updates.base import Problem
from search.gradient.updates.gradients import accumulate


class Rarts:
    """Descends L = L_val(y, a) + lam L_train(w, a) + beta/2 ||y - w||^2 in w, then in y, then in a.

    Every step uses the newest values of the other two (Gauss-Seidel). w are the weights of network 0, y those of
    network 1. Four forward passes a step, first derivatives only; the two of the architecture step share their
    random numbers. Batch-norm statistics belong to each network and are not tied. Without learning weights, a
    descends both losses; without learning a, w and y descend as before.

    The tie adds beta to the curvature: keep the weights' learning rate below 2 / (beta + curvature of the loss) for
    plain descent. With momentum m, the newest w pulls y along, so the mean of both feels momentum m + rate * beta / 2:
    keep that well below 1 (rate 0.025, m 0.9 and beta 10 do not train). Gradients are clipped, if at all, with the tie
    in them.

    Source: Xue, Qi, Xin, "RARTS: An Efficient First-Order Relaxed Architecture Search Method" (IEEE Access 2022;
    arXiv 2008.03901), by its abstract and a derivation of the steps. The sparsity of its width search is not included.

    Args:
        lam: weight of the training loss.
        beta: strength of the tie; 0: none.
    """

    copies = 2

    def __init__(self, lam: float = 10.0, beta: float = 10.0) -> None:
        if not (lam > 0 and math.isfinite(lam)):
            raise ValueError(f"lam={lam}: the weight of the training loss must be above 0 (of order 10)")
        if not (beta >= 0 and math.isfinite(beta)):
            raise ValueError(f"beta={beta}: the tie of the two networks must be 0 or more (of order 10)")
        self.lam = lam
        self.beta = beta

    def step(self, problem: Problem, learn_weights: bool, learn_arch: bool) -> dict[str, Tensor]:
        """See `Update.step`. "distance": ||w - y|| / ||w|| after a step of the weights."""
        losses = {}
        if learn_weights:
            losses["train"] = self._learn_weights(problem, 0, problem.train_loss(0, for_weights=True), self.lam)
            losses["val"] = self._learn_weights(problem, 1, problem.val_loss(1, for_weights=True), 1.0)
            losses["distance"] = distance(problem.weights(0), problem.weights(1))
        if learn_arch:
            losses = self._learn_architecture(problem) | losses
        return losses

    def _learn_weights(self, problem: Problem, copy: int, loss: Tensor, factor: float) -> Tensor:
        own = problem.weights(copy)
        accumulate(factor * loss, own)
        pull(own, problem.weights(1 - copy), self.beta)
        problem.step_weights(copy)
        return loss.detach()

    def _learn_architecture(self, problem: Problem) -> dict[str, Tensor]:
        arch = problem.arch()
        with problem.same_draw():
            train = problem.train_loss(0)
            accumulate(self.lam * train, arch)
            val = problem.val_loss(1)
            accumulate(val, arch)
        accumulate(problem.arch_terms(), arch)
        problem.step_arch()
        return {"train": train.detach(), "val": val.detach()}


@torch.no_grad()
def pull(weights: Sequence[nn.Parameter], others: Sequence[nn.Parameter], beta: float) -> None:
    """Add the gradient of beta/2 ||weights - others||^2 to the gradients of `weights`."""
    if beta == 0:
        return
    pairs = [(own, other) for own, other in zip(weights, others, strict=True) if own.requires_grad]
    for own, _ in pairs:
        if own.grad is None:  # unused in this pass, but tied all the same
            own.grad = torch.zeros_like(own)
    gaps = torch._foreach_sub([own for own, _ in pairs], [other for _, other in pairs])
    gradients = [own.grad for own, _ in pairs if own.grad is not None]
    torch._foreach_add_(gradients, gaps, alpha=beta)


@torch.no_grad()
def distance(weights: Sequence[nn.Parameter], others: Sequence[nn.Parameter]) -> Tensor:
    """||weights - others|| / ||weights||, over all parameters together; 0-d, on their device."""
    gaps = torch._foreach_sub([weight.detach() for weight in weights], [other.detach() for other in others])
    gap, norm = _norm(gaps), _norm(weights)
    return gap / norm.clamp_min(torch.finfo(norm.dtype).tiny)


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))
