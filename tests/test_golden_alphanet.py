"""The alphanet space against the numbers that the original AttentiveNAS/AlphaNet code computes.

Every weight is a deterministic function of its original name, so no checkpoint is needed: `alphanet_*.npz` was
produced by the unmodified original with the same fill. Every eighth class is kept.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import DATA, images, imported, names, relative_error
from numpy.typing import NDArray
from torch import Tensor

import supernet
from supernet.calibrate import track_statistics
from supernet.data import resize
from supernet.distill import AlphaDivergence, SoftCrossEntropy
from supernet.optim import parameter_groups
from supernet.pretrained.alphanet import ALPHANET
from supernet.samplers.base import Role, Slot
from supernet.schedule import Cosine
from supernet.slicing import copy_slices
from supernet.space import Arch
from supernet.step import accumulate, update

ARCHS: dict[str, Any] = json.loads((DATA / "alphanet_archs.json").read_text())
STEP: dict[str, Role] = {"max": "largest", "random_00": "random", "random_01": "random", "min": "smallest"}
Numbers = dict[str, NDArray[Any]]


def load(name: str) -> Numbers:
    with np.load(DATA / name) as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="module")
def golden() -> Numbers:
    return load("alphanet_golden.npz")


@pytest.fixture(scope="module")
def golden_step() -> Numbers:
    return load("alphanet_sandwich.npz")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> supernet.Supernet:
    """The supernet in fp64, with running statistics, under the tame fill."""
    return imported("alphanet", tmp_path_factory.mktemp("original"), tame=True)


@pytest.fixture(scope="module")
def single(net: supernet.Supernet) -> supernet.Supernet:
    """The same in fp32."""
    return copy.deepcopy(net).float().eval()


def arch_of(net: supernet.Supernet, name: str) -> Arch:
    return net.space.from_json(ARCHS[name]["arch"])


def test_weights_have_one_original_each(net: supernet.Supernet, golden_step: Numbers) -> None:
    """All that the original trains: its 30 shortcut convs that no subnet can use do not exist here."""
    table = names(net.net, ALPHANET)
    used = [table[key] for key, _ in net.net.named_parameters()]
    assert sorted(used) == sorted(golden_step["names"][golden_step["used"]].tolist())
    assert len(used) == len(golden_step["names"]) - 30


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHS)
def test_eval_logits(net: supernet.Supernet, single: supernet.Supernet, golden: Numbers, name: str) -> None:
    arch, row = arch_of(net, name), golden["names"].tolist().index(name)
    batch = images(2, net.space.resolution(arch))
    assert relative_error(net.eval()(batch, arch), golden["tame_fp64"][row]) < 1e-11
    logits = single(batch.float(), arch)
    assert logits.dtype == torch.float32
    assert relative_error(logits, golden["tame_fp32"][row]) < 5e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["attentive_nas_a0", "attentive_nas_a4", "attentive_nas_a6", "max"])
def test_eval_logits_of_resized_images(single: supernet.Supernet, golden: Numbers, name: str) -> None:
    """From 224 pixels down to 192 and up to 288, in fp32."""
    arch = arch_of(single, name)
    batch = resize(images(2, 224).float(), single.space.resolution(arch))
    assert relative_error(single(batch, arch), golden[f"resized_fp32/{name}"]) < 5e-5


@torch.no_grad()
def test_eval_logits_under_the_untamed_fill(golden: Numbers, tmp_path: Path) -> None:
    net = imported("alphanet", tmp_path).eval()
    for name in ("min", "random_03", "max"):
        arch = arch_of(net, name)
        logits = net(images(2, net.space.resolution(arch)), arch)
        assert relative_error(logits, golden[f"untamed_fp64/{name}"]) < 1e-9, name


@torch.no_grad()
def test_extracted_subnet_with_the_same_statistics(net: supernet.Supernet, golden: Numbers) -> None:
    arch = arch_of(net, "random_02")
    subnet = net.space.module(net.space.plan(arch)).double()
    track_statistics(subnet)
    copy_slices(net.net, subnet)
    logits = subnet.eval()(images(2, net.space.resolution(arch)))
    assert relative_error(logits, golden["tame_fp64"][golden["names"].tolist().index("random_02")]) < 1e-11


class Step(NamedTuple):
    """What one sandwich step computed; prints are [tensors, 4], see `prints`."""

    logits: list[Tensor]
    losses: list[Tensor]
    gradients: list[NDArray[Any]]  # accumulated, after each pass
    clipped: NDArray[Any]
    updated: NDArray[Any]


def prints(tensors: dict[str, Tensor], keys: list[str]) -> NDArray[Any]:
    """Sum, norm, dot with cos(0, 1, ...) and number of non-zeros of each tensor, in the order of `keys`."""
    cosines = torch.cos(torch.arange(max(t.numel() for t in tensors.values()), dtype=torch.float64))
    rows = []
    for name in keys:
        flat = tensors[name].detach().flatten()
        rows.append([flat.sum(), flat.norm(), flat @ cosines[: flat.numel()], flat.count_nonzero()])
    return np.array(rows, dtype=np.float64)


@pytest.fixture(scope="module")
def step(net: supernet.Supernet, golden_step: Numbers, used: list[str]) -> Step:
    """The whole step by the project's own code: the losses are called between a forward and its backward pass."""
    network, table = copy.deepcopy(net).train(), names(net.net, ALPHANET)
    parameters: dict[str, Tensor] = {table[key]: p for key, p in network.net.named_parameters()}
    logits: list[Tensor] = []
    seen: list[NDArray[Any]] = []
    divergence = AlphaDivergence()

    def gradients() -> NDArray[Any]:
        grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}
        return prints(grads, used)

    def label_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        logits.append(outputs.detach())
        return F.cross_entropy(outputs, targets, label_smoothing=0.1)

    def distill(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        seen.append(gradients())
        logits.append(student.detach())
        return divergence(student, teacher, targets)

    slots = [Slot(arch_of(network, name), role) for name, role in STEP.items()]
    losses = accumulate(network, images(4, 224), torch.tensor([0, 7, 14, 21]), slots, label_loss, distill)
    seen.append(gradients())
    clipped: list[NDArray[Any]] = []
    optimizer = torch.optim.SGD(parameter_groups(network, 1e-5), lr=1.0, momentum=0.9, nesterov=True)
    optimizer.register_step_pre_hook(lambda *_: clipped.append(gradients()))
    update(optimizer, lr=0.1, clip_value=0.01)
    return Step(logits, losses, seen, clipped[0], prints(parameters, used))


@pytest.mark.parametrize("place", range(4), ids=STEP)
def test_logits_and_losses_of_a_sandwich_step(step: Step, golden_step: Numbers, place: int) -> None:
    """On batch statistics, each subnet at its own resolution; label smoothing for the largest, then distillation."""
    assert len(step.logits) == len(step.losses) == 4
    assert relative_error(step.logits[place], golden_step["logits"][place]) < 1e-10
    assert step.losses[place].item() == pytest.approx(float(golden_step["losses"][place]), rel=1e-10)


def assert_same_gradients(actual: NDArray[Any], expected: NDArray[Any], sizes: NDArray[Any], keys: list[str]) -> None:
    """Within 2e-8 of each tensor's norm.

    A sum of n entries then differs by at most sqrt(n) as much. Shifts of norms that feed only further norms have a
    mathematically zero gradient: rounding is all there is.
    """
    norms = np.nan_to_num(expected[:, 1])  # the original leaves out what the passes so far did not use
    zero = norms < 1e-12
    for name in np.array(keys)[zero]:
        assert name.endswith((".point_linear.bn.bn.bias", ".shortcut.conv.conv.weight")), name
    assert np.abs(actual[zero, :3]).max() < 1e-12
    error = np.abs(actual - expected)[~zero] / norms[~zero, None]
    assert error[:, 1].max() < 2e-8, keys[np.flatnonzero(~zero)[error[:, 1].argmax()]]
    assert (error[:, [0, 2]] / np.sqrt(sizes[~zero, None])).max() < 2e-8
    np.testing.assert_array_equal(actual[~zero, 3], expected[~zero, 3])


@pytest.fixture(scope="module")
def used(golden_step: Numbers) -> list[str]:
    return golden_step["names"][golden_step["used"]].tolist()


@pytest.fixture(scope="module")
def sizes(net: supernet.Supernet, used: list[str]) -> NDArray[Any]:
    table = names(net.net, ALPHANET)
    by_name = {table[key]: p.numel() for key, p in net.net.named_parameters()}
    return np.array([by_name[name] for name in used])


@pytest.mark.parametrize("passes", range(4), ids=STEP)
def test_gradients_accumulate_over_the_passes(
    step: Step, golden_step: Numbers, used: list[str], sizes: NDArray[Any], passes: int
) -> None:
    assert_same_gradients(step.gradients[passes], golden_step["gradients"][passes], sizes, used)


def test_gradients_clipped_by_value(step: Step, golden_step: Numbers, used: list[str], sizes: NDArray[Any]) -> None:
    assert_same_gradients(step.clipped, golden_step["clipped"], sizes, used)
    clipped = ~np.isclose(golden_step["clipped"][:, 1], golden_step["gradients"][-1][:, 1], rtol=1e-6, atol=1e-9)
    assert clipped.sum() > 50  # the limit bites


def test_weights_after_the_step(step: Step, golden_step: Numbers, sizes: NDArray[Any]) -> None:
    """Nesterov momentum and decay included: relative to a tensor's norm, sums by sqrt(n) looser as above."""
    error = np.abs(step.updated - golden_step["updated"])[:, :3] / golden_step["updated"][:, 1:2]
    assert (error / np.sqrt(sizes)[:, None] ** [1, 0, 1]).max() < 1e-9
    np.testing.assert_array_equal(step.updated[:, 3], golden_step["updated"][:, 3])


def test_decay_is_that_of_the_original(net: supernet.Supernet, golden_step: Numbers) -> None:
    """Weights of convs, the classifier and squeeze-and-excitation decay; norms and biases do not."""
    decay = {id(p): group["weight_decay"] for group in parameter_groups(net, 1e-5) for p in group["params"]}
    table = names(net.net, ALPHANET)
    ours = {table[key]: decay[id(p)] for key, p in net.net.named_parameters()}
    original = dict(zip(golden_step["names"].tolist(), golden_step["decay"].tolist(), strict=True))
    assert ours == {name: original[name] for name in ours}
    assert set(ours.values()) == {0.0, 1e-5}


def test_cosine_schedule() -> None:
    """The original computes in the same order of operations up to rounding."""
    for case in json.loads((DATA / "cosine_lr.json").read_text()):
        steps_per_epoch = int(case["iters_per_epoch"])
        schedule = Cosine(warmup_epochs=case["warmup_epochs"], warmup_start=0.001)
        total = steps_per_epoch * int(case["epochs"])
        ours = [case["base_lr"] * schedule(t, steps_per_epoch, total) for t in range(len(case["lr"]))]
        assert ours == pytest.approx(case["lr"], rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("case", ["c0", "c1"])
def test_losses(golden: Numbers, case: str) -> None:
    """KL here is soft cross-entropy, and equal in gradient."""
    seed, scale = {"c0": (1000, 1.0), "c1": (1001, 3.0)}[case]
    generator = np.random.Generator(np.random.PCG64(seed))
    student, teacher = (torch.from_numpy(generator.standard_normal((16, 10)) * scale) for _ in range(2))
    student.requires_grad_()
    soft = SoftCrossEntropy()(student, teacher, torch.empty(0)).mean()
    smooth = F.cross_entropy(student, torch.arange(16) % 10, label_smoothing=0.1)
    for name, loss in (("kl", soft), ("ce_smooth0.1", smooth)):
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.item() == pytest.approx(float(golden[f"loss/{case}_{name}/loss"]), rel=1e-12)
        np.testing.assert_allclose(gradient.numpy(), golden[f"loss/{case}_{name}/grad"], rtol=0, atol=1e-15)
