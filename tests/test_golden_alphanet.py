"""The alphanet space against the numbers that the original AttentiveNAS/AlphaNet code computes.

Every weight is a deterministic function of its original name, so no checkpoint is needed: `golden/*` was produced
by the unmodified original with the same fill. Every eighth class is kept.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import supernet
from supernet.calibrate import track_statistics
from supernet.data import resize
from supernet.schedule import Cosine
from supernet.space import Arch

DATA = Path(__file__).parent / "data"
DEPTHS = (2, 5, 6, 6, 8, 8, 2)
LAYERS = {
    "expand": "mobile_inverted_conv.inverted_bottleneck",
    "depthwise": "mobile_inverted_conv.depth_conv",
    "project": "mobile_inverted_conv.point_linear",
}
HEAD = {
    "head.conv.conv.": "last_conv.final_expand_layer.conv.conv.",
    "head.conv.norm.": "last_conv.final_expand_layer.bn.bn.",
    "head.mix.conv.": "last_conv.feature_mix_layer.conv.conv.",
    "head.classifier.": "classifier.linear.linear.",
    "stem.conv.": "first_conv.conv.conv.",
    "stem.norm.": "first_conv.bn.bn.",
}


def original_name(key: str) -> str:
    """The name that AttentiveNAS gives to a tensor of ours."""
    for ours, theirs in HEAD.items():
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    _, stage, index, layer, *rest = key.split(".")
    block = f"blocks.{sum(DEPTHS[: int(stage)]) + int(index)}."
    if layer == "se":  # se.<reduce|expand>.conv.<weight|bias>
        return f"{block}mobile_inverted_conv.depth_conv.se.fc.{rest[0]}.{rest[2]}"
    if layer == "shortcut":
        return f"{block}shortcut.conv.conv.{rest[1]}"
    return f"{block}{LAYERS[layer]}.{'bn.bn' if rest[0] == 'norm' else 'conv.conv'}.{rest[1]}"


def filled(key: str, shape: torch.Size, tame: bool) -> Tensor:
    """The golden fill of one tensor, by the original name `key`. fp64 holding fp32 values."""
    normal = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(tuple(shape))
    last = key.rsplit(".", 1)[1]
    if last == "weight" and len(shape) >= 2:
        value = normal * np.sqrt(2 / np.prod(shape[1:]))
    elif last == "bias":
        value = 0.05 * normal
    elif last == "running_mean":
        value = 0.1 * normal
    else:
        value = 1 + 0.1 * (np.abs(normal) if last == "running_var" else normal)
    value = value.astype(np.float32)
    if tame and key.endswith(".point_linear.bn.bn.weight"):
        value *= np.float32(0.5)
    return torch.from_numpy(value.astype(np.float64))


def fill(net: supernet.Supernet, tame: bool) -> None:
    with torch.no_grad():
        for key, tensor in net.net.state_dict().items():
            if not key.endswith("num_batches_tracked"):
                tensor.copy_(filled(original_name(key), tensor.shape, tame))


def images(batch: int, side: int) -> Tensor:
    generator = np.random.Generator(np.random.PCG64(0))
    return torch.from_numpy(generator.standard_normal((batch, 3, side, side)).astype(np.float32)).double()


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with np.load(DATA / "alphanet_golden.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="module")
def archs() -> dict[str, Any]:
    return json.loads((DATA / "alphanet_archs.json").read_text())


@pytest.fixture(scope="module")
def net() -> supernet.Supernet:
    """The supernet in fp64, with running statistics, under the tame fill."""
    network = supernet.build("alphanet").double()
    track_statistics(network.net)
    fill(network, tame=True)
    return network


def arch_of(net: supernet.Supernet, archs: dict[str, Any], name: str) -> Arch:
    return net.space.from_json(archs[name]["arch"])


def relative_error(actual: Tensor, expected: np.ndarray) -> float:
    difference = actual.detach()[:, ::8].numpy() - expected
    return float(np.abs(difference).max() / np.abs(expected).max())


def test_every_weight_has_one_original(net: supernet.Supernet, golden: dict[str, Any]) -> None:
    parameters = {original_name(key): p for key, p in net.net.named_parameters()}
    assert len(parameters) == len(dict(net.net.named_parameters()))
    # All that the original trains, and the two shortcut convs that its largest subnet does not need.
    extra = set(parameters) - set(golden["train/max_grad_keys"].tolist())
    assert extra <= {"blocks.0.shortcut.conv.conv.weight"}
    assert set(golden["train/max_grad_keys"].tolist()) <= set(parameters)


@pytest.mark.parametrize("name", ["min", "attentive_nas_a1", "alphanet_a5_small", "random_02", "random_03"])
def test_eval_logits(net: supernet.Supernet, golden: dict[str, Any], archs: dict[str, Any], name: str) -> None:
    arch = arch_of(net, archs, name)
    with torch.no_grad():
        logits = net.eval()(images(2, net.space.resolution(arch)), arch)
    assert relative_error(logits, golden[f"fill_b/{name}"]) < 1e-11


def test_extracted_subnet_with_the_same_statistics(
    net: supernet.Supernet, golden: dict[str, Any], archs: dict[str, Any]
) -> None:
    arch = arch_of(net, archs, "random_02")
    subnet = net.space.module(net.space.plan(arch)).double()
    track_statistics(subnet)
    from supernet.slicing import copy_slices

    copy_slices(net.net, subnet)
    with torch.no_grad():
        logits = subnet.eval()(images(2, net.space.resolution(arch)))
    assert relative_error(logits, golden["fill_b/random_02"]) < 1e-11


def test_training_forward_on_resized_images(
    net: supernet.Supernet, golden: dict[str, Any], archs: dict[str, Any]
) -> None:
    for name in ("min", "random_00"):
        arch = arch_of(net, archs, name)
        with torch.no_grad():
            logits = net.train()(resize(images(4, 224), net.space.resolution(arch)), arch)
        assert relative_error(logits, golden[f"train/{name}"]) < 1e-10


def test_gradients_of_the_largest_subnet(net: supernet.Supernet, golden: dict[str, Any]) -> None:
    """Sum, norm, dot with cos(0, 1, ...) and number of non-zeros of every gradient."""
    net.zero_grad()
    logits = net.train()(resize(images(4, 224), 288))
    assert relative_error(logits, golden["train/max"]) < 1e-10
    loss = F.cross_entropy(logits, torch.tensor([0, 7, 14, 21]), label_smoothing=0.1)
    assert loss.item() == pytest.approx(float(golden["train/max_loss"]), rel=1e-12)
    loss.backward()
    gradients = {original_name(key): p.grad for key, p in net.net.named_parameters()}
    for key, expected in zip(golden["train/max_grad_keys"].tolist(), golden["train/max_grads"], strict=True):
        gradient = gradients[key]
        assert gradient is not None, key
        flat = gradient.flatten()
        cosines = torch.cos(torch.arange(flat.numel(), dtype=torch.float64))
        actual = torch.stack([flat.sum(), flat.norm(), flat @ cosines]).numpy()
        # Shifts that feed only further norms have a mathematically zero gradient: rounding is all there is.
        tolerance = 1e-7 * expected[1] * np.sqrt(flat.numel()) + 1e-12
        assert np.abs(actual - expected[:3]).max() < tolerance, key
    net.zero_grad()


def test_eval_logits_under_the_untamed_fill(
    golden: dict[str, Any], archs: dict[str, Any], net: supernet.Supernet
) -> None:
    fill(net, tame=False)
    try:
        arch = arch_of(net, archs, "min")
        with torch.no_grad():
            logits = net.eval()(images(2, 192), arch)
        assert relative_error(logits, golden["fill_a/min"]) < 1e-9
    finally:
        fill(net, tame=True)


def test_cosine_schedule() -> None:
    """The original computes in the same order of operations up to rounding."""
    for case in json.loads((DATA / "cosine_lr.json").read_text()):
        steps_per_epoch = int(case["iters_per_epoch"])
        schedule = Cosine(warmup_epochs=case["warmup_epochs"], warmup_start=0.001)
        total = steps_per_epoch * int(case["epochs"])
        ours = [case["base_lr"] * schedule(t, steps_per_epoch, total) for t in range(len(case["lr"]))]
        assert ours == pytest.approx(case["lr"], rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("case", ["c0", "c1"])
def test_losses(golden: dict[str, Any], case: str) -> None:
    """KL here is soft cross-entropy, and equal in gradient; the losses compute in fp32."""
    from supernet.distill import SoftCrossEntropy

    seed, student_scale, teacher_scale = {"c0": (1000, 1.0, 1.0), "c1": (1001, 3.0, 3.0)}[case]
    generator = np.random.Generator(np.random.PCG64(seed))
    student = torch.from_numpy(generator.standard_normal((16, 10)) * student_scale).requires_grad_()
    teacher = torch.from_numpy(generator.standard_normal((16, 10)) * teacher_scale)
    targets = torch.arange(16) % 10
    soft = SoftCrossEntropy()(student, teacher, targets).mean()
    smooth: nn.Module = nn.CrossEntropyLoss(label_smoothing=0.1)
    for name, loss in (("kl", soft), ("ce_smooth0.1", smooth(student, targets))):
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.item() == pytest.approx(float(golden[f"loss/{case}_{name}/loss"]), rel=1e-6)
        np.testing.assert_allclose(gradient.numpy(), golden[f"loss/{case}_{name}/grad"], atol=1e-7)
