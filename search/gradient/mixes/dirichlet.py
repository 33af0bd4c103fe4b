"""Dirichlet: probabilities are drawn around their mean (Chen et al. 2021, DrNAS)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from search.gradient.mixes.base import Draw
from search.gradient.mixes.rows import Rows, exponential

SMALL = 0.1  # below it a gamma variable is drawn by its logarithm: the variable itself can underflow to 0
FLOOR = 1e-8  # least concentration drawn from: by far nothing but one-hot draws, and their logarithms are finite


class Dirichlet:
    """The probabilities are a reparameterised draw from Dirichlet(elu(logits) + 1) (DrNAS, section 3.1).

    Args:
        anchor: keeps the concentrations near 1, the uniform Dirichlet (section 3.2). "kl": weight times the sum of
            KL(Dir(elu(logits) + 1) || Dir(1)) over the genes. "l2": weight / 2 times the sum of squared logits, whose
            gradient is that of Adam's `weight_decay=weight`, which is how the published code does it: with an
            optimizer that has a weight decay of its own, one of the two must be zero. "none": no regulariser.
        weight: of the anchor; the published code has 1e-3 for both.

    Raises:
        ValueError: if `weight` is negative.
    """

    def __init__(self, anchor: Literal["l2", "kl", "none"] = "l2", weight: float = 1e-3) -> None:
        if weight < 0:
            raise ValueError(f"weight={weight:g}: expected 0 or more")
        self.anchor, self.weight = anchor, weight

    def draw(self, logits: Sequence[Tensor], generator: torch.Generator, progress: float, for_weights: bool) -> Draw:
        """All options are run."""
        rows = Rows.of(logits)
        logs = log_gamma(concentrations(torch.cat(tuple(logits))).clamp_min(FLOOR), rows, generator)
        return Draw(rows.split(rows.pad(logs, -torch.inf).softmax(dim=1)), rows.everything())

    def mean(self, logits: Sequence[Tensor]) -> list[Tensor]:
        """Concentrations over their sum."""
        rows = Rows.of(logits)
        matrix = rows.pad(concentrations(torch.cat(tuple(logits))), 0.0)
        return list(rows.split(matrix / matrix.sum(1, keepdim=True)))

    def penalty(self, logits: Sequence[Tensor]) -> Tensor:
        """The anchor, 0-d; it alone pulls the logits back."""
        flat = torch.cat(tuple(logits))
        if self.anchor == "l2":
            return self.weight / 2 * flat.square().sum()
        if self.anchor == "kl":
            return self.weight * divergence(flat, Rows.of(logits)).sum()
        return torch.zeros((), dtype=torch.float64)


def concentrations(logits: Tensor) -> Tensor:
    """elu(logits) + 1; written so that a very negative logit does not round to 0."""
    # exp sees no positive logit: the branch that is not taken would overflow, and its gradient be NaN.
    return torch.where(logits < 0, logits.clamp_max(0.0).exp(), logits + 1)


def log_gamma(concentration: Tensor, rows: Rows, generator: torch.Generator) -> Tensor:
    """Logarithms of Gamma(concentration, 1) variables [sum of options], reparameterised.

    A small concentration a uses Gamma(a) = Gamma(a + 1) U^(1/a) with U uniform (Marsaglia & Tsang 2000, section 6),
    in logarithms: normalised by a softmax it gives a Dirichlet draw at any size.
    """
    small = concentration < SMALL
    gamma = torch._standard_gamma(torch.where(small, concentration + 1, concentration), generator=generator)
    noise = exponential(rows, generator, concentration.dtype)  # -log U
    # The branch that is not taken is divided by 1: no infinite gradient is multiplied by 0.
    return gamma.log() - torch.where(small, noise / torch.where(small, concentration, 1.0), 0.0)


def divergence(logits: Tensor, rows: Rows) -> Tensor:
    """KL(Dir(elu(logits) + 1) || Dir(1)) of every gene [genes], in nats; `logits` [sum of options].

    As torch.distributions.kl has it, for genes of different lengths at once.
    """
    flat = concentrations(logits).clamp_min(FLOOR)
    total = rows.pad(flat, 0.0).sum(1, keepdim=True)
    per_option = rows.pad(-flat.lgamma() + (flat - 1) * flat.digamma(), 0.0)
    excess = rows.pad(flat - 1, 0.0)
    sizes = torch.tensor(rows.sizes, dtype=logits.dtype)
    return total[:, 0].lgamma() - sizes.lgamma() + (per_option - excess * total.digamma()).sum(1)
