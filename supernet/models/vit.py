"""The vision-transformer family: AutoFormer's spaces (Chen et al., ICCV 2021).

A patch embedding, transformer blocks and a head. The embedding width is chosen once for the network, the number of
heads and the MLP ratio in every block, and how many blocks there are. One YAML file in `configs/space/` is one space.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

from torch import Tensor, nn

from supernet.choices import Genes, options, unit, whole
from supernet.layers.attention import relative_index
from supernet.layers.mixing import in_depth
from supernet.layers.transformer import PatchEmbed, TokenHead, TransformerBlock
from supernet.space import Space
from supernet.specs import AttentionSpec, LinearSpec, PatchEmbedSpec, Plan, TokenHeadSpec, TransformerSpec

Pool = Literal["mean_patches", "cls"]
WORDS = {"pool": ("mean_patches", "cls"), "qkv": ("elastic", "fixed"), "qkv_bias": ("flat", "shared", "none")}


def space(
    name: str,
    resolution: tuple[int, ...],
    embed_dim: tuple[int, ...],
    num_heads: tuple[int, ...],
    mlp_ratio: tuple[float, ...],
    layer_num: tuple[int, ...],
    patch: int = 16,
    head_dim: int = 64,
    super_dim: int | None = None,
    super_mlp_ratio: float | None = None,
    pool: Pool = "mean_patches",
    relative_position: int | None = 14,
    abs_pos: bool = True,
    pre_norm: bool = True,
    scale: bool = False,
    qkv: Literal["elastic", "fixed"] = "elastic",
    qkv_bias: Literal["flat", "shared", "none"] = "shared",
    norm_eps: float = 1e-5,
    num_classes: int = 1000,
    in_channels: int = 3,
) -> Space:
    """A search space of vision transformers.

    The genes: resolution (a single one), layer_num, mlp_ratio and num_heads of every block, embed_dim.

    Args:
        name: a word for logs and files.
        resolution: the input side, px: one number, because learned positions belong to one grid of patches.
        embed_dim: options of the numbers per token.
        num_heads: options of the attention heads of a block.
        mlp_ratio: options of hidden width / embedding width of a block's MLP; the product is rounded down.
        layer_num: options of the number of blocks.
        patch: side of a patch, px.
        head_dim: numbers per head.
        super_dim, super_mlp_ratio: the published supernet's own width and ratio, where they are larger than every
            option; None: the largest option. `scale` and `qkv` refer to them; no weights beyond the options are held.
        pool: classify the mean of the patches ("mean_patches") or the class token ("cls").
        relative_position: the largest offset told apart, in patches; None: no relative positions.
        abs_pos: learned absolute positions.
        pre_norm: layer norms before attention and MLP and one at the end; else after each residual sum.
        scale: attention's output is multiplied by super_dim / its width, and the MLP's by super_mlp_ratio / ratio.
        qkv: "elastic": heads of head_dim numbers, so that attention is as wide as it has heads; "fixed": the width
            is super_dim and the heads share it.
        qkv_bias: "shared": each of q, k and v uses the leading part of its own bias; "flat": the thirds of the
            leading part of one vector, so that a number can serve q in one subnet and k in another (AutoFormer's
            published weights need it); "none".
        norm_eps: epsilon of the layer norms.

    Raises:
        ValueError: naming the entry that is missing or impossible.
    """
    arguments = dict(locals())
    keys = ("resolution", "layer_num", "mlp_ratio", "num_heads", "embed_dim")
    chosen = {key: options(key, arguments[key]) for key in keys}
    builder = _Builder(**{key: value for key, value in {**arguments, **chosen}.items() if key != "name"})
    _check(builder)
    genes = Genes()
    genes.add("resolution", builder.resolution)
    depth = genes.add("layer_num", builder.layer_num)
    blocks = range(builder.layer_num[-1])
    # Blocks below the smallest depth always count: "layer_num > i" holds for each of its options.
    ratios = [genes.add("mlp_ratio", builder.mlp_ratio, i, depth, i) for i in blocks]
    heads = [genes.add("num_heads", builder.num_heads, i, depth, i) for i in blocks]
    dim = genes.add("embed_dim", builder.embed_dim)
    units = [
        unit("embed", [dim], builder.embed),
        *(unit(f"blocks.{i}", [depth, dim, heads[i], ratios[i]], builder.block(i)) for i in blocks),
        unit("head", [dim], builder.head),
    ]
    lengths = {"mlp_ratio": "layer_num", "num_heads": "layer_num", "embed_dim": "layer_num"}
    return Space(name, genes, units, VisionTransformer, {"_target_": f"{__name__}.space", **arguments}, lengths)


class VisionTransformer(nn.Module):
    """The network of a plan: `embed`, `blocks.<i>`, `head`.

    Built from `space.widest` and called with a plan it is the supernet; built from a subnet's plan and called
    without one it is that subnet.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.embed = PatchEmbed(plan["embed"])
        specs = [spec for name, spec in plan.layers if name.startswith("blocks.")]
        self.blocks = nn.ModuleList(TransformerBlock(spec) for spec in specs)
        self.head = TokenHead(plan["head"])
        distance = specs[0].attention.distance
        index = None if distance is None else relative_index(plan["embed"].grid, distance)
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor, plan: Plan | None = None, dropout: float = 0.0, drop_path: float = 0.0) -> Tensor:
        """Images [B, C, S, S] -> logits [B, classes]; `dropout` acts before the classifier."""
        index = cast(Tensor | None, self.index)
        x = self.embed(x, plan["embed"] if plan else None)
        if plan is None:
            for block in self.blocks:
                x = block(x, None, drop_path, index)
        else:
            names = [f"blocks.{i}" for i in range(len(self.blocks))]
            runs = [partial(_run, block, drop_path, index) for block in self.blocks]
            x = in_depth(x, plan, names, runs)
        return self.head(x, plan["head"] if plan else None, dropout)


