"""The state dicts of AutoFormer (Chen et al., ICCV 2021)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from supernet.pretrained.layout import Layout
from supernet.slicing import take

TABLES = {"key_table": "rel_pos_embed_k", "value_table": "rel_pos_embed_v"}
AXES = {"vertical": "embeddings_table_v", "horizontal": "embeddings_table_h"}
# The axes along which the original is wider than any of its subnets; all of them where nothing is said here.
WIDER = {
    "embed.position": (2,),
    "embed.cls_token": (2,),
    "embed.patch.weight": (0,),
    "head.classifier.weight": (1,),
    "head.classifier.bias": (),
}


def _family(tensors: Mapping[str, Tensor]) -> str | None:
    families = {256: "autoformer_tiny", 448: "autoformer_small", 640: "autoformer_base"}
    return families.get(tensors["patch_embed_super.proj.weight"].shape[0])


def _table(names: Collection[str]) -> dict[str, str]:
    table = {
        "embed.patch": "patch_embed_super.proj",
        "embed.cls_token": "cls_token",
        "embed.position": "pos_embed",
        "head.norm": "norm",
        "head.classifier": "head",
    }
    for block in dict.fromkeys(".".join(name.split(".")[:2]) for name in names if name.startswith("blocks.")):
        table |= {
            f"{block}.norm1": f"{block}.attn_layer_norm",
            f"{block}.norm2": f"{block}.ffn_layer_norm",
            f"{block}.fc1": f"{block}.fc1",
            f"{block}.fc2": f"{block}.fc2",
            f"{block}.attention.proj": f"{block}.attn.proj",
            f"{block}.attention.qkv": f"{block}.attn.qkv.weight",
            f"{block}.attention.qkv_bias": f"{block}.attn.qkv.bias",
        }
        for ours, theirs in TABLES.items():
            for axis, name in AXES.items():
                table[f"{block}.attention.{ours}.{axis}"] = f"{block}.attn.{theirs}.{name}"
    return table


def _fit(name: str, tensor: Tensor, shape: torch.Size, space: Mapping[str, Any]) -> Tensor:
    """The part that subnets use, with q, k and v apart; as it is where it does not fit.

    Row 3 r + p of the original's qkv weight is row r of part p of q, k, v; its bias is in plain order.
    """
    leaf = name.rpartition(".")[2]
    if leaf == "qkv" and tensor.ndim == 2 and len(tensor) % 3 == 0:
        if space.get("qkv", "elastic") == "elastic":
            tensor = tensor.unflatten(0, (-1, 3)).transpose(0, 1)
        else:
            tensor = tensor.unflatten(0, (3, -1))
    super_dim = space.get("super_dim") or shape[-1]
    if name == "embed.cls_token" and tensor.shape[-1] != super_dim:
        return tensor  # another supernet's
    wider = () if leaf in AXES else WIDER.get(name, tuple(range(len(shape))))
    same = tensor.ndim == len(shape) and all(
        have >= need if axis in wider else have == need
        for axis, (have, need) in enumerate(zip(tensor.shape, shape, strict=True))
    )
    return take(tensor, shape) if same else tensor


AUTOFORMER = Layout(
    mark="patch_embed_super.",
    first="patch_embed_super.proj.weight",
    classifier="head.weight",
    family=_family,
    table=_table,
    fit=_fit,
)
