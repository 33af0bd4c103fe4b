"""Size on disk and peak activations: against real exports' tensors, and a liveness analysis of the traced network."""

from __future__ import annotations

import math
from itertools import accumulate

import numpy as np
import pytest
import torch
from nets import NAMED, TINY, archs, random_codes, space_of
from safetensors.torch import save
from tiny import tiny_space
from tiny_vit import tiny_vit
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from supernet.calibrate import track_statistics
from supernet.cost import memory_of, size_of
from supernet.models import mbconv, resnet
from supernet.space import Arch, Space

aten = torch.ops.aten
# What gives another view of the same numbers, or moves them for the sake of a kernel's layout.
VIEWS = {
    *(aten.view.default, aten.unsqueeze.default, aten.squeeze.dim, aten.transpose.int, aten.permute.default),
    *(aten.t.default, aten.expand.default, aten.select.int, aten.slice.Tensor, aten.unbind.int, aten.detach.default),
    *(aten._unsafe_view.default, aten.clone.default, aten.alias.default, aten.reshape.default),
}
# What can write over its input.
IN_PLACE = {
    *(aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.silu.default, aten.relu.default, aten.gelu.default),
    *(aten.hardswish.default, aten.hardtanh.default, aten.sigmoid.default, aten._softmax.default),
    *(aten.native_batch_norm.default, aten._native_batch_norm_legit.no_stats, aten.native_layer_norm.default),
    *(aten._native_batch_norm_legit.default, aten._native_batch_norm_legit_no_training.default),
}
LAYERS = {
    *(aten.convolution.default, aten.addmm.default, aten.mm.default, aten.bmm.default, aten.mean.dim),
    *(aten.avg_pool2d.default, aten.max_pool2d_with_indices.default, aten.cat.default),
}


def peak_of(module: torch.nn.Module, side: int, channels: int) -> int:
    """The most numbers alive at a time, from the graph of operations; only what depends on the image counts."""
    images = torch.zeros(1, channels, side, side, device="meta")
    graph = make_fx(module)(images).graph
    root: dict[fx.Node, fx.Node] = {}  # the buffer that a value lies in
    sizes: dict[fx.Node, int] = {}
    born: dict[fx.Node, int] = {}
    uses: dict[fx.Node, int] = {}  # the last step that reads the value
    steps = list(graph.nodes)
    for i, node in enumerate(steps):
        for used in node.all_input_nodes:
            uses[used] = i
    for i, node in enumerate(steps):
        if node.op == "placeholder":
            root[node], sizes[node], born[node] = node, images.numel(), i
            continue
        inputs = [used for used in node.all_input_nodes if used in root]
        if node.op != "call_function" or not inputs:
            continue
        source = inputs[0]
        if node.target in VIEWS or "getitem" in str(node.target):
            root[node] = root[source]
            continue
        assert node.target in IN_PLACE | LAYERS, node.target
        value = node.meta["val"]
        count = (value[0] if isinstance(value, tuple | list) else value).numel()
        over = [used for used in inputs if uses[used] == i and numel(used) == count]
        if node.target in IN_PLACE and over:
            root[node] = root[over[0]]
        else:
            root[node], sizes[node], born[node] = node, count, i
    last = dict(born)
    for value, buffer in root.items():
        last[buffer] = max(last[buffer], uses.get(value, -1))
    change = [0] * (len(steps) + 1)
    for buffer, size in sizes.items():
        change[born[buffer]] += size
        change[last[buffer] + 1] -= size
    return max(accumulate(change))


def numel(node: fx.Node) -> int:
    value = node.meta["val"]
    return 0 if isinstance(value, tuple | list) else value.numel()


def subnet_of(space: Space, arch: Arch) -> torch.nn.Module:
    with torch.device("meta"):
        module = space.module(space.plan(arch))
        track_statistics(module)
    return module.to("meta").eval()


