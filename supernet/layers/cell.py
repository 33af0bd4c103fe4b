"""Edges that run one of several operations, cells made of them, and what stands around cells.

A cell is a directed graph: every node is the sum of what the edges into it give. Which operation an edge runs is
said by the plan: the one operation of that edge that the plan has a spec for.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.layers.conv import ConvNormAct, batch_norm, linear
from supernet.layers.mixing import add
from supernet.layers.operations import OPERATIONS, ReluConv
from supernet.layers.partial import beside, thinned
from supernet.specs import FlatHeadSpec, JoinSpec, NormHeadSpec, Plan, ResidualSpec


class Edge(nn.ModuleDict):
    """The operations of one edge, "<edge>.<operation>" of a plan. Those that share weights are one."""

    def __init__(self, plan: Plan, name: str) -> None:
        specs = children(plan, name)
        super().__init__({key: OPERATIONS[type(spec)](spec) for key, spec in specs.items()})
        self.names = {key: f"{name}.{key}" for key in specs}

    def forward(self, x: Tensor, plan: Plan | None = None) -> Tensor | None:
        """The one operation that `plan` has, on x; None where it has none. Without a plan: the only one there is.

        Of a mixture, the sum over operations of their probability times what they give (DARTS, equation 2). Where it
        has partial channels, operations see only these, and the others go around them; see `supernet.layers.partial`.
        """
        part = plan.partial if plan else 1
        seen = x if part == 1 else x[:, : x.shape[1] // part]
        total: Tensor | None = None
        for key, operation in self.items():
            spec = plan.get(self.names[key]) if plan else None
            if plan is None or spec is not None:
                spec = spec if part == 1 else thinned(spec, part)
                total = add(total, operation(seen, spec), plan.weight([self.names[key]]) if plan else 1.0)
        return total if part == 1 or total is None else beside(x, total, part)


class Join(nn.Module):
    """The last nodes along the channels, then dropout: `count` times [B, C, S, S] -> [B, count * C, S, S]."""

    def __init__(self, spec: JoinSpec) -> None:
        super().__init__()
        self.count = spec.count

    def forward(self, nodes: list[Tensor], dropout: float = 0.0) -> Tensor:
        x = torch.cat(nodes[-self.count :], dim=1) if self.count > 1 else nodes[-1]
        return F.dropout(x, dropout, self.training)


class Cell(nn.Module):
    """The cell called `name` in a plan: "<name>.pre", if any, "<name>.edges.<i>.<operation>", "<name>.join", if any.

    Every node has an edge from every node before it, the input included; edges are numbered by their targets, then
    by their sources. A node without a connection is zero. Without a join the last node is the output.

    Args:
        nodes: how many, the input left out.
    """

    def __init__(self, plan: Plan, name: str, nodes: int) -> None:
        super().__init__()
        self.nodes, self.name = nodes, name
        pre, join = plan.get(f"{name}.pre"), plan.get(f"{name}.join")
        # On a CPU the gradients of depthwise convolutions take half the time, or less, in this format.
        self.pre = None if pre is None else ReluConv(pre, channels_last=True)
        self.edges = nn.ModuleList(Edge(plan, f"{name}.edges.{i}") for i in range(nodes * (nodes + 1) // 2))
        self.join = None if join is None else Join(join)

    def forward(self, x: Tensor, plan: Plan | None = None, dropout: float = 0.0) -> Tensor:
        """[B, C, S, S] -> [B, C', S', S']."""
        if self.pre is not None:
            x = self.pre(x, plan[f"{self.name}.pre"] if plan else None)
        nodes, edges = [x], iter(self.edges)
        for _ in range(self.nodes):
            total: Tensor | None = None
            for source, edge in zip(nodes, edges, strict=False):
                out = edge(source, plan)
                if out is not None:
                    total = out if total is None else total + out
            nodes.append(nodes[0] * 0.0 if total is None else total)
        return nodes[-1] if self.join is None else self.join(nodes, dropout)


class Residual(nn.Module):
    """Two times relu -> 3x3 -> norm, plus a shortcut: [B, C, S, S] -> [B, C', S', S'] (He et al., CVPR 2016)."""

    def __init__(self, spec: ResidualSpec) -> None:
        super().__init__()
        self.spec = spec
        self.conv1 = ReluConv(spec.conv1)
        self.conv2 = ReluConv(spec.conv2)
        self.shortcut = ConvNormAct(spec.shortcut.conv) if spec.shortcut.conv else None

    def forward(self, x: Tensor, spec: ResidualSpec | None = None) -> Tensor:
        out = self.conv2(self.conv1(x, spec.conv1 if spec else None), spec.conv2 if spec else None)
        path = (spec or self.spec).shortcut
        if path.pool > 1:
            x = F.avg_pool2d(x, path.pool, ceil_mode=True)  # odd sides round up, as strided convolutions do
        if self.shortcut is not None:
            x = self.shortcut(x, path.conv if spec else None)
        return out + x


class NormHead(nn.Module):
    """norm -> relu -> global average pooling -> dropout -> classifier: [B, C, S, S] -> [B, classes]."""

    def __init__(self, spec: NormHeadSpec) -> None:
        super().__init__()
        assert spec.norm.norm_eps is not None
        self.norm = nn.BatchNorm2d(spec.norm.out_channels, eps=spec.norm.norm_eps, track_running_stats=False)
        self.classifier = nn.Linear(spec.classifier.in_features, spec.classifier.out_features)

    def forward(self, x: Tensor, spec: NormHeadSpec | None = None, dropout: float = 0.0) -> Tensor:
        x = F.relu(batch_norm(self.norm, x, spec.norm if spec else None)).mean((2, 3))
        return linear(self.classifier, F.dropout(x, dropout, self.training), spec.classifier if spec else None)


class FlatHead(nn.Module):
    """2x2 max pooling -> flatten -> linear -> relu -> dropout -> classifier: [B, C, S, S] -> [B, classes]."""

    def __init__(self, spec: FlatHeadSpec) -> None:
        super().__init__()
        self.hidden = nn.Linear(spec.hidden.in_features, spec.hidden.out_features)
        self.classifier = nn.Linear(spec.classifier.in_features, spec.classifier.out_features)

    def forward(self, x: Tensor, spec: FlatHeadSpec | None = None, dropout: float = 0.0) -> Tensor:
        x = F.relu(linear(self.hidden, F.max_pool2d(x, 2).flatten(1), spec.hidden if spec else None))
        return linear(self.classifier, F.dropout(x, dropout, self.training), spec.classifier if spec else None)


def children(plan: Plan, name: str) -> dict[str, Any]:
    """The specs of a plan whose names are `name` and one more word, by that word."""
    parts = ((key.rpartition("."), spec) for key, spec in plan.layers)
    return {word: spec for (parent, _, word), spec in parts if parent == name}
