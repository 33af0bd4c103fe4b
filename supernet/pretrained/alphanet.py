"""The state dicts of AttentiveNAS and AlphaNet (Wang et al., CVPR and ICML 2021): one space, two trainings."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from supernet.pretrained.layout import Layout, blocks_of, conv_norm, mobile_block

CONV, NORM = "conv.conv", "bn.bn"


def _family(tensors: Mapping[str, Tensor]) -> str | None:
    return "alphanet"


def _table(names: Collection[str]) -> dict[str, str]:
    table = {
        **conv_norm("stem", "first_conv", CONV, NORM),
        **conv_norm("head.conv", "last_conv.final_expand_layer", CONV, NORM),
        "head.mix.conv": "last_conv.feature_mix_layer.conv.conv",
        "head.classifier": "classifier.linear.linear",
    }
    for i, block in enumerate(blocks_of(names)):
        table |= mobile_block(block, f"blocks.{i}.mobile_inverted_conv", CONV, NORM)
        table[f"{block}.shortcut.conv"] = f"blocks.{i}.shortcut.conv.conv"
    return table


def _unused(key: str, blocks: list[str]) -> str | None:
    if ".bn_tracking." in key:
        return "statistics that the original never uses"
    later = (i for i, block in enumerate(blocks) if not block.endswith(".0"))
    if key in {f"blocks.{i}.shortcut.conv.conv.weight" for i in later}:
        return "shortcut convolutions that no subnet has"  # the width changes in the first block of a stage only
    return None


ALPHANET = Layout(
    mark="last_conv.",
    first="first_conv.conv.conv.weight",
    classifier="classifier.linear.linear.weight",
    family=_family,
    table=_table,
    unused=_unused,
)
