"""Supernets from the checkpoint files of the codes that they were published with.

One file per original code says how its tensors are named; reading and checking is common to all.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from supernet.build import build
from supernet.calibrate import track_statistics
from supernet.errors import UserError
from supernet.net import Supernet
from supernet.pretrained.alphanet import ALPHANET
from supernet.pretrained.autoformer import AUTOFORMER
from supernet.pretrained.files import Weights, read_weights, some
from supernet.pretrained.layout import Layout, blocks_of, original_name
from supernet.pretrained.ofa import OFA_MOBILE, OFA_RESNET

LAYOUTS = (ALPHANET, OFA_MOBILE, OFA_RESNET, AUTOFORMER)
SAME_SPACE = {"attentivenas": "alphanet"}
FAMILIES = (
    *("alphanet", "ofa_mbv3", "ofa_mbv3_w12", "ofa_proxyless", "ofa_resnet50"),
    *("autoformer_tiny", "autoformer_small", "autoformer_base"),
)


@dataclass(frozen=True)
class Imported:
    """A supernet with the weights of an original checkpoint file.

    `family` is the name of its space; `left_out` says in words what else the file holds, empty if nothing.
    """

    net: Supernet
    family: str
    left_out: str


def load_pretrained(path: str | Path, family: str | None = None, **overrides: Any) -> Supernet:
    """The supernet of a checkpoint file of Once-for-All, AttentiveNAS, AlphaNet or AutoFormer. On the CPU.

    Batch norms keep the file's running statistics, so that in eval mode it computes what the original does. One
    line on stderr says what of the file was left out, if anything. No code of the file is run.

    Args:
        path: the original file, as published or as written by the original training.
        family: a name for `supernet.build`; None: recognised by the tensors.
        overrides: entries of the family's space to replace, such as `resolution=[160]`, see `supernet.build`. The
            numbers of classes and channels are those of the file.

    Raises:
        UserError: if the file is missing, damaged, of another family, or has missing, unknown or wrongly shaped
            tensors; it names them.
    """
    imported = import_weights(path, family, **overrides)
    if imported.left_out:
        print(f"{path}: weights of {imported.family}; {imported.left_out}", file=sys.stderr)
    return imported.net


def import_weights(path: str | Path, family: str | None = None, **overrides: Any) -> Imported:
    """What `load_pretrained` returns, with what it found; prints nothing.

    Raises:
        UserError: see `load_pretrained`.
    """
    path = Path(path)
    weights = read_weights(path)
    layout = _layout(path, weights.tensors)
    tensors = _normalised(path, layout, weights.tensors)
    name = _family(path, layout, tensors, family)
    sizes = {"num_classes": tensors[layout.classifier].shape[0], "in_channels": tensors[layout.first].shape[1]}
    with torch.random.fork_rng(devices=[]):  # construction draws weights that are overwritten at once
        with torch.device("meta"):  # shapes alone: a file gets memory only for what it fits
            outline = build(name, **{**sizes, **overrides})
        track_statistics(outline.net)
        loaded, unused = _fitted(path, layout, outline, tensors, name)
        net = Supernet(outline.space)
    track_statistics(net.net)
    net.net.load_state_dict({**net.net.state_dict(), **loaded})
    return Imported(net, name, _left_out(weights, unused))


def _layout(path: Path, tensors: Mapping[str, Tensor]) -> Layout:
    for layout in LAYOUTS:
        if any(layout.normal(key).startswith(layout.mark) for key in tensors):
            return layout
    raise UserError(f"checkpoint {path} is of none of the known codes; it holds {some(list(tensors))}")


def _normalised(path: Path, layout: Layout, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by one spelling of their names, with the two that say how many classes and channels there are."""
    counts = Counter(layout.normal(key) for key in tensors)
    if twice := [key for key in tensors if counts[layout.normal(key)] > 1]:
        raise UserError(f"checkpoint {path} holds the same tensors under several names: {some(twice)}")
    normalised = {layout.normal(key): tensor for key, tensor in tensors.items()}
    ends = [layout.normal(key) for key in (layout.first, layout.classifier)]
    if missing := [key for key in ends if key not in normalised or not _has_sizes(normalised[key])]:
        raise UserError(f"checkpoint {path} lacks {some(missing)}")
    return normalised


def _has_sizes(tensor: Tensor) -> bool:
    return tensor.ndim >= 2 and tensor.numel() > 0


def _family(path: Path, layout: Layout, tensors: Mapping[str, Tensor], family: str | None) -> str:
    """The family to build: the given one unless the tensors tell that it is another."""
    found = layout.family(tensors)
    if family is None:
        if found is None:
            raise UserError(
                f"checkpoint {path}: {layout.first} has the shape {list(tensors[layout.first].shape)} of no known "
                "family; give family=, the name or YAML file of its space"
            )
        return found
    if SAME_SPACE.get(family, family) != found and SAME_SPACE.get(family, family) in FAMILIES:
        raise UserError(f"checkpoint {path} is not of family {family!r}: its tensors are those of {found or 'another'}")
    return family


def _fitted(
    path: Path, layout: Layout, net: Supernet, tensors: Mapping[str, Tensor], family: str
) -> tuple[dict[str, Tensor], Counter[str]]:
    """`tensors` by our names, in the shapes of the network's; and how many were not needed, by reason."""
    misfit = f"checkpoint {path} does not fit {family!r}"
    ours = net.net.state_dict()
    names = _names(misfit, layout, ours, tensors)
    blocks, used = blocks_of(ours), {layout.normal(key) for key in names.values()}
    reasons = {key: layout.unused(key, blocks) for key in tensors if key not in used}
    if unknown := [key for key, reason in reasons.items() if reason is None]:
        raise UserError(f"{misfit}: it has the unknown tensors {some(unknown)}")
    loaded, wrong = {}, []
    for name, key in names.items():
        shape = ours[name].shape
        loaded[name] = layout.fit(name, tensors[layout.normal(key)], shape, net.space.description)
        if loaded[name].shape != shape:
            wrong.append(f"{key} {list(loaded[name].shape)} where {list(shape)} is needed")
    if wrong:
        raise UserError(f"{misfit}: wrong shapes: {some(wrong)}")
    return loaded, Counter(reason for reason in reasons.values() if reason is not None)


def _names(misfit: str, layout: Layout, ours: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The original name of each of our tensors; the file has them all."""
    table = layout.table(ours)
    try:
        names = {name: original_name(name, table) for name in ours}
    except KeyError as error:
        raise UserError(f"{misfit}, whose layer {error} that code does not have") from None
    missing = {name: key for name, key in names.items() if layout.normal(key) not in tensors}
    # Files from before PyTorch 0.4.1 do not count batches, and nothing reads the number.
    if needed := [key for key in missing.values() if not key.endswith(".num_batches_tracked")]:
        raise UserError(f"{misfit}: it lacks {some(needed)}")
    return {name: key for name, key in names.items() if name not in missing}


def _left_out(weights: Weights, unused: Counter[str]) -> str:
    parts = [f"not needed: {number} {reason}" for reason, number in unused.items()]
    if weights.entries:
        parts.append(f"not read: {some(weights.entries)}")
    if weights.objects:
        parts.append(f"not run: objects of {some(weights.objects)}")
    return "; ".join(parts)
