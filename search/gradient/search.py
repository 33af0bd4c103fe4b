"""`algorithm=tangle`, `darts`, `drnas`, `gdas`, `snas`, `proxyless`, `rarts`: what a gradient-based search consists of.

A method is a choice of parts: the mix (how probabilities are drawn), the update (how weights and architecture
parameters take turns), the bound (how the budget enters the loss) and the selection (how one subnet comes out of it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from search.algorithm import at_least_one, share
from search.constraint import Budget
from search.gradient.bounds.base import Bound
from search.gradient.mixes.base import Mix
from search.gradient.select.base import Select
from search.gradient.updates.base import Update
from supernet.construct import construct
from supernet.errors import UserError
from supernet.layers.cell import Edge
from supernet.schedule import Schedule

TOGETHER, ALONE = 3e-4, 0.02  # rates of the architecture parameters, beside learning weights and without


@dataclass(frozen=True)
class GradientSearch:
    """The settings of a search; see `configs/algorithm/tangle.yaml` for the meaning of each.

    `optim` is a description, since the optimizer is made for each network.
    """

    mix: Mix
    update: Update
    select: Select
    bound: Bound
    optim: Mapping[str, Any]
    schedule: Schedule
    epochs: int
    name: str = "gradient"
    warmup_epochs: int = 0
    weights: Literal["auto", "train", "frozen"] = "auto"
    train_portion: float = 0.5
    arch_split: Literal["auto", "train", "search"] = "auto"
    arch_lr: float | Literal["auto"] = "auto"
    arch_betas: tuple[float, float] = (0.5, 0.999)
    arch_weight_decay: float = 0.0
    arch_every: int = 1
    clip_norm: float | None = 5.0
    dropout: float = 0.0
    label_smoothing: float = 0.0
    batch_size: int | None = None
    init: str | None = None
    candidates: int = 1
    partial_channels: int = 1
    arch_from: str | None = None

    def __post_init__(self) -> None:
        if self.epochs or self.arch_from is None:  # with parameters learned before, a selection alone makes sense
            at_least_one(epochs=self.epochs)
        at_least_one(arch_every=self.arch_every, candidates=self.candidates)
        at_least_one(partial_channels=self.partial_channels)
        share(dropout=self.dropout, label_smoothing=self.label_smoothing)
        if self.partial_channels > 1 and self.candidates > 1:
            raise ValueError(
                f"candidates={self.candidates} with partial_channels={self.partial_channels}: only a part of the "
                "weights is trained, so scores cannot tell candidates apart; set candidates=1"
            )
        if not 0 <= self.warmup_epochs < max(1, self.epochs):
            raise ValueError(f"warmup_epochs={self.warmup_epochs}: must be from 0 to below epochs={self.epochs}")
        if self.arch_lr != "auto" and not self.arch_lr > 0:
            raise ValueError(f"arch_lr={self.arch_lr}: must be positive, or auto")
        if not all(0 <= beta < 1 for beta in self.arch_betas) or self.arch_weight_decay < 0:
            raise ValueError(
                f"arch_betas={list(self.arch_betas)} must be from 0 to below 1, "
                f"arch_weight_decay={self.arch_weight_decay} must not be negative"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm={self.clip_norm}: must be positive, or null for no clipping")

    @staticmethod
    def of(described: Mapping[str, Any], budget: Budget) -> GradientSearch:
        """From the section `algorithm` of a configuration. Raises UserError for wrong settings."""
        parts = dict(described)
        for name in ("mix", "update", "select", "bound", "optim", "schedule"):
            if not isinstance(parts.get(name), Mapping) or "_target_" not in parts[name]:
                raise UserError(
                    f"algorithm.{name}={parts.get(name)}: expected a mapping with _target_; say algorithm/{name}=<file>"
                )
        bound = construct(parts["bound"], "algorithm.bound", windows=budget.windows)
        settings: GradientSearch = construct(parts, "algorithm", bound=bound, optim=parts["optim"])
        return settings

    def check_channels(self, net: nn.Module) -> None:
        """Raises UserError if there are no edges whose channels `partial_channels` divides."""
        part, edges = self.partial_channels, [module for module in net.modules() if isinstance(module, Edge)]
        if part == 1:
            return
        norms = (m for edge in edges for m in edge.modules() if isinstance(m, nn.BatchNorm2d))
        widths = sorted({norm.num_features for norm in norms})
        if not widths or any(width % (2 * part) for width in widths):
            found = f"cells of {widths} channels" if widths else "no cells"
            raise UserError(
                f"algorithm.partial_channels={part}: this space has {found}; it must divide half of each, or be 1"
            )

    @property
    def arch_decay(self) -> float:
        """Adam's weight decay of the architecture parameters; none where the mix has an anchor of its own."""
        return 0.0 if getattr(self.mix, "anchor", "none") != "none" else self.arch_weight_decay

    def arch_rate(self, learn_weights: bool) -> float:
        """The architecture parameters' learning rate; "auto": the published one, or a larger one for weights that stay.

        The published one is for tens of thousands of steps, in which the weights learn as well.
        """
        if self.arch_lr == "auto":
            return TOGETHER if learn_weights else ALONE
        return self.arch_lr

    def learns_weights(self, fresh: bool) -> bool:
        """Whether the weights are trained: "auto" trains initial ones, and leaves trained ones as they are.

        Raises:
            UserError: if initial weights would stay as they are.
        """
        if fresh and self.weights == "frozen":
            raise UserError("algorithm.weights=frozen: initial weights must learn; drop it, or give checkpoint=<run>")
        return fresh if self.weights == "auto" else self.weights == "train"
