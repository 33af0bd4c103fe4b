"""The cell of DARTS (Liu et al., ICLR 2019), which has two inputs, and the two operations that only it has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.layers.cell import OPERATIONS, Edge, Join, Pool, ReluConv
from supernet.layers.conv import ConvNormAct
from supernet.layers.mbconv import drop_path
from supernet.specs import ConvSpec, FactorizedReduceSpec, NormedPoolSpec, Plan

INPUTS = 2
NODES = 4  # of a cell, its inputs left out
EDGES = sum(INPUTS + node for node in range(NODES))


class FactorizedReduce(nn.Module):
    """relu -> 1x1 of the even and 1x1 of the odd pixels, side by side -> norm: [B, C, S, S] -> [B, C', S', S'].

    S' is S / 2, rounded up: an odd side is continued by one pixel of zeros.
    """

    def __init__(self, spec: FactorizedReduceSpec) -> None:
        super().__init__()
        self.even = ConvNormAct(spec.even)
        self.odd = ConvNormAct(spec.odd)
        self.norm = nn.BatchNorm2d(spec.out_channels, eps=spec.norm_eps, affine=spec.affine, track_running_stats=False)

    def forward(self, x: Tensor, spec: FactorizedReduceSpec | None = None) -> Tensor:
        x = F.relu(x)
        even, odd = self.even(x), self.odd(x[:, :, 1:, 1:])
        if missing := even.shape[-1] - odd.shape[-1]:
            odd = F.pad(odd, (0, missing, 0, missing))  # what a convolution makes of zeros
        return self.norm(torch.cat([even, odd], dim=1))


class NormedPool(nn.Module):
    """3x3 pooling, then a norm without scale and shift: [B, C, S, S] -> [B, C, S', S'].

    It keeps poolings from winning over convolutions, whose outputs are normalised, by their scale alone.
    """

    def __init__(self, spec: NormedPoolSpec) -> None:
        super().__init__()
        self.pool = Pool(spec.pool)
        self.norm = nn.BatchNorm2d(spec.pool.channels, eps=spec.norm_eps, affine=False, track_running_stats=False)

    def forward(self, x: Tensor, spec: NormedPoolSpec | None = None) -> Tensor:
        return self.norm(self.pool(x))


# Edges build them like all other operations.
OPERATIONS[FactorizedReduceSpec] = FactorizedReduce
OPERATIONS[NormedPoolSpec] = NormedPool


class TwoInputCell(nn.Module):
    """The cell called `name` in a plan: "<name>.pre0", "<name>.pre1", "<name>.edges.<i>.<operation>", "<name>.join".

    Four nodes, each the sum of its edges; edges are numbered by their targets, then by their sources, the two inputs
    first. The plan says which edges there are: two for every node, or more where it mixes several subnets.
    """

    def __init__(self, plan: Plan, name: str) -> None:
        super().__init__()
        self.name = name
        self.pre0 = _preprocess(plan[f"{name}.pre0"])
        self.pre1 = _preprocess(plan[f"{name}.pre1"])
        self.edges = nn.ModuleList(Edge(plan, f"{name}.edges.{i}") for i in range(EDGES))
        self.join = Join(plan[f"{name}.join"])

    def forward(self, before: Tensor, last: Tensor, plan: Plan | None = None, drop_path_rate: float = 0.0) -> Tensor:
        """Outputs of the last cell but one and of the last [B, C, S, S] -> [B, 4 * C', S', S'].

        `drop_path_rate` acts on every edge but identities, in training mode.
        """
        first = self.pre0(before, plan[f"{self.name}.pre0"] if plan else None)
        nodes = [first, self.pre1(last, plan[f"{self.name}.pre1"] if plan else None)]
        edges = iter(self.edges)
        for _ in range(NODES):
            total: Tensor | None = None
            for source, edge in zip(nodes, edges, strict=False):
                out = edge(source, plan)
                if out is None:
                    continue
                if self.training and drop_path_rate > 0.0 and out is not source:
                    out = drop_path(out, drop_path_rate)
                total = out if total is None else total + out
            assert total is not None, f"{self.name}: a node without inputs"
            nodes.append(total)
        return self.join(nodes)


def _preprocess(spec: ConvSpec | FactorizedReduceSpec) -> nn.Module:
    return FactorizedReduce(spec) if isinstance(spec, FactorizedReduceSpec) else ReluConv(spec)
