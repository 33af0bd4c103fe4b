"""AttentiveNAS and AlphaNet: one space. Logits, costs, activations, and all that its training computes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.parity.golden import (
    LOGIT,
    Numbers,
    State,
    error,
    images,
    imported,
    load,
    names,
    original_state,
    read,
)
from benchmarks.parity.report import Report
from supernet.cost import cost
from supernet.data.base import resize
from supernet.distill import AlphaDivergence, SoftCrossEntropy, alpha_divergences
from supernet.net import Supernet
from supernet.optim import parameter_groups
from supernet.pretrained.alphanet import ALPHANET
from supernet.pretrained.layout import blocks_of
from supernet.samplers.base import Role, Slot
from supernet.schedule import Cosine
from supernet.space import Arch
from supernet.step import accumulate, update

Archs = dict[str, Arch]
Print = list[float] | None  # sum, norm, dot with cos(0, 1, ...) and number of non-zeros of a tensor


def compare(golden: Path, data: Path, report: Report) -> None:
    """Compare with all files of `golden/alphanet`."""
    folder = golden / "alphanet"
    wild = original_state(folder / "state_dict.json")
    spots = read(folder / "fill_spotcheck.json")
    sums = {key: abs(wild[key].double().sum().item() - spot["sum"]) for key, spot in spots.items()}
    report.add("AlphaNet: filled weights, sums", sums, 1e-9, "absolute")
    entries = read(folder / "archs.json")["archs"]
    net = imported(wild, "alphanet")
    archs = {name: net.space.from_json(entry["arch"]) for name, entry in entries.items()}
    _costs(net, archs, entries, report)
    _logits("fill A, fp64", net, archs, load(folder / "logits_eval_fp64.npz"), 1e-9, report)
    _logits("fill A, fp32 (its own noise: 4e-3)", net.float(), archs, load(folder / "logits_eval.npz"), 1e-2, report)
    net = imported(original_state(folder / "state_dict.json", tame=True), "alphanet")  # small enough for fp32
    _logits("fill B, fp64", net, archs, load(folder / "logits_eval_tame_fp64.npz"), 1e-9, report)
    _extracted(net, archs, report)
    _probes(net, archs, read(folder / "probes_eval.json"), report)
    single = copy.deepcopy(net).float()
    _logits("fill B, fp32", single, archs, load(folder / "logits_eval_tame.npz"), 5e-5, report)
    _logits("224 px resized, fp32", single, archs, load(folder / "logits_eval_tame_resize224.npz"), 5e-5, report, 224)
    _groups(net, read(folder / "param_groups.json"), report)
    _sandwich(net, archs, folder, report)
    _divergences(read(folder / "alpha_divergence_cases.json"), load(folder / "alpha_divergence.npz"), report)
    _schedule(read(folder / "lr_schedule.json"), report)


def _costs(net: Supernet, archs: Archs, entries: Mapping[str, Any], report: Report) -> None:
    ours = {name: cost(net.space.plan(arch)) for name, arch in archs.items()}
    macs = {name: (ours[name].macs, round(entry["mflops"] * 1e6)) for name, entry in entries.items()}
    report.equal("AlphaNet: MACs", macs)
    params = {name: (ours[name].params, entry["params_used_in_forward"]) for name, entry in entries.items()}
    report.equal("AlphaNet: parameters that are used", params)


@torch.no_grad()
def _logits(
    what: str, net: Supernet, archs: Archs, golden: Numbers, limit: float, report: Report, side: int | None = None
) -> None:
    """`side`: that of the images, px, which are then resized; None: that of the subnet."""
    errors, precision = {}, next(net.parameters()).dtype
    for name, expected in golden.items():
        resolution = net.space.resolution(archs[name])
        batch = resize(images(2, side or resolution).to(precision), resolution)
        errors[name] = error(net(batch, archs[name]), expected)
    report.add(f"AlphaNet: logits, {what}", errors, limit, LOGIT)


@torch.no_grad()
def _extracted(net: Supernet, archs: Archs, report: Report) -> None:
    errors = {}
    for name, arch in archs.items():
        batch = images(2, net.space.resolution(arch))
        errors[name] = (net(batch, arch) - net.extract(arch)(batch)).abs().max().item()
    report.add("AlphaNet: extracted = inside the supernet, fp64", errors, 0.0, "absolute")


@torch.no_grad()
def _probes(net: Supernet, archs: Archs, golden: Mapping[str, Any], report: Report) -> None:
    """Shape, mean, deviation and eight values of every module's output, which the original took in fp32."""
    modules = {"stem": "first_conv", "head.conv": "last_conv.final_expand_layer"}
    modules["head.mix"] = "last_conv.feature_mix_layer"
    for i, block in enumerate(blocks_of(net.net.state_dict())):
        modules |= {block: f"blocks.{i}", f"{block}.project": f"blocks.{i}.mobile_inverted_conv"}
    errors = {}
    for tag, probes in golden.items():
        seen: State = {}
        hooks = [net.net.get_submodule(key).register_forward_hook(_keep(seen, name)) for key, name in modules.items()]
        seen["classifier"] = net(images(2, net.space.resolution(archs[tag])), archs[tag])
        for hook in hooks:
            hook.remove()
        for block in [name for name in seen if f"{name}.mobile_inverted_conv" in seen]:
            seen[f"{block}.shortcut"] = seen[block] - seen[f"{block}.mobile_inverted_conv"]
        if set(seen) != {probe["module"] for probe in probes}:
            errors[f"{tag}, which modules run"] = float("inf")
        for probe in probes:
            errors[f"{tag}, {probe['module']}"] = _probe_error(seen[probe["module"]], probe)
    report.add("AlphaNet: output of every module", errors, 5e-5, "its deviation")


