"""The cell of DARTS (Liu et al., ICLR 2019), which has two inputs."""

from __future__ import annotations

from torch import Tensor, nn

from supernet.layers.cell import Edge, Join
from supernet.layers.mbconv import drop_path
from supernet.layers.operations import FactorizedReduce, ReluConv
from supernet.specs import ConvSpec, FactorizedReduceSpec, Plan

INPUTS = 2
NODES = 4  # of a cell, its inputs left out
EDGES = sum(INPUTS + node for node in range(NODES))


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
