"""Patch embedding, transformer block and head of a vision transformer. B: batch, N: tokens, D: numbers per token."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.layers.attention import Attention
from supernet.layers.conv import linear
from supernet.layers.mbconv import drop_path
from supernet.slicing import slice_weight, take
from supernet.specs import (
    PatchEmbedSpec,
    SoftTokenHeadSpec,
    SoftTransformerSpec,
    TokenHeadSpec,
    TransformerSpec,
)


def layer_norm(layer: nn.LayerNorm, x: Tensor, sizes: TransformerSpec | TokenHeadSpec) -> Tensor:
    """Layer norm of [.., dim] with the leading scales and shifts.

    In a mixture of widths each number counts in mean and variance with the probability that it is used: certain
    choices give the subnet's own norm, which statistics over the largest width would not.
    """
    shape = (sizes.dim,)
    scale, shift = take(layer.weight, shape), take(layer.bias, shape)
    use = sizes.use if isinstance(sizes, SoftTransformerSpec | SoftTokenHeadSpec) else None
    if use is None:
        return F.layer_norm(x, shape, scale, shift, layer.eps)
    total = use.sum()
    share = use / (total + (total == 0))  # no width left: every number counts nothing
    centred = x - (x @ share).unsqueeze(-1)
    variance = (centred.square() @ share).unsqueeze(-1)
    return centred * torch.rsqrt(variance + layer.eps) * scale + shift


class PatchEmbed(nn.Module):
    """Images to tokens: [B, C, S, S] -> [B, N, D], the class token first, absolute positions added if any."""

    no_weight_decay: ClassVar[tuple[str, ...]] = ("cls_token", "position")

    def __init__(self, spec: PatchEmbedSpec) -> None:
        super().__init__()
        self.spec = spec
        self.patch = nn.Conv2d(spec.in_channels, spec.dim, spec.patch, spec.patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, spec.dim))
        self.position = nn.Parameter(torch.empty(1, spec.tokens, spec.dim)) if spec.position else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal, sd 0.02, for class token and positions."""
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        if self.position is not None:
            nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor, spec: PatchEmbedSpec | None = None) -> Tensor:
        """[B, C, S, S] -> [B, N, D].

        Raises:
            ValueError: if the images do not have the side that the positions were made for.
        """
        sizes = spec or self.spec
        side = sizes.grid * sizes.patch
        if x.shape[2] != side or x.shape[3] != side:
            raise ValueError(f"this network takes images of {side} x {side} px, got {x.shape[2]} x {x.shape[3]}")
        bias = None if self.patch.bias is None else take(self.patch.bias, (sizes.dim,))
        patches = F.conv2d(x, slice_weight(self.patch, sizes.weight_shape), bias, stride=sizes.patch)
        token = take(self.cls_token, (1, 1, sizes.dim)).expand(x.shape[0], -1, -1)
        tokens = torch.cat((token, patches.flatten(2).transpose(1, 2)), dim=1)
        return tokens if self.position is None else tokens + take(self.position, (1, sizes.tokens, sizes.dim))


class TransformerBlock(nn.Module):
    """Attention, then a two-layer MLP with GELU, each with a residual and a layer norm before or after: [B, N, D]."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.norm1 = nn.LayerNorm(spec.dim, spec.norm_eps)
        self.attention = Attention(spec.attention)
        self.norm2 = nn.LayerNorm(spec.dim, spec.norm_eps)
        self.fc1 = nn.Linear(spec.fc1.in_features, spec.fc1.out_features)
        self.fc2 = nn.Linear(spec.fc2.in_features, spec.fc2.out_features)

    def forward(
        self,
        x: Tensor,
        spec: TransformerSpec | None = None,
        drop_path_rate: float = 0.0,
        index: Tensor | None = None,
    ) -> Tensor:
        """[B, N, D] -> [B, N, D]; `index`: see `Attention.forward`. Drop-path acts in training mode only."""
        sizes = spec or self.spec
        rate = drop_path_rate * sizes.drop_path if self.training else 0.0
        before, after = (layer_norm, _unchanged) if sizes.pre_norm else (_unchanged, layer_norm)
        out = self.attention(before(self.norm1, x, sizes), spec.attention if spec else None, index)
        x = after(self.norm1, x + _dropped(out, rate), sizes)
        out = linear(self.fc1, before(self.norm2, x, sizes), spec.fc1 if spec else None)
        out = linear(self.fc2, F.gelu(out), spec.fc2 if spec else None)
        scale = sizes.scaled if isinstance(sizes, SoftTransformerSpec) and sizes.scaled is not None else sizes.mlp_scale
        if isinstance(scale, Tensor) or scale != 1.0:
            out = out * scale
        return after(self.norm2, x + _dropped(out, rate), sizes)


def _unchanged(layer: nn.LayerNorm, x: Tensor, sizes: TransformerSpec | TokenHeadSpec) -> Tensor:
    return x


def _dropped(branch: Tensor, rate: float) -> Tensor:
    """[B, N, D] with drop-path at `rate`."""
    return drop_path(branch.unsqueeze(-1), rate).squeeze(-1) if rate > 0.0 else branch


class TokenHead(nn.Module):
    """Layer norm (if any) -> pooling -> dropout -> classifier: [B, N, D] -> [B, classes]."""

    def __init__(self, spec: TokenHeadSpec) -> None:
        super().__init__()
        self.spec = spec
        self.norm = None if spec.norm_eps is None else nn.LayerNorm(spec.dim, spec.norm_eps)
        self.classifier = nn.Linear(spec.classifier.in_features, spec.classifier.out_features)

    def forward(self, x: Tensor, spec: TokenHeadSpec | None = None, dropout: float = 0.0) -> Tensor:
        sizes = spec or self.spec
        if self.norm is not None:
            x = layer_norm(self.norm, x, sizes)
        x = x[:, 0] if sizes.pool == "cls" else x[:, 1:].mean(1)
        x = F.dropout(x, dropout, self.training)
        return linear(self.classifier, x, spec.classifier if spec else None)