EXTRA: dict[str, Space] = {
    "odd sides": tiny_space(shortcut="always", resolution=(9, 13), stem={"width": [8], "kernel": 3, "stride": 2}),
    "wide head": tiny_space(head={"width": [640]}, num_classes=900),
    "large image": tiny_space(stem={"width": [8], "kernel": 3, "stride": 2}, in_channels=64),
    "vit": tiny_vit(),
    "vit post-norm": tiny_vit(pre_norm=False, relative_position=None, pool="cls", num_classes=2000),
    "vit wide classifier": tiny_vit(num_classes=3000),
    # Each makes another part of a block the one that holds most.
    "vit scores": tiny_vit(num_heads=(4, 6), head_dim=2, relative_position=None),
    "vit relative scores": tiny_vit(num_heads=(4, 6), head_dim=2),
    "vit qkv": tiny_vit(embed_dim=(64, 72), super_dim=72, num_heads=(1,), head_dim=4, mlp_ratio=(0.1,)),
    "vit mlp post-norm": tiny_vit(pre_norm=False, mlp_ratio=(5.0, 6.0), super_mlp_ratio=6.0, num_heads=(1,)),
    "gate": mbconv.space(
        name="gate",
        resolution=(4,),
        stem={"width": [8]},
        stages=[
            {"width": [8], "depth": [1, 2], "kernel": [3], "expand": [3], "stride": 2, "se": {"ratio": 4.0}},
        ],
        head={"width": [16]},
        num_classes=3,
    ),
    "shortcut conv": mbconv.space(
        name="widening",
        resolution=(8,),
        stem={"width": [8], "stride": 1},
        stages=[{"width": [64], "depth": [1], "kernel": [3], "expand": [1], "stride": 1}],
        head={"width": [16]},
        shortcut="always",
        num_classes=3,
    ),
    "residual": mbconv.space(
        name="residual",
        resolution=(8,),
        stem={"width": [64], "stride": 1},
        stages=[{"width": [64], "depth": [2], "kernel": [3], "expand": [1.25], "stride": 1}],
        head={"width": [16]},
        num_classes=3,
    ),
    "stem pooling": resnet.space(
        name="pooled",
        resolution=(17,),
        stem={"width": 64, "kernel": 3},
        stages=[{"width": 8, "middle": 8, "blocks": 1, "stride": 2}],
        width_mult=(1.0,),
        choose="network",
        shortcut="conv",
        in_channels=1,
    ),
    "no expansion, stride 2": mbconv.space(
        name="plain",
        resolution=(15,),
        stem={"width": [8], "stride": 1},
        stages=[{"width": [8, 16], "depth": [1, 2], "kernel": [3], "expand": [1], "stride": 2, "se": True}],
        head={"width": [16], "expand": 2},
        num_classes=3,
    ),
}
ALIKE = ("attentivenas", "ofa_mbv3_w12", "autoformer_small", "autoformer_base")  # other numbers of the same layers
SPACES = {**{name: space_of(name) for name in [*NAMED, *TINY] if name not in ALIKE}, **EXTRA}
all_spaces = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())


@all_spaces
def test_peak_activations_are_those_of_the_traced_network(space: Space) -> None:
    channels = int(space.description["in_channels"])
    few = space.name in NAMED  # large graphs
    for arch in dict.fromkeys([space.smallest(), *archs(space, 1 if few else 4), *([] if few else [space.largest()])]):
        expected = peak_of(subnet_of(space, arch), space.resolution(arch), channels)
        assert space.plan(arch).activations == expected


@all_spaces
def test_size_is_that_of_the_exported_tensors(space: Space) -> None:
    for arch in dict.fromkeys([space.smallest(), space.largest(), *archs(space, 3)]):
        tensors = subnet_of(space, arch).state_dict().values()
        assert space.plan(arch).bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@all_spaces
def test_batches_equal_plans(space: Space) -> None:
    rows = random_codes(space, 40)
    plans = [space.plan(space.decode(row)) for row in rows]
    np.testing.assert_array_equal(
        memory_of(space).batch(np.array(rows)), [4 * plan.activations / 1e6 for plan in plans]
    )
    np.testing.assert_array_equal(size_of(space).batch(np.array(rows)), [plan.bytes / 1e6 for plan in plans])


def test_the_file_is_hardly_larger_than_its_tensors() -> None:
    space = tiny_space()
    module = space.module(space.plan(space.largest()))
    track_statistics(module)
    tensors: dict[str, Tensor] = {key: value.contiguous() for key, value in module.state_dict().items()}
    file = len(save(tensors))
    header = file - 1e6 * size_of(space).batch(np.array([space.encode(space.largest())]))[0]
    assert 0 < header < 200 * len(tensors)


def test_a_conv_by_hand() -> None:
    """Image 3 x 8 x 8; stem 8 x 8 x 8; depthwise beside the block's input, which the identity keeps."""
    space = tiny_space(resolution=(8,))
    plan = space.plan(space.smallest())
    assert plan["stem"].activations == (3 + 8) * 64
    assert plan["stages.0.0"].activations == 3 * 8 * 64
    assert plan["head"].classifier.activations == 16 + 4
    assert math.isclose(
        memory_of(space).batch(np.array([space.encode(space.smallest())]))[0], 4 * plan.activations / 1e6
    )
