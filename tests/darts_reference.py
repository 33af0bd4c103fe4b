"""The network of DARTS from the state of a supernet, written out plainly."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.space import Arch


def plain(x: Tensor, arch: Arch, state: Mapping[str, Tensor], cells: int, affine: bool, pool_norm: bool) -> Tensor:
    """As the published code computes it: explicit pixels, strides, dilations and paddings. Even sides."""

    def norm(x: Tensor, where: str | None) -> Tensor:
        var, mean = torch.var_mean(x, (0, 2, 3), keepdim=True, correction=0)
        x = (x - mean) / (var + 1e-5).sqrt()
        if where is None:
            return x
        scale, shift = (state[f"{where}.norm.{key}"][:, None, None] for key in ("weight", "bias"))
        return x * scale + shift

    def inside(where: str) -> str | None:
        return where if affine else None

    def separable(x: Tensor, where: str, kernel: int, stride: int, dilation: int) -> Tensor:
        weight = state[f"{where}.depthwise.conv.weight"]
        edge = (weight.shape[-1] - kernel) // 2
        weight = weight[:, :, edge : edge + kernel, edge : edge + kernel]
        padding = dilation * (kernel - 1) // 2
        x = F.conv2d(F.relu(x), weight, None, stride, padding, dilation, groups=x.shape[1])
        return norm(F.conv2d(x, state[f"{where}.pointwise.conv.weight"]), inside(f"{where}.pointwise"))

    def reduced(x: Tensor, where: str) -> Tensor:
        x = F.relu(x)
        even = F.conv2d(x[:, :, ::2, ::2], state[f"{where}.even.conv.weight"])
        odd = F.conv2d(x[:, :, 1::2, 1::2], state[f"{where}.odd.conv.weight"])
        return norm(torch.cat([even, odd], 1), inside(where))

    def op(x: Tensor, name: str, where: str, stride: int) -> Tensor:
        if name == "skip_connect":
            return reduced(x, f"{where}.skip") if stride == 2 else x
        if name == "max_pool_3x3":
            x = F.pad(x, (1, 1, 1, 1), value=-torch.inf).unfold(2, 3, stride).unfold(3, 3, stride).amax((4, 5))
            return norm(x, None) if pool_norm else x
        if name == "avg_pool_3x3":
            sums, ones = (
                F.pad(part, (1, 1, 1, 1)).unfold(2, 3, stride).unfold(3, 3, stride).sum((4, 5))
                for part in (x, torch.ones_like(x))
            )
            return norm(sums / ones, None) if pool_norm else sums / ones
        kernel = int(name[-1])
        if name.startswith("dil"):
            return separable(x, f"{where}.dil", kernel, stride, 2)
        return separable(separable(x, f"{where}.sep.first", kernel, stride, 1), f"{where}.sep.second", kernel, 1, 1)

    def entering(x: Tensor, where: str, side: int) -> Tensor:
        if x.shape[-1] != side:
            return reduced(x, where)
        return norm(F.conv2d(F.relu(x), state[f"{where}.body.conv.weight"]), inside(f"{where}.body"))

    before = last = norm(F.conv2d(x, state["stem.conv.weight"], padding=1), "stem")
    for i in range(cells):
        reduces = i in (cells // 3, 2 * cells // 3)
        kind, where, side = "reduce" if reduces else "normal", f"cells.{i}", last.shape[-1]
        nodes = [entering(before, f"{where}.pre0", side), entering(last, f"{where}.pre1", side)]
        for n, word in enumerate(arch[f"{kind}_inputs"]):
            start = sum(2 + m for m in range(n))
            first, second = (
                op(nodes[j], arch[kind][start + j], f"{where}.edges.{start + j}", 2 if reduces and j < 2 else 1)
                for j in map(int, word.split("-"))
            )
            nodes.append(first + second)
        before, last = last, torch.cat(nodes[2:], 1)
    return F.linear(last.mean((2, 3)), state["head.classifier.weight"], state["head.classifier.bias"])
