"""Layers of the macro spaces: one layer out of several, and a classifier with hidden layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from supernet.layers.conv import ConvNormAct, linear
from supernet.layers.mbconv import MBConv
from supernet.layers.mixing import add
from supernet.specs import ConvSpec, MBConvSpec, MLPHeadSpec, Plan


class Alternatives(nn.ModuleDict):
    """The candidates of one layer, of which a subnet has one, or none where it skips the layer.

    Args:
        name: that of this module in the network; candidates are the plan's layers "<name>.<candidate>".
        specs: a convolution or an inverted residual block for each candidate.
    """

    def __init__(self, name: str, specs: dict[str, ConvSpec | MBConvSpec]) -> None:
        super().__init__(
            {key: MBConv(spec) if isinstance(spec, MBConvSpec) else ConvNormAct(spec) for key, spec in specs.items()}
        )
        self.names = [f"{name}.{key}" for key in specs]

    def forward(self, x: Tensor, plan: Plan | None = None, drop_path: float = 0.0) -> Tensor:
        """[B, C, S, S] -> [B, C', S', S'] through the candidates of `plan`; None: through what is there."""
        total: Tensor | None = None
        for name, candidate in zip(self.names, self.values(), strict=True):
            spec = plan.get(name) if plan else None
            if plan is None or spec is not None:
                out = candidate(x, spec, drop_path) if isinstance(candidate, MBConv) else candidate(x, spec)
                total = add(total, out, plan.weight([name]) if plan else 1.0)
        skipped = plan.weight(absent=self.names) if plan else float(not self.names)
        total = add(total, x, skipped)
        return x if total is None else total


class MLPHead(nn.Module):
    """Flatten -> (linear -> relu) for every hidden layer -> classifier: [B, C, S, S] -> [B, classes]."""

    def __init__(self, spec: MLPHeadSpec) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(layer.in_features, layer.out_features) for layer in spec.hidden)
        self.classifier = nn.Linear(spec.classifier.in_features, spec.classifier.out_features)

    def forward(self, x: Tensor, spec: MLPHeadSpec | None = None) -> Tensor:
        x = x.flatten(1)
        for i, layer in enumerate(self.hidden):
            assert isinstance(layer, nn.Linear)
            x = F.relu(linear(layer, x, spec.hidden[i] if spec else None))
        return linear(self.classifier, x, spec.classifier if spec else None)
