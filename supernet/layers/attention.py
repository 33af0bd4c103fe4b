"""Elastic multi-head self-attention with relative positions (Shaw et al., 2018; AutoFormer, ICCV 2021).

B: batch, N: tokens, H: heads, D: numbers per token. Weights have one axis for each thing that varies, so a subnet
uses leading rows and columns only: its heads are the first ones.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.layers.conv import gated, linear
from supernet.slicing import take
from supernet.specs import AttentionSpec, SoftAttentionSpec


def relative_index(grid: int, distance: int) -> Tensor:
    """Which rows of the tables of relative positions each pair of tokens uses: int32 [2, N, N], N = grid² + 1.

    First the vertical, then the horizontal table; queries along the second axis, keys along the third. The offset of
    a key from a query, clipped to +-distance, is row offset + distance + 1; pairs with the class token use row 0.
    """
    cell = torch.arange(grid, dtype=torch.int32)
    rows_and_columns = torch.stack(torch.meshgrid(cell, cell, indexing="ij")).flatten(1)  # [2, grid²]
    offset = rows_and_columns[:, None, :] - rows_and_columns[:, :, None]
    return F.pad(offset.clamp(-distance, distance) + distance + 1, (1, 0, 1, 0))


class RelativePosition(nn.Module):
    """One vector per pair of tokens: the sum of a row of the vertical and one of the horizontal table."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.vertical = nn.Parameter(torch.empty(shape))
        self.horizontal = nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal, sd 0.02."""
        nn.init.trunc_normal_(self.vertical, std=0.02)
        nn.init.trunc_normal_(self.horizontal, std=0.02)

    def forward(self, index: Tensor) -> Tensor:
        """Indices [2, N, N] (see `relative_index`) -> [N, N, head_dim]. Heads share it."""
        return F.embedding(index[0], self.vertical) + F.embedding(index[1], self.horizontal)


class Attention(nn.Module):
    """Scaled dot-product attention, relative positions added to keys and values: [B, N, D] -> [B, N, D]."""

    no_weight_decay: ClassVar[tuple[str, ...]] = ("qkv_bias",)

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.qkv = nn.Parameter(torch.empty(spec.qkv_shape))
        self.qkv_bias = None if spec.bias == "none" else nn.Parameter(torch.empty(spec.qkv_bias_shape))
        relative = spec.distance is not None
        self.key_table = RelativePosition(spec.table_shape) if relative else None
        self.value_table = RelativePosition(spec.table_shape) if relative else None
        self.proj = nn.Linear(spec.inner, spec.dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal, sd 0.02, and zero biases, for q, k and v."""
        nn.init.trunc_normal_(self.qkv, std=0.02)
        if self.qkv_bias is not None:
            nn.init.zeros_(self.qkv_bias)

    def forward(self, x: Tensor, spec: AttentionSpec | None = None, index: Tensor | None = None) -> Tensor:
        """[B, N, D] -> [B, N, D]; `index` [2, N, N] is that of `relative_index`, where there are tables."""
        sizes = spec or self.spec
        query, key, value = self._project(x, sizes)
        query = query * sizes.score_scale
        scores = query @ key.transpose(-2, -1)
        if self.key_table is not None and index is not None:
            scores = scores + _with_pairs(query, self.key_table(index).transpose(1, 2))
        weights = scores.softmax(-1)
        out = weights @ value
        if self.value_table is not None and index is not None:
            out = out + _with_pairs(weights, self.value_table(index))
        out = out.transpose(1, 2).flatten(2)
        scale = (
            sizes.scaled if isinstance(sizes, SoftAttentionSpec) and sizes.scaled is not None else sizes.output_scale
        )
        if isinstance(scale, Tensor) or scale != 1.0:
            out = out * scale
        return linear(self.proj, out, spec.proj if spec else None)

    def _project(self, x: Tensor, sizes: AttentionSpec) -> tuple[Tensor, ...]:
        """[B, N, D] -> queries, keys and values, each [B, H, N, head_dim]."""
        weight = take(self.qkv, sizes.qkv_shape)
        if isinstance(sizes, SoftAttentionSpec):
            weight = gated(weight, sizes.gates)
        weight = weight.flatten(0, 1)
        bias = None if self.qkv_bias is None else _bias(self.qkv_bias, sizes)
        heads = F.linear(x, weight, bias).unflatten(2, (3, sizes.heads, sizes.head_dim))
        return heads.permute(2, 0, 3, 1, 4).unbind(0)


def _bias(bias: Tensor, sizes: AttentionSpec) -> Tensor:
    """That of q, k and v, [3 * inner]."""
    if not isinstance(sizes, SoftAttentionSpec) or sizes.inners is None:
        return take(bias, sizes.qkv_bias_shape).flatten()
    total, used = bias.new_zeros(3, sizes.inner), bias.new_zeros(sizes.inner)
    for width, probability in zip(sizes.inners[0], sizes.inners[1].unbind(), strict=True):
        behind = (0, sizes.inner - width)
        total = total + F.pad(take(bias, (3 * width,)).view(3, width), behind) * probability
        used = used + F.pad(probability.expand(width), behind)
    return (total / (used + (used == 0))).flatten()


def _with_pairs(x: Tensor, pairs: Tensor) -> Tensor:
    """[B, H, N, K] times a matrix [K, M] of its own for every token, [N, K, M] -> [B, H, N, M].

    The heads of all images share that matrix, so they are the rows of one batched product over tokens.
    """
    rows = x.flatten(0, 1).transpose(0, 1)  # [N, B * H, K]
    return torch.bmm(rows, pairs).transpose(0, 1).unflatten(0, (-1, x.shape[1]))