def _run(block: nn.Module, drop_path: float, index: Tensor | None, x: Tensor, spec: TransformerSpec) -> Tensor:
    return block(x, spec, drop_path, index)


@dataclass(frozen=True)
class _Builder:
    """Turns the data of a space, see `space`, into specs. Every width, rounding and scale is resolved here."""

    resolution: tuple[int, ...]
    embed_dim: tuple[int, ...]
    num_heads: tuple[int, ...]
    mlp_ratio: tuple[float, ...]
    layer_num: tuple[int, ...]
    patch: int
    head_dim: int
    super_dim: int | None
    super_mlp_ratio: float | None
    pool: Pool
    relative_position: int | None
    abs_pos: bool
    pre_norm: bool
    scale: bool
    qkv: str
    qkv_bias: str
    norm_eps: float
    num_classes: int
    in_channels: int

    @property
    def widest_dim(self) -> int:
        """The published supernet's width: at least that of every subnet."""
        return self.embed_dim[-1] if self.super_dim is None else self.super_dim

    @property
    def widest_ratio(self) -> float:
        return self.mlp_ratio[-1] if self.super_mlp_ratio is None else self.super_mlp_ratio

    def embed(self, dim: int) -> PatchEmbedSpec:
        return PatchEmbedSpec(self.in_channels, dim, self.patch, self.resolution[0] // self.patch, self.abs_pos)

    def block(self, i: int) -> Callable[..., TransformerSpec | None]:
        drop_path = i / max(1, self.layer_num[-1] - 1)  # of the deepest network, as everywhere

        def spec(layers: int, dim: int, heads: int, ratio: float) -> TransformerSpec | None:
            if i >= layers:
                return None
            hidden = int(dim * ratio)
            return TransformerSpec(
                attention=self._attention(dim, heads),
                fc1=LinearSpec(dim, hidden),
                fc2=LinearSpec(hidden, dim),
                pre_norm=self.pre_norm,
                norm_eps=self.norm_eps,
                mlp_scale=self.widest_ratio / ratio if self.scale else 1.0,
                drop_path=drop_path,
            )

        return spec

    def _attention(self, dim: int, heads: int) -> AttentionSpec:
        fixed = self.qkv == "fixed"
        inner = self.widest_dim if fixed else heads * self.head_dim
        return AttentionSpec(
            dim=dim,
            inner=inner,
            heads=heads,
            tokens=self.embed(dim).tokens,
            bias=self.qkv_bias,
            distance=self.relative_position,
            # With a fixed width the published program scales by what the embedding would give each head.
            score_scale=(dim // heads if fixed else self.head_dim) ** -0.5,
            output_scale=self.widest_dim / inner if self.scale else 1.0,
        )

    def head(self, dim: int) -> TokenHeadSpec:
        eps = self.norm_eps if self.pre_norm else None
        return TokenHeadSpec(self.pool, eps, LinearSpec(dim, self.num_classes), self.embed(dim).tokens)


def _check(builder: _Builder) -> None:
    """Refuse values that no network can be built from; `ValueError` names the entry."""
    for key in ("resolution", "embed_dim", "num_heads", "layer_num"):
        whole(key, getattr(builder, key))
    for key in ("patch", "head_dim", "super_dim", "relative_position", "num_classes", "in_channels"):
        if getattr(builder, key) is not None:
            whole(key, (getattr(builder, key),))
    if len(builder.resolution) > 1:
        raise ValueError(f"resolution={list(builder.resolution)}: give one, positions belong to one grid of patches")
    if builder.resolution[0] % builder.patch:
        raise ValueError(f"resolution={builder.resolution[0]}: must be a multiple of patch={builder.patch}")
    if builder.widest_dim < builder.embed_dim[-1]:
        raise ValueError(f"super_dim={builder.super_dim}: must be at least the largest embed_dim")
    if builder.widest_ratio < builder.mlp_ratio[-1]:
        raise ValueError(f"super_mlp_ratio={builder.super_mlp_ratio}: must be at least the largest mlp_ratio")
    if builder.embed_dim[0] * builder.mlp_ratio[0] < 1:
        raise ValueError(f"mlp_ratio={list(builder.mlp_ratio)}: too small, some MLP would have no width")
    if builder.norm_eps <= 0:
        raise ValueError(f"norm_eps={builder.norm_eps}: must be positive")
    for key, words in WORDS.items():
        if getattr(builder, key) not in words:
            raise ValueError(f"{key}={getattr(builder, key)!r}: choose one of {list(words)}")
    if builder.qkv == "fixed":
        _check_fixed(builder)


def _check_fixed(builder: _Builder) -> None:
    heads = builder.num_heads
    if any(builder.widest_dim % h or builder.embed_dim[0] < h for h in heads):
        raise ValueError(f"num_heads={list(heads)}: with qkv=fixed all must divide super_dim={builder.widest_dim}")
    if builder.relative_position is not None and len(heads) > 1:
        raise ValueError(f"num_heads={list(heads)}: with qkv=fixed and relative positions give a single number")
