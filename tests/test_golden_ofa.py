"""Once-for-All's MobileNetV3 and ProxylessNAS spaces against the numbers that the original code computes.

Weights are a deterministic function of their original names and come in through the importer, as a published file
would. Logits of the original are in fp64, of its training step, running statistics and calibration in fp32. Every
eighth class is kept, four rows of each training batch, and eight channels of every norm.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import DATA, images, imported, names, relative_error
from torch import nn

import supernet
from supernet.calibrate import calibrate
from supernet.layers.kernel_transform import KernelTransformConv2d
from supernet.pretrained.ofa import OFA_MOBILE
from supernet.space import Arch

ARCHS: dict[str, Any] = json.loads((DATA / "ofa_mobile_archs.json").read_text())
FAMILIES = tuple(ARCHS)
with np.load(DATA / "ofa_mobile_golden.npz") as file:
    GOLDEN = {key: file[key] for key in file.files}
LOGITS = sorted({key.rsplit("/", 1)[0] for key in GOLDEN if key.endswith("/train")})


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, supernet.Supernet]:
    folder = tmp_path_factory.mktemp("original")
    return {family: imported(family, folder) for family in FAMILIES}


def arch_of(net: supernet.Supernet, family: str, tag: str) -> Arch:
    return net.space.from_json(ARCHS[family][tag]["arch"])


@pytest.mark.parametrize("case", LOGITS)
@torch.no_grad()
def test_logits(nets: dict[str, supernet.Supernet], case: str) -> None:
    """Of the subnet inside the supernet and extracted, with the file's statistics and with the batch's."""
    family, tag = case.split("/")
    net = nets[family]
    arch = arch_of(net, family, tag)
    side = net.space.resolution(arch)
    for network, expected in ((net.eval(), GOLDEN[f"{case}/eval"]), (net.extract(arch), GOLDEN[f"{case}/eval"])):
        logits = network(images(2, side), arch) if network is net else network.eval()(images(2, side))
        assert relative_error(logits, expected) < 1e-11
    assert relative_error(net.train()(images(8, side), arch)[:4], GOLDEN[f"{case}/train"]) < 1e-11


@torch.no_grad()
def test_what_a_wrong_rule_would_give(nets: dict[str, supernet.Supernet]) -> None:
    """The comparison tells a centre crop and a transposed kernel transform from the right one."""
    net = nets["ofa_mbv3"].train()
    arch = arch_of(net, "ofa_mbv3", "rand02")
    layers = [layer for layer in net.modules() if isinstance(layer, KernelTransformConv2d)]
    kept = [{key: matrix.clone() for key, matrix in layer.transform.items()} for layer in layers]
    for change in (lambda matrix: torch.eye(len(matrix)), lambda matrix: matrix.T):
        for layer, matrices in zip(layers, kept, strict=True):
            for key, matrix in matrices.items():
                layer.transform[key].copy_(change(matrix))
        wrong = net(images(8, net.space.resolution(arch)), arch)
        for layer, matrices in zip(layers, kept, strict=True):
            for key, matrix in matrices.items():
                layer.transform[key].copy_(matrix)
        assert relative_error(wrong[:4], GOLDEN["ofa_mbv3/rand02/train"]) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_costs_of_the_archs(nets: dict[str, supernet.Supernet], family: str) -> None:
    space = nets[family].space
    for tag, facts in ARCHS[family].items():
        plan = space.plan(space.from_json(facts["arch"]))
        assert (plan.macs, plan.params) == (facts["macs"], facts["params"]), tag


def test_costs_of_854_measured_subnets() -> None:
    """MACs and parameters as others published them, exactly."""
    space = supernet.build("ofa_mbv3").space
    with np.load(DATA / "ofa_mbv3_costs.npz") as table:
        columns = {key: table[key] for key in table.files}
    keys = ("kernel", "expand", "depth")
    rows = [
        {"resolution": int(columns["resolution"][i]), **{key: columns[key][i].tolist() for key in keys}}
        for i in range(len(columns["macs"]))
    ]
    macs, params = supernet.cost.batch(space, np.array([space.encode(space.from_json(row)) for row in rows]))
    assert len(rows) == 854
    np.testing.assert_array_equal(macs, columns["macs"])
    np.testing.assert_array_equal(params, columns["params"])


@pytest.mark.parametrize("family", FAMILIES)
def test_training_step(nets: dict[str, supernet.Supernet], family: str) -> None:
    """Loss and every gradient of one subnet. The original's are fp32, where rounding takes other sides of ReLU's kink:
    two thread counts of fp32 differ by 1e-3, too."""
    net = nets[family]
    net.zero_grad()
    arch = net.space.from_json({**ARCHS[family]["rand00"]["arch"], "resolution": 128})
    loss = F.cross_entropy(net.train()(images(8, 128), arch), torch.arange(8))
    loss.backward()
    assert loss.item() == pytest.approx(float(GOLDEN[f"{family}/step/loss"]), abs=2e-6)
    table = names(net.net, OFA_MOBILE)
    gradients = {table[name]: p.grad for name, p in net.net.named_parameters()}
    assert set(gradients) == set(GOLDEN[f"{family}/step/keys"].tolist())
    for key, (norm, total, nonzero) in zip(
        GOLDEN[f"{family}/step/keys"].tolist(), GOLDEN[f"{family}/step/grads"], strict=True
    ):
        gradient = gradients[key]
        if np.isnan(norm):
            assert gradient is None or not gradient.any(), key
        elif norm > 1e-5:  # below: the shift before a norm, whose gradient is zero but for rounding
            assert gradient is not None, key
            assert abs(int((gradient != 0).sum()) - nonzero) <= 2, key  # an underflow here or there
            assert gradient.norm().item() == pytest.approx(norm, rel=5e-3), key
            assert gradient.sum().item() == pytest.approx(total, abs=5e-3 * norm * gradient.numel() ** 0.5), key
    net.zero_grad()


def assert_statistics(subnet: nn.Module, table: dict[str, str], case: str) -> None:
    """The norms' statistics against eight channels of each; fp32 rounding allowed for."""
    expected = dict(zip(GOLDEN[f"{case}/keys"].tolist(), GOLDEN[f"{case}/sample"], strict=True))
    statistics = {name: tensor for name, tensor in subnet.named_buffers() if "running" in name}
    assert len(statistics) > 80
    for name, tensor in statistics.items():
        values = expected[table[name]]
        np.testing.assert_allclose(tensor[:8].numpy(), values, rtol=2e-5, atol=2e-5 * np.abs(values).max())


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_running_statistics(nets: dict[str, supernet.Supernet], family: str) -> None:
    """After one training forward (momentum 0.1), and after calibration on batches of 16 and 8 images."""
    net = nets[family].eval()
    table = names(net.net, OFA_MOBILE)
    arch = net.space.from_json({**ARCHS[family]["rand00"]["arch"], "resolution": 128})
    subnet = net.extract(arch).train()
    subnet(images(8, 128))
    assert_statistics(subnet, table, f"{family}/running")
    x = images(24, 128, seed=1)
    subnet = calibrate(net.extract(arch), [x[:16], x[16:]])
    assert_statistics(subnet, table, f"{family}/calibrated")
    assert relative_error(subnet(images(2, 128)), GOLDEN[f"{family}/calibrated/logits"]) < 1e-5


def test_smaller_kernels_start_as_centre_crops(tmp_path: Path) -> None:
    """And weights of a supernet without kernel transforms leave them so (Once-for-All's elastic kernel phase)."""
    settings: dict[str, Any] = {"num_classes": 3, "resolution": [32]}
    elastic, plain = (supernet.build("ofa_mbv3", **settings, kernel_transform=flag) for flag in (True, False))
    supernet.slicing.copy_slices(plain.net, elastic.net)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for arch in (elastic.space.smallest(), elastic.space.largest()):
            torch.testing.assert_close(elastic(x, arch), plain(x, arch), rtol=1e-4, atol=1e-5)
    for layer in elastic.modules():
        if isinstance(layer, KernelTransformConv2d):
            layer.transform["7to5"].data.zero_()
            layer.reset_parameters()
            assert torch.equal(layer.transform["7to5"], torch.eye(25))