def _keep(seen: State, name: str) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen[name] = output

    return hook


def _probe_error(output: Tensor, probe: Mapping[str, Any]) -> float:
    if list(output.shape) != probe["shape"]:
        return float("inf")
    first = output.flatten()[: len(probe["first8"])] - torch.tensor(probe["first8"], dtype=output.dtype)
    deviation = output.std().item()
    differences = (first.abs().max().item(), abs(output.mean().item() - probe["mean"]), abs(deviation - probe["std"]))
    return max(differences) / probe["std"]


def _groups(net: Supernet, golden: list[dict[str, Any]], report: Report) -> None:
    original = {key: group["weight_decay"] for group in golden for key in group["keys"]}
    table = names(net.net, ALPHANET)
    theirs = {id(parameter): table[key] for key, parameter in net.net.named_parameters()}
    ours = {theirs[id(p)]: group["weight_decay"] for group in parameter_groups(net, 1e-5) for p in group["params"]}
    report.equal("AlphaNet: weight decay of every parameter", {key: (ours[key], original[key]) for key in ours})


def _sandwich(net: Supernet, archs: Archs, folder: Path, report: Report) -> None:
    """One whole training step, by the project's own code; the weights of `net` change.

    The losses are called between a forward and its backward pass, so they see what has accumulated.
    """
    golden, arrays = read(folder / "sandwich_step_fp64.json"), load(folder / "sandwich_step_fp64.npz")
    theirs = names(net.net, ALPHANET)
    parameters = {theirs[key]: parameter for key, parameter in net.net.named_parameters()}
    order: list[str] = golden["order"]
    logits: State = {}
    prints: list[dict[str, Print]] = []
    divergence = AlphaDivergence()

    def label_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        logits[order[0]] = outputs.detach()
        return F.cross_entropy(outputs, targets, label_smoothing=0.1)

    def distill(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        prints.append(_gradients(parameters))
        logits[order[len(logits)]] = student.detach()
        return divergence(student, teacher, targets)

    roles: dict[str, Role] = {"max": "largest", "min": "smallest"}
    slots = [Slot(archs[name], roles.get(name, "random")) for name in order]
    batch, targets = images(golden["batch"], golden["input_size"]), torch.tensor(golden["target"])
    losses = accumulate(net.train(), batch, targets, slots, label_loss, distill)
    prints.append(_gradients(parameters))
    optimizer = torch.optim.SGD(parameter_groups(net, 1e-5), lr=1.0, momentum=0.9, nesterov=True)
    optimizer.register_step_pre_hook(lambda *_: prints.append(_gradients(parameters)))
    update(optimizer, lr=0.1, clip_value=0.01)

    report.add("AlphaNet step: logits", {n: error(logits[n], arrays[f"logits/{n}"]) for n in order}, 1e-9, LOGIT)
    errors = {n: abs(loss.item() / golden["losses"][n] - 1) for n, loss in zip(order, losses, strict=True)}
    report.add("AlphaNet step: losses", errors, 1e-9, "relative")
    after = [*golden["grad_accumulated"].values(), golden["grad_after_value_clip_0p01"]]
    labels = [*(f"gradients after pass {i + 1}" for i in range(len(order))), "clipped gradients"]
    sizes = {key: parameter.numel() for key, parameter in parameters.items()}
    for label, ours, expected in zip(labels, prints, after, strict=True):
        limit = 1e-9 if label.startswith("clipped") else 2e-8
        _add_prints(label, ours, expected, sizes, limit, report)
    updated = {key: _print(parameter) for key, parameter in parameters.items()}
    _add_prints("weights after the update", updated, golden["param_after_sgd_lr0p1"], sizes, 1e-9, report)


def _gradients(parameters: Mapping[str, nn.Parameter]) -> dict[str, Print]:
    return {key: None if p.grad is None else _print(p.grad) for key, p in parameters.items()}


def _print(tensor: Tensor) -> Print:
    flat = tensor.detach().flatten()
    cosines = torch.cos(torch.arange(len(flat), dtype=torch.float64))
    return [flat.sum().item(), flat.norm().item(), (flat @ cosines).item(), float(flat.count_nonzero())]


def _add_prints(
    what: str,
    ours: Mapping[str, Print],
    golden: Mapping[str, Print],
    sizes: Mapping[str, int],
    limit: float,
    report: Report,
) -> None:
    """Relative to each tensor's norm, sums of n numbers to sqrt(n) times it; absolute where the true value is zero.

    What our supernet lacks are shortcuts that no subnet can use: the original has no gradient for them.
    """
    values, zeros, counts = {}, {}, {}
    missing = {key for key in golden if key not in ours}
    if any(not key.endswith(".shortcut.conv.conv.weight") for key in missing):
        raise ValueError(f"parameters differ: {sorted(missing)[:5]}")
    nothing = [0.0] * 4
    for key in ours:
        got, expected = np.array(ours[key] or nothing), np.array(golden[key] or nothing)
        difference, norm = np.abs(got - expected)[:3], expected[1]
        if norm < 1e-12:  # shifts of norms that feed only further norms
            zeros[key] = float(difference.max())
            continue
        values[key] = float((difference / norm / np.array([sizes[key] ** 0.5, 1, sizes[key] ** 0.5])).max())
        counts[key] = (int(got[3]), int(expected[3]))
    report.add(f"AlphaNet step: {what}", values, limit, "its norm")
    if zeros:
        report.add(f"AlphaNet step: {what}, where zero", zeros, 1e-12, "absolute")
    report.equal(f"AlphaNet step: {what}, non-zeros", counts)


def _divergences(cases: list[dict[str, Any]], golden: Numbers, report: Report) -> None:
    """Losses, gradients, both divergences and surrogates of every image, and which one is taken; KL and labels."""
    values: dict[str, float] = {}
    taken: dict[str, tuple[Any, Any]] = {}
    others: dict[str, float] = {}
    for case in cases:
        key, alphas = case["name"], (case["alpha_min"], case["alpha_max"])
        rng = np.random.Generator(np.random.PCG64(case["seed"]))
        draw = partial(rng.standard_normal, (case["B"], case["C"]))
        student = torch.from_numpy(draw() * case["student_scale"]).requires_grad_()
        teacher = torch.from_numpy(draw() * case["teacher_scale"])
        labels = torch.arange(case["B"]) % case["C"]
        low, high = alpha_divergences(student, teacher, *alphas, case["iw_clip"])
        loss = AlphaDivergence(*alphas, case["iw_clip"])(student, teacher, labels).mean()
        single = [AlphaDivergence(a, a, case["iw_clip"])(student, teacher, labels) for a in alphas]
        results = {
            "loss": loss,
            "div_min": low,
            "div_max": high,
            "surrogate_min": single[0],
            "surrogate_max": single[1],
        }
        results["grad"] = torch.autograd.grad(loss, student, retain_graph=True)[0]
        for name, result in results.items():
            values[f"{key}/{name}"] = _absolute(result, golden[f"{key}/{name}"])
        selected = (low > high).tolist()
        taken[key] = (selected, (golden[f"{key}/div_min"] > golden[f"{key}/div_max"]).tolist())
        smooth = F.cross_entropy(student, labels, label_smoothing=0.1)
        soft = SoftCrossEntropy()(student, teacher, labels).mean()
        for name, loss in (("kl", soft), ("ce_smooth0.1", smooth)):
            other = f"{key.split('_')[0]}_{name}"
            (grad,) = torch.autograd.grad(loss, student)
            others[f"{other}/loss"] = _absolute(loss, golden[f"{other}/loss"])
            others[f"{other}/grad"] = _absolute(grad, golden[f"{other}/grad"])
    report.add(
        "alpha-divergence: loss, gradient, divergences, surrogates", values, 1e-10, "absolute, or relative above 1"
    )
    report.equal("alpha-divergence: which of the two is taken", taken)
    report.add("KL and label smoothing: loss, gradient", others, 1e-10, "absolute, or relative above 1")
    report.equal("alpha-divergence: not finite, fp32, logits to 1e4 apart", _extremes())


def _absolute(actual: Tensor, expected: Any) -> float:
    difference = np.abs(actual.detach().numpy() - expected) / np.maximum(1, np.abs(expected))
    return float(difference.max())


def _extremes() -> dict[str, tuple[int, int]]:
    """How many values and gradients are not finite; none should be."""
    found = {}
    for gap in (12.0, 18.0, 90.0, 104.0, 1e3, 1e4):
        for alphas in ((-1.0, 1.0), (0.0, 1.0), (-0.5, 0.5), (-2.0, 2.0), (0.5, 2.0)):
            ends = torch.tensor([[0.0, gap / 3, gap], [gap, 0.0, gap - 1], [gap, gap / 2, 0.0]])
            student = ends.repeat(3, 1).requires_grad_()
            loss = AlphaDivergence(*alphas)(student, ends.repeat_interleave(3, 0), torch.empty(0))
            (grad,) = torch.autograd.grad(loss.sum(), student)
            wrong = int((~loss.isfinite()).sum() + (~grad.isfinite()).sum())
            found[f"gap {gap:.0f}, alphas {alphas}"] = (wrong, 0)
    return found


def _schedule(golden: Mapping[str, list[float]], report: Report) -> None:
    errors = {}
    for text, rates in golden.items():
        case = {key: float(value) for key, value in (part.split("=") for part in text.split(","))}
        per_epoch, total = int(case["iters_per_epoch"]), int(case["iters_per_epoch"] * case["epochs"])
        schedule = Cosine(warmup_epochs=case["warmup_epochs"], warmup_start=0.001)
        for step, rate in enumerate(rates):
            ours = case["base_lr"] * schedule(step, per_epoch, total)
            errors[f"{text}, step {step}"] = abs(ours - rate) / case["base_lr"]
    report.add("AlphaNet: learning rate of every step", errors, 1e-12, "base rate")
