"""Once-for-All's four spaces: logits, costs, one training step, calibration, sorting of channels."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.parity import specialised
from benchmarks.parity.golden import (
    LOGIT,
    VALUE,
    Numbers,
    State,
    error,
    fill_errors,
    gradient_errors,
    images,
    imported,
    load,
    names,
    original_state,
    read,
)
from benchmarks.parity.report import Report
from supernet.build import build
from supernet.calibrate import calibrate
from supernet.cost import cost
from supernet.net import Supernet
from supernet.pretrained.layout import Layout
from supernet.pretrained.ofa import OFA_MOBILE, OFA_RESNET
from supernet.sorting import sort_channels
from supernet.space import Arch

SPACES = {
    "mbv3_w1.0": "ofa_mbv3",
    "mbv3_w1.2": "ofa_mbv3_w12",
    "proxyless_w1.3": "ofa_proxyless",
    "resnet50": "ofa_resnet50",
}
SINGLE = 5e-4  # of the largest logit: where the original ran in fp32, whose noise in its largest networks is 4e-5
STATISTICS = 5e-5  # of a layer's largest: the original's are in fp32; ours in fp32 are up to 1.6e-5 from ours in fp64
# Of a gradient's norm. The original's step ran in fp32, where a relu near 0 may switch: in fp64, images that are 1e-6
# off change norms by up to 7e-3, those that are 1e-7 off by 2e-3, but those that are 1e-12 off by 4e-11.
STEP, TYPICAL = 5e-3, 5e-4
NOISE = 1e-5  # the norm of gradients that are zero in exact arithmetic


def compare(golden: Path, data: Path, report: Report) -> None:
    """Compare with all files of `golden/ofa`, and with the lists of published subnets in `data`."""
    for original, family in SPACES.items():
        files = golden / "ofa" / original
        listing = _file(files, "state_dict.json")
        state = original_state(listing)
        report.add(f"{family}: filled weights, sums", fill_errors(listing, state), 1e-9, "absolute")
        net = imported(state, family)
        layout = OFA_RESNET if original == "resnet50" else OFA_MOBILE
        _space(net, layout, state, files, report)
    _rows(read(data / "ofa_mbv3_w1.0_imagenet_top1.json"), report)
    specialised.compare(read(data / "ofa_specialized_nets.json"), report)


def _space(net: Supernet, layout: Layout, state: State, files: Path, report: Report) -> None:
    """All of one space; the files begin with the path `files`."""
    entries = {entry["tag"]: entry for entry in read(_file(files, "archs.json"))["archs"]}
    archs = {tag: arch_of(net, entry) for tag, entry in entries.items()}
    _costs(net, archs, entries, files, report)
    _logits(net, archs, load(_file(files, "logits.npz")), report)
    _sorted(net, entries, load(_file(files, "reorganized.npz")), report)
    _step(net, layout, state, files, report)
    _calibration(net, layout, state, entries["rand00"], load(_file(files, "bn_calibrated_rand00.npz")), report)


def arch_of(net: Supernet, entry: Mapping[str, Any], side: int | None = None) -> Arch:
    """The arch of an entry of the golden files, under the original's names of the keys."""
    return net.space.from_json({**entry["arch"], "image_size": side or entry["image_size"]})


def _file(files: Path, suffix: str) -> Path:
    return files.with_name(f"{files.name}.{suffix}")


def _costs(net: Supernet, archs: Mapping[str, Arch], entries: Mapping[str, Any], files: Path, report: Report) -> None:
    name, ours = net.space.name, {tag: cost(net.space.plan(arch)) for tag, arch in archs.items()}
    report.equal(f"{name}: MACs", {t: (ours[t].macs, e["macs_torch_flop_counter"]) for t, e in entries.items()})
    report.equal(f"{name}: parameters", {t: (ours[t].params, e["params_static_subnet"]) for t, e in entries.items()})
    shapes = {}
    for tag in ("min", "max", "rand00"):
        theirs = [(e["key"].rsplit(".", 1)[1], e["shape"]) for e in read(_file(files, f"static_{tag}.state_dict.json"))]
        tensors = net.extract(archs[tag]).state_dict()
        mine = [(key.rsplit(".", 1)[1], list(tensor.shape)) for key, tensor in tensors.items()]
        shapes[tag] = (sorted(mine), sorted(theirs))
    report.equal(f"{name}: shapes of extracted tensors", shapes)


