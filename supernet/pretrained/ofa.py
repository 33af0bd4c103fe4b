"""The state dicts of Once-for-All (Cai et al., ICLR 2020): its mobile networks and its ResNets."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from supernet.pretrained.layout import Layout, blocks_of, conv_norm, mobile_block

CONV, NORM = "conv.conv", "bn.bn"  # of elastic layers; fixed ones say it once
TWICE = re.compile(r"(?<![a-z_])(conv|bn|linear)(?:\.\1)+(?=\.)")


def _normal(key: str) -> str:
    """Older files call a block's body `mobile_inverted_conv`, and differ in which layers say conv, bn, linear twice."""
    return TWICE.sub(r"\1", key.replace(".mobile_inverted_conv.", ".conv."))


def _mobile_family(tensors: Mapping[str, Tensor]) -> str | None:
    with_expand = any(key.startswith("final_expand_layer.") for key in tensors)
    families = {(True, 16): "ofa_mbv3", (True, 24): "ofa_mbv3_w12", (False, 40): "ofa_proxyless"}
    return families.get((with_expand, tensors["first_conv.conv.weight"].shape[0]))


def _mobile_table(names: Collection[str]) -> dict[str, str]:
    table = {**conv_norm("stem", "first_conv"), "head.classifier": "classifier.linear"}
    if any(name.startswith("head.mix.") for name in names):
        table |= {**conv_norm("head.conv", "final_expand_layer"), "head.mix.conv": "feature_mix_layer.conv"}
    else:
        table |= conv_norm("head.conv", "feature_mix_layer")
    for i, block in enumerate(blocks_of(names)):
        body = f"blocks.{i}.conv"
        table |= mobile_block(block, body, CONV, NORM) if i else mobile_block(block, body, "conv", "bn")
        for step in ("7to5", "5to3"):
            table[f"{block}.depthwise.conv.transform.{step}"] = f"{body}.depth_conv.conv.{step}_matrix"
    return table


def _resnet_family(tensors: Mapping[str, Tensor]) -> str | None:
    return "ofa_resnet50"


def _resnet_table(names: Collection[str]) -> dict[str, str]:
    table = {"head.classifier": "classifier.linear.linear"}
    for ours, theirs in (("stem.0", "input_stem.0"), ("stem.1", "input_stem.1.conv"), ("stem.2", "input_stem.2")):
        table |= conv_norm(ours, theirs, CONV, NORM)
    for i, block in enumerate(blocks_of(names)):
        for part in ("conv1", "conv2", "conv3"):
            table |= conv_norm(f"{block}.{part}", f"blocks.{i}.{part}", CONV, NORM)
        table |= conv_norm(f"{block}.shortcut", f"blocks.{i}.downsample", CONV, NORM)
    return table


OFA_MOBILE = Layout(
    mark="feature_mix_layer.",
    first="first_conv.conv.weight",
    classifier="classifier.linear.weight",
    family=_mobile_family,
    table=_mobile_table,
    normal=_normal,
)
OFA_RESNET = Layout(
    mark="input_stem.",
    first="input_stem.0.conv.weight",
    classifier="classifier.linear.weight",
    family=_resnet_family,
    table=_resnet_table,
    normal=_normal,
)
