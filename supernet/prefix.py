"""Subnets that begin with the same layers, scored together: what they share is computed once.

Children of an evolution differ from their parents in a few genes, and those of late layers leave the early ones as
they are. Layers with equal specs, behind equal layers, hold the same weights, see the same numbers and are calibrated
to the same statistics; so a group of subnets is a tree, and scores are those of every subnet alone, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.calibrate import calibrate
from supernet.evaluate import Metrics, Stopped, beyond, score
from supernet.layers.stages import Stages
from supernet.models.mbconv import MBConvNet
from supernet.models.resnet import ResNet
from supernet.models.vit import VisionTransformer
from supernet.passes import PLAIN, Passes, joined
from supernet.sharing.members import AnySupernet, member_of, members_of
from supernet.space import Arch
from supernet.specs import BottleneckSpec, ConvSpec, MBConvSpec, PatchEmbedSpec, Plan, TransformerSpec

if TYPE_CHECKING:
    from supernet.data import Data

Step = Callable[[Tensor], Tensor]


def steps(subnet: nn.Module) -> list[tuple[str, Step]] | None:
    """The layers of an extracted subnet in the order of its plan, under their names; one takes what the last gave.

    None where the network is no such sequence: spaces of cells have no prefixes.
    """
    if isinstance(subnet, MBConvNet):
        return [("stem", subnet.stem), *_blocks(subnet.stages), ("head", subnet.head)]
    if isinstance(subnet, ResNet):
        stem = [(f"stem.{key}", partial(_residual, conv) if key == "1" else conv) for key, conv in subnet.stem.items()]
        (first, block), *others = _blocks(subnet.stages)
        return [*stem, (first, partial(_pooled, block)), *others, ("head", subnet.head)]
    if isinstance(subnet, VisionTransformer):
        index = cast(Tensor | None, subnet.index)
        blocks = [(f"blocks.{i}", partial(block, index=index)) for i, block in enumerate(subnet.blocks)]
        return [("embed", subnet.embed), *blocks, ("head", subnet.head)]
    return None


def has_prefixes(net: AnySupernet) -> bool:
    """Whether subnets of `net` are sequences of layers, which `Tree` needs."""
    return isinstance(members_of(net)[0].net, MBConvNet | ResNet | VisionTransformer)


class Tree(nn.Module):
    """Extracted subnets of one supernet and one resolution as one network that runs common layers once.

    It can be calibrated as a subnet can. Layers that several subnets begin with are those of the first of them.
    """

    def __init__(self, subnets: Sequence[nn.Module], plans: Sequence[Plan]) -> None:
        super().__init__()
        sequences = []
        for subnet, plan in zip(subnets, plans, strict=True):
            sequence = steps(subnet)
            assert sequence is not None
            assert [name for name, _ in sequence] == [name for name, _ in plan.layers]
            sequences.append([step for _, step in sequence])
        self._roots = _grow(list(range(len(plans))), 0, sequences, [plan.layers for plan in plans])
        self.layers = nn.ModuleList(subnets[i].get_submodule(name) for i, name in _unique(self._roots))
        self.count = len(plans)

    def forward(self, x: Tensor, wanted: Collection[int] | None = None) -> dict[int, Tensor]:
        """Images [B, C, S, S] -> logits [B, classes] of every subnet, or of those at the positions `wanted`."""
        found: dict[int, Tensor] = {}
        for root in self._roots:
            _run(root, x, frozenset(range(self.count) if wanted is None else wanted), found)
        return found


@dataclass(frozen=True)
class _Node:
    """A layer, the positions of the subnets that have it, and the layers behind it; none behind the last."""

    name: str
    step: Step
    subnets: tuple[int, ...]
    children: tuple[_Node, ...]


def _grow(members: Sequence[int], depth: int, sequences: Sequence[list[Step]], layers: Sequence[Any]) -> list[_Node]:
    groups: dict[Any, list[int]] = {}
    for i in members:
        if depth < len(layers[i]):
            groups.setdefault(layers[i][depth], []).append(i)
    return [
        _Node(name, sequences[group[0]][depth], tuple(group), tuple(_grow(group, depth + 1, sequences, layers)))
        for (name, _), group in groups.items()
    ]


def _unique(nodes: Sequence[_Node]) -> list[tuple[int, str]]:
    """Every layer of the tree: the position of the subnet that it is taken from, and its name there."""
    return [entry for node in nodes for entry in ((node.subnets[0], node.name), *_unique(node.children))]


def _run(node: _Node, x: Tensor, wanted: frozenset[int], found: dict[int, Tensor]) -> None:
    """Depth first, so that no more is kept than what the layers at the open branchings gave."""
    if wanted.isdisjoint(node.subnets):
        return
    x = node.step(x)
    while len(node.children) == 1:
        (node,) = node.children
        x = node.step(x)
    if not node.children:
        found.update((i, x) for i in node.subnets if i in wanted)
    for child in node.children:
        _run(child, x, wanted, found)


def groups(net: AnySupernet, archs: Sequence[Arch], limit_mb: float, images: Callable[[int], int]) -> list[list[int]]:
    """Positions of `archs` in groups to be scored together, by resolution and then by their first layers.

    Args:
        limit_mb: MB of weights and kept activations of a group; a subnet alone may have more.
        images: how many images run at a time, by resolution.
    """
    plans = [net.space.plan(arch) for arch in archs]
    numbers: dict[Any, int] = {}
    codes = [[numbers.setdefault(layer, len(numbers)) for layer in plan.layers] for plan in plans]
    members = [id(member_of(net, arch)) for arch in archs]
    rank = {member: i for i, member in enumerate(dict.fromkeys(members))}
    kinds = [(rank[member], plan.resolution) for member, plan in zip(members, plans, strict=True)]
    found: list[list[int]] = []
    for i in sorted(range(len(archs)), key=lambda i: (kinds[i], codes[i])):
        if found and kinds[found[-1][0]] == kinds[i]:
            group = [*found[-1], i]
            if _bytes([plans[j] for j in group], images(plans[i].resolution)) <= limit_mb * 2**20:
                found[-1] = group
                continue
        found.append([i])
    return found


def _bytes(plans: Sequence[Plan], images: int) -> int:
    """Of the weights of subnets in the order of their layers, and of the most that their tree keeps on `images`."""
    kept: list[int] = []  # layers of the current subnet whose output later subnets need: a stack
    most = 0
    for one, other in pairwise(plans):
        same = [a == b for a, b in zip(one.layers, other.layers, strict=False)]
        shared = same.index(False) if False in same else len(same)
        kept = [depth for depth in kept if depth < shared] + ([shared] if shared else [])
        most = max(most, sum(_numbers(other.layers[depth - 1][1]) for depth in kept))
    return sum(plan.bytes for plan in plans) + 4 * images * most


def _numbers(spec: Any) -> int:
    """How many numbers a layer gives for one image; of those that none comes behind, none are kept."""
    if isinstance(spec, PatchEmbedSpec):
        return spec.dim * spec.tokens
    if isinstance(spec, TransformerSpec):
        return spec.dim * spec.attention.tokens
    last = {MBConvSpec: "project", BottleneckSpec: "conv3"}.get(type(spec))
    conv = getattr(spec, last) if last else spec
    return conv.out_channels * conv.size**2 if isinstance(conv, ConvSpec) else 0


def evaluate_group(
    net: AnySupernet,
    archs: Sequence[Arch],
    data: Data,
    split: str,
    calibration_images: int,
    passes: Passes = PLAIN,
    stop_below: float | None = None,
) -> list[Metrics | Stopped]:
    """As `evaluate_subnet`, or `evaluate_subnet_unless_below`, of every subnet, bit for bit; one group of `groups`."""
    space = net.space
    tree = Tree([net.extract(arch) for arch in archs], [space.plan(arch) for arch in archs]).eval()
    side = space.resolution(archs[0])
    if calibration_images:
        with passes.precision(next(tree.parameters()).device):
            calibrate(tree, data.calibration(side, calibration_images))
    return evaluate_tree(tree, data.evaluation(split, side), data.sizes[split], passes, stop_below)


@torch.no_grad()
def evaluate_tree(
    tree: Tree,
    batches: Sequence[tuple[Tensor, Tensor]],
    total: int,
    passes: Passes = PLAIN,
    stop_below: float | None = None,
) -> list[Metrics | Stopped]:
    """Scores of every subnet in a calibrated tree; `total` and `stop_below` as in `evaluate_unless_below`."""
    device = next(tree.parameters()).device
    correct = [torch.zeros((), device=device, dtype=torch.int64) for _ in range(tree.count)]
    loss = [torch.zeros((), device=device) for _ in range(tree.count)]
    stopped: dict[int, Stopped] = {}
    seen = 0
    with passes.precision(device):
        for images, targets in batches:
            left = [i for i in range(tree.count) if i not in stopped]
            parts = [tree(part, left) for part in passes.parts(images)]
            for i in left:
                right, summed = score(joined([part[i] for part in parts]), targets)
                correct[i] += right
                loss[i] += summed
            seen += len(targets)
            if stop_below is not None:
                stopped |= _beyond(left, correct, seen, total, stop_below)
            if len(stopped) == tree.count:
                break
    sums: Sequence[tuple[int, float]] = [(int(right), float(nats)) for right, nats in zip(correct, loss, strict=True)]
    whole = [Metrics(100.0 * right / total, nats / total, total) for right, nats in sums]
    return [stopped.get(i, metrics) for i, metrics in enumerate(whole)]


def _beyond(
    left: Sequence[int], correct: Sequence[Tensor], seen: int, total: int, stop_below: float
) -> Mapping[int, Stopped]:
    """Those among the subnets `left` whose top-1 must end below `stop_below`; waits for the device once."""
    counts = torch.stack([correct[i] for i in left]).tolist()
    found = {i: beyond(count, seen, total, stop_below) for i, count in zip(left, counts, strict=True)}
    return {i: one for i, one in found.items() if one is not None}


def _blocks(stages: Stages) -> list[tuple[str, Step]]:
    return [(f"stages.{s}.{b}", block) for s, stage in enumerate(stages) for b, block in enumerate(stage.children())]


def _residual(conv: Step, x: Tensor) -> Tensor:
    return x + conv(x)


def _pooled(block: Step, x: Tensor) -> Tensor:
    return block(F.max_pool2d(x, 3, stride=2, padding=1))
