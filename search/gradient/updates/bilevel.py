"""Bilevel optimisation: the architecture parameters learn on other images than the weights.

Liu et al., "DARTS: Differentiable Architecture Search" (ICLR 2019), section 2.3 and algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from search.gradient.updates.base import Problem
from search.gradient.updates.gradients import accumulate


class FirstOrder:
    """Architecture parameters learn from the validation loss of the present weights; then the weights learn.

    Two forward passes a step. DARTS with xi = 0, and the rule of DrNAS, GDAS and TangleNAS.
    """

    copies = 1

    def step(self, problem: Problem, learn_weights: bool, learn_arch: bool) -> dict[str, Tensor]:
        """See `Update.step`."""
        losses = {}
        if learn_arch:
            losses["val"] = learn_architecture(problem)
        if learn_weights:
            losses["train"] = learn_from_training(problem)
        return losses


class SecondOrder:
    """Architecture parameters learn from the validation loss of the weights that one training step leads to.

    The step is w' = w - xi (d L_train / dw + momentum buffer + decay w), and the gradient d L_val(w', a) / da minus
    xi d2 L_train / (da dw) d L_val / dw'. The product of the second term is a central difference (equation 8), so
    nothing is differentiated twice. The four forward passes of it use the same random numbers (`Problem.same_draw`):
    a difference between two draws would drown the one that is sought. Then the weights, put back bit for bit, learn.
    Five forward passes a step, and twice the weights in memory besides.

    Where weights do not learn, as in a trained supernet that stays, no training step follows: first order then.
    Nesterov's look-ahead and the scaling of adaptive optimizers are not part of w'.

    Args:
        xi: learning rate of the virtual step; null: the weight optimizer's own, of each parameter group.
        epsilon: length of the difference in weight space, of each of the two sides.
    """

    copies = 1

    def __init__(self, xi: float | None = None, epsilon: float = 0.01) -> None:
        if xi is not None and not (xi >= 0 and math.isfinite(xi)):
            raise ValueError(
                f"xi={xi}: the virtual step's learning rate must be 0 or more, or null for the weights' own"
            )
        if not (epsilon > 0 and math.isfinite(epsilon)):
            raise ValueError(f"epsilon={epsilon}: the length of the finite difference must be above 0 (DARTS: 0.01)")
        self.xi = xi
        self.epsilon = epsilon

    def step(self, problem: Problem, learn_weights: bool, learn_arch: bool) -> dict[str, Tensor]:
        """See `Update.step`. "val" is the loss after the virtual step."""
        losses = {}
        if learn_arch:
            unroll = learn_weights and self.xi != 0
            losses["val"] = self._learn_architecture(problem) if unroll else learn_architecture(problem)
        if learn_weights:
            losses["train"] = learn_from_training(problem)
        return losses

    def _learn_architecture(self, problem: Problem) -> Tensor:
        accumulate(problem.arch_terms(), problem.arch())
        loss, gradients = _unrolled(problem, _Trained(problem.weight_optimizer(), self.xi), self.epsilon)
        for parameter, gradient in zip(problem.arch(), gradients, strict=True):
            if parameter.requires_grad:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        problem.step_arch()
        return loss


def learn_architecture(problem: Problem) -> Tensor:
    """One step of the architecture parameters on the validation loss and their own terms; returns the loss."""
    loss = problem.val_loss()
    accumulate(loss, problem.arch())
    accumulate(problem.arch_terms(), problem.arch())
    problem.step_arch()
    return loss.detach()


def learn_from_training(problem: Problem) -> Tensor:
    """One step of the weights on the training loss; returns the loss."""
    loss = problem.train_loss(for_weights=True)
    accumulate(loss, problem.weights())
    problem.step_weights()
    return loss.detach()


class _Trained:
    """The weights that an optimizer trains, in its order, with the settings of their groups, one entry per weight.

    Attributes:
        detached: the same memory as `weights`, out of autograd's sight.
        buffers: momentum so far; None before the first step and for optimizers without.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, xi: float | None) -> None:
        pairs = [(group, weight) for group in optimizer.param_groups for weight in group["params"]]
        pairs = [(group, weight) for group, weight in pairs if weight.requires_grad]
        self.weights: list[nn.Parameter] = [weight for _, weight in pairs]
        self.detached = [weight.detach() for weight in self.weights]
        self.rates = [float(group["lr"]) if xi is None else xi for group, _ in pairs]
        self.decays = [float(group.get("weight_decay", 0.0)) for group, _ in pairs]
        self.momenta = [float(group.get("momentum", 0.0)) for group, _ in pairs]
        states = [optimizer.state.get(weight, {}) for weight in self.weights]
        self.buffers: list[Tensor | None] = [state.get("momentum_buffer") for state in states]


def _virtual_steps(trained: _Trained, gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What training would subtract: rate · (gradient + decay · weight + momentum · buffer)."""
    steps = torch._foreach_add(list(gradients), torch._foreach_mul(trained.detached, trained.decays))
    moving = [i for i, buffer in enumerate(trained.buffers) if buffer is not None]
    if moving:
        buffers = [buffer for buffer in trained.buffers if buffer is not None]
        pushes = torch._foreach_mul(buffers, [trained.momenta[i] for i in moving])
        torch._foreach_add_([steps[i] for i in moving], pushes)
    return torch._foreach_mul(steps, trained.rates)


def _unrolled(problem: Problem, trained: _Trained, epsilon: float) -> tuple[Tensor, list[Tensor]]:
    """Validation loss after the virtual step, and its gradients for `problem.arch()`. The weights end as they began."""
    weights, arch = trained.weights, problem.arch()
    kept = [value.clone() for value in trained.detached]
    try:
        with problem.same_draw():
            steps = _virtual_steps(trained, _gradients(problem.train_loss(), weights))
            _place(trained, kept, torch._foreach_neg(steps))
            loss = problem.val_loss()
            gradients = _gradients(loss, [*weights, *arch])
            # The rates are part of the direction, not in front of the product: groups may have their own.
            direction = torch._foreach_mul(gradients[: len(weights)], trained.rates)
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(direction)))
            side = epsilon / norm.clamp_min(torch.finfo(norm.dtype).tiny)
            offset = torch._foreach_mul(direction, side)
            _place(trained, kept, offset)
            above = _gradients(problem.train_loss(), arch)
            _place(trained, kept, torch._foreach_neg(offset))
            below = _gradients(problem.train_loss(), arch)
    finally:
        torch._foreach_copy_(trained.detached, kept)
    ends = zip(gradients[len(weights) :], above, below, strict=True)
    width = 2.0 * side
    return loss.detach(), [direct - (a - b) / width.to(direct.device) for direct, a, b in ends]


def _place(trained: _Trained, start: list[Tensor], offset: tuple[Tensor, ...]) -> None:
    """Set the weights to start + offset."""
    torch._foreach_copy_(trained.detached, start)
    torch._foreach_add_(trained.detached, offset)


def _gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Zeros for what the loss does not depend on. Every `.grad` stays as it is."""
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    if not (learning and loss.requires_grad):
        return [torch.zeros_like(parameter) for parameter in parameters]
    found = iter(torch.autograd.grad(loss, learning, allow_unused=True, materialize_grads=True))
    return [next(found) if parameter.requires_grad else torch.zeros_like(parameter) for parameter in parameters]
