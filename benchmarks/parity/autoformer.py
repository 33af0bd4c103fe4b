"""AutoFormer: three spaces and three variants. Logits, costs and gradients."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.parity.golden import (
    LOGIT,
    Numbers,
    error,
    fill_errors,
    gradient_errors,
    images,
    imported,
    load,
    original_state,
    read,
)
from benchmarks.parity.report import Report
from supernet.cost import cost
from supernet.net import Supernet
from supernet.pretrained.autoformer import AUTOFORMER
from supernet.space import Arch

SUFFIX = ".archs.json"
DOUBLE = 1e-6  # of the largest logit: the original computes GELU in fp32 also in a float64 network
SINGLE = 1e-5


def compare(golden: Path, data: Path, report: Report) -> None:
    """Compare with all files of `golden/autoformer`."""
    folder = golden / "autoformer"
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        name, golden_archs = path.name.removesuffix(SUFFIX), read(path)
        listing = folder / f"{name}.state_dict.json"
        state = original_state(listing)
        report.add(f"{name}: filled weights, sums", fill_errors(listing, state), 1e-9, "absolute")
        net = imported(state, "_".join(name.split("_")[:2]), **overrides(golden_archs))
        entries = {entry["tag"]: entry for entry in golden_archs["archs"]}
        archs = {tag: net.space.from_json(entry["arch"]) for tag, entry in entries.items()}
        _costs(name, net, archs, entries, golden_archs["options"]["abs_pos"], report)
        _logits(name, net, archs, load(folder / f"{name}.logits.npz"), report)
        gradients = folder / f"{name}.grads_rand00.json"
        if gradients.is_file():
            _gradients(name, net, read(gradients), report)


def overrides(golden: Mapping[str, Any]) -> dict[str, Any]:
    """The space that the original was run with: its options, and choices that include those of all its archs.

    A published subnet has MLP ratios outside its own space.
    """
    chosen, made = golden["options"], golden["search_choices"]
    result = {key: set(made[key]) for key in ("embed_dim", "num_heads", "mlp_ratio")}
    for entry in golden["archs"]:
        for key, values in result.items():
            values.update(entry["arch"][key])
    return {
        **{key: sorted(values) for key, values in result.items()},
        "layer_num": made["depth"],
        "pool": "mean_patches" if chosen["gp"] else "cls",
        "relative_position": chosen["max_relative_position"] if chosen["relative_position"] else None,
        "qkv": "elastic" if chosen["change_qkv"] else "fixed",
        "abs_pos": chosen["abs_pos"],
        "pre_norm": chosen["pre_norm"],
        "scale": chosen["scale"],
    }


def _costs(
    name: str, net: Supernet, archs: Mapping[str, Arch], entries: Mapping[str, Any], positions: bool, report: Report
) -> None:
    """The original's counter of parameters also counts positions where there are none."""
    ours = {tag: cost(net.space.plan(arch)) for tag, arch in archs.items()}
    report.equal(f"{name}: MACs", {t: (ours[t].macs, e["macs_torch_flop_counter"]) for t, e in entries.items()})
    tokens = 0 if positions else 14**2 + 1
    expected = {tag: entry["params_peer"] - tokens * entry["arch"]["embed_dim"][0] for tag, entry in entries.items()}
    report.equal(f"{name}: parameters", {tag: (ours[tag].params, params) for tag, params in expected.items()})


@torch.no_grad()
def _logits(name: str, net: Supernet, archs: Mapping[str, Arch], golden: Numbers, report: Report) -> None:
    """In both precisions; extracted subnets compute the same bit for bit."""
    batch, single = images(2, 224), copy.deepcopy(net).float()
    double, simple, outside = {}, {}, {}
    for row, tag in enumerate(golden["tags"].tolist()):
        logits = net(batch, archs[tag])
        double[tag] = error(logits, golden["logits_f64"][row])
        outside[tag] = (net.extract(archs[tag])(batch) - logits).abs().max().item()
        simple[tag] = error(single(batch.float(), archs[tag]), golden["logits"][row])
    report.add(f"{name}: logits, fp64", double, DOUBLE, LOGIT)
    report.add(f"{name}: logits, fp32", simple, SINGLE, LOGIT)
    report.add(f"{name}: extracted = inside the supernet, fp64", outside, 0.0, "absolute")


def _gradients(name: str, net: Supernet, golden: Mapping[str, Any], report: Report) -> None:
    """The original's are in fp32, where a few are zero by chance.

    Of keys' biases many are: one bias for all keys changes no softmax, so rounding is all there is.
    """
    logits = net.eval()(images(2, 224), net.space.from_json(golden["arch"]))
    loss = F.cross_entropy(logits, torch.tensor(golden["labels"]))
    loss.backward()
    report.add(f"{name}: loss", {"rand00": abs(loss.item() / golden["loss"] - 1)}, 1e-6, "relative")
    values, counts = gradient_errors(net, AUTOFORMER, golden["grads"], noise=1e-8)
    report.add(f"{name}: norm and sum of gradients", values, 2e-5, "its norm")
    counts = {key: count for key, count in counts.items() if not key.endswith(".qkv.bias")}
    report.add(f"{name}: non-zeros of gradients", counts, 1e-3, "relative")