@torch.no_grad()
def _logits(net: Supernet, archs: Mapping[str, Arch], golden: Numbers, report: Report) -> None:
    """Eval mode with the file's statistics, and training mode; extracted subnets compute the same bit for bit."""
    single = copy.deepcopy(net).float()
    modes = {"eval": (2, ""), "train": (8, "train_")}
    for mode, (count, prefix) in modes.items():
        double, simple, outside = {}, {}, {}
        for row, tag in enumerate(golden["tags"].tolist()):
            batch, arch = images(count, int(golden["image_size"][row])), archs[tag]
            logits = net.train(mode == "train")(batch, arch)
            double[tag] = error(logits, golden[f"{prefix}logits_f64"][row])
            outside[tag] = (net.extract(arch).train(mode == "train")(batch) - logits).abs().max().item()
            logits = single.train(mode == "train")(batch.float(), arch)
            simple[tag] = error(logits, golden[f"{prefix}logits"][row])
        net.eval()
        name = net.space.name
        report.add(f"{name}: logits, {mode} mode, fp64", double, 1e-9, LOGIT)
        report.add(f"{name}: logits, {mode} mode, fp32", simple, SINGLE, LOGIT)
        report.add(f"{name}: extracted = inside the supernet, {mode} mode, fp64", outside, 0.0, "absolute")


@torch.no_grad()
def _sorted(net: Supernet, entries: Mapping[str, Any], golden: Numbers, report: Report) -> None:
    errors = {}
    for stage in range(3):
        other = copy.deepcopy(net)
        sort_channels(other, stage)
        for tag in ("min", "max", "rand00"):
            logits = other(images(2, 128), arch_of(net, entries[tag], 128))
            errors[f"stage {stage}, {tag}"] = error(logits, golden[f"stage{stage}_{tag}"])
    report.add(f"{net.space.name}: logits after sorting channels", errors, SINGLE, LOGIT)


def _step(net: Supernet, layout: Layout, state: State, files: Path, report: Report) -> None:
    """Loss and gradients of one batch, and the running statistics that its forward pass leaves in the subnet."""
    golden, name = read(_file(files, "train_step_rand00.json")), net.space.name
    arch = arch_of(net, golden)
    batch, targets = images(golden["batch"], golden["image_size"]), torch.tensor(golden["labels"])
    loss = F.cross_entropy(net.train()(batch, arch), targets)
    loss.backward()
    report.add(f"{name} step: loss", {"rand00": abs(loss.item() / golden["loss"] - 1)}, 1e-5, "relative")
    values, counts = gradient_errors(net, layout, golden["grads"], NOISE)
    net.zero_grad()
    report.add(f"{name} step: norm and sum of gradients", values, STEP, "its norm")
    report.add(f"{name} step: the same, median", {"median": float(np.median([*values.values()]))}, TYPICAL, "its norm")
    report.add(f"{name} step: non-zeros of gradients", counts, 1e-3, "relative")
    subnet = net.extract(arch).train()
    with torch.no_grad():
        subnet(batch)
    net.eval()
    errors = _statistics(subnet, net, layout, state, load(_file(files, "train_step_rand00.running.npz")))
    report.add(f"{name} step: running statistics", errors, STATISTICS, VALUE)


def _calibration(
    net: Supernet, layout: Layout, state: State, entry: Mapping[str, Any], golden: Numbers, report: Report
) -> None:
    arch = arch_of(net, entry, 128)
    subnet = calibrate(net.extract(arch), images(24, 128, seed=1).split([16, 8]))
    with torch.no_grad():
        logits = {"rand00": error(subnet(images(2, 128)), golden.pop("logits_after"))}
    errors = _statistics(subnet, net, layout, state, golden)
    report.add(f"{net.space.name}: calibrated statistics", errors, STATISTICS, VALUE)
    report.add(f"{net.space.name}: logits after calibration", logits, SINGLE, LOGIT)


def _statistics(
    subnet: torch.nn.Module, net: Supernet, layout: Layout, state: State, golden: Numbers
) -> dict[str, float]:
    """The original keeps those of a subnet in the leading channels of the supernet's; the others stay filled."""
    theirs = names(net.net, layout)
    found = {theirs[key]: tensor for key, tensor in subnet.named_buffers()}
    errors = {}
    for key, expected in golden.items():
        ours = state[key].double()
        if key in found:
            ours = torch.cat([found[key].double().reshape(-1), ours.reshape(-1)[found[key].numel() :]]).view(ours.shape)
        errors[key] = error(ours, expected)
    return errors


def _rows(rows: list[dict[str, Any]], report: Report) -> None:
    """The subnets with published accuracies, priced as a population."""
    with torch.device("meta"):
        space = build("ofa_mbv3").space
    keys = ("resolution", "depth", "kernel", "expand")
    genes = np.array([space.encode(space.from_json({key: row[key] for key in keys})) for row in rows])
    macs, params = cost.batch(space, genes)
    for what, ours, key in (("MACs", macs, "macs"), ("parameters", params, "params")):
        pairs = {f"row {i}": (int(value), row[key]) for i, (value, row) in enumerate(zip(ours, rows, strict=True))}
        report.equal(f"ofa_mbv3: {what} of the published subnets", pairs)
