"""Specs of the layers of a vision transformer. N: tokens, the class token included."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from supernet.specs.conv import LinearSpec


@dataclass(frozen=True)
class PatchEmbedSpec:
    """Patches of `patch` x `patch` px, projected to `dim` numbers each; a class token in front, positions added."""

    in_channels: int
    dim: int
    patch: int  # px
    grid: int  # patches along one side
    position: bool  # learned absolute positions

    @property
    def tokens(self) -> int:
        return self.grid**2 + 1

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """[dim, in, patch, patch]."""
        return (self.dim, self.in_channels, self.patch, self.patch)

    @property
    def macs(self) -> int:
        return self.dim * self.in_channels * self.patch**2 * self.grid**2

    @property
    def params(self) -> int:
        """The projection with its bias, the class token, and the positions where there are any."""
        return self.dim * (self.in_channels * self.patch**2 + 2 + self.tokens * self.position)

    @property
    def bytes(self) -> int:
        return 4 * self.params

    @property
    def activations(self) -> int:
        """Projecting the image, then putting the class token in front."""
        image, patches = self.in_channels * (self.grid * self.patch) ** 2, self.dim * self.grid**2
        return patches + max(image, self.dim * self.tokens)


@dataclass(frozen=True)
class AttentionSpec:
    """Multi-head self-attention, with relative positions on keys and values unless `distance` is None.

    `inner` is the width of q, k and v, all heads together; `distance` is the largest offset, in patches, that the
    tables of relative positions tell apart. `score_scale` multiplies the scores, `output_scale` what the heads return.
    """

    dim: int
    inner: int
    heads: int
    tokens: int
    bias: str  # of q, k and v: "flat", "shared" or "none", see `supernet.models.vit.space`
    distance: int | None
    score_scale: float
    output_scale: float

    @property
    def head_dim(self) -> int:
        return self.inner // self.heads

    @property
    def qkv_shape(self) -> tuple[int, int, int]:
        """[3, inner, dim]."""
        return (3, self.inner, self.dim)

    @property
    def qkv_bias_shape(self) -> tuple[int, ...]:
        """[3 * inner] where it is flat, else [3, inner]."""
        return (3 * self.inner,) if self.bias == "flat" else (3, self.inner)

    @property
    def proj(self) -> LinearSpec:
        return LinearSpec(self.inner, self.dim)

    @property
    def table_shape(self) -> tuple[int, int]:
        """[2 * distance + 2, head_dim]: offsets -distance to distance, and one row for the class token."""
        assert self.distance is not None
        return (2 * self.distance + 2, self.head_dim)

    @cached_property
    def macs(self) -> int:
        """Projections, and two products of N x N x inner; two more with relative positions.

        A relative position costs each head a product of its own with every pair of tokens, as the published program
        computes it.
        """
        projections = 4 * self.tokens * self.dim * self.inner
        return projections + (2 if self.distance is None else 4) * self.tokens**2 * self.inner

    @cached_property
    def params(self) -> int:
        rows, width = (0, 0) if self.distance is None else self.table_shape
        bias = 0 if self.bias == "none" else 3 * self.inner
        return 3 * self.inner * self.dim + bias + 4 * rows * width + self.proj.params

    @property
    def bytes(self) -> int:
        return 4 * self.params

    @property
    def held_inside(self) -> int:
        """The most numbers held at a time once q, k and v are there and the input is not needed any more.

        q, k and v stay until the values have been weighted. What relative positions give every pair of tokens is the
        same for all images, and counts as weights; its products with queries and scores count.
        """
        inner, scores = self.tokens * self.inner, self.heads * self.tokens**2
        products = 3 * inner + scores + (inner if self.distance is None else max(inner, scores))
        return max(products, inner + self.tokens * self.dim)

    @property
    def activations(self) -> int:
        return max(self.tokens * (self.dim + 3 * self.inner), self.held_inside)


@dataclass(frozen=True)
class TransformerSpec:
    """A transformer block. `drop_path` scales the step's drop-path rate, 0 to 1; `mlp_scale` the MLP's output."""

    attention: AttentionSpec
    fc1: LinearSpec
    fc2: LinearSpec
    pre_norm: bool  # norms before attention and MLP; else after the sums with the residual
    norm_eps: float
    mlp_scale: float
    drop_path: float

    @property
    def dim(self) -> int:
        return self.attention.dim

    @cached_property
    def macs(self) -> int:
        return self.attention.macs + self.attention.tokens * (self.fc1.macs + self.fc2.macs)

    @cached_property
    def params(self) -> int:
        return self.attention.params + self.fc1.params + self.fc2.params + 4 * self.dim

    @property
    def bytes(self) -> int:
        return 4 * self.params

    @cached_property
    def activations(self) -> int:
        """A norm in front writes beside its input, which the residual needs; without, the input is the residual."""
        tokens = self.attention.tokens
        residual, hidden = tokens * self.dim, tokens * self.fc1.out_features
        read = residual * (1 + self.pre_norm)
        qkv = read + 3 * tokens * self.attention.inner
        mlp = hidden + max(read, 2 * residual)
        return max(qkv, residual + self.attention.held_inside, mlp)


@dataclass(frozen=True)
class TokenHeadSpec:
    """The last norm (`norm_eps` None: none), pooling of the tokens, dropout, classifier."""

    pool: str  # "mean_patches": the mean without the class token; "cls": the class token
    norm_eps: float | None
    classifier: LinearSpec
    tokens: int

    @property
    def dim(self) -> int:
        return self.classifier.in_features

    @property
    def macs(self) -> int:
        return self.classifier.macs

    @property
    def params(self) -> int:
        return self.classifier.params + 2 * self.dim * (self.norm_eps is not None)

    @property
    def bytes(self) -> int:
        return 4 * self.params

    @property
    def activations(self) -> int:
        """The class token is read where it lies; a mean is a vector of its own."""
        held = self.tokens * self.dim
        if self.pool == "cls":
            return held + self.classifier.out_features
        return max(held + self.dim, self.classifier.activations)
