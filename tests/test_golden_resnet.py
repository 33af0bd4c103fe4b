"""The ofa_resnet50 space against the numbers that the original Once-for-All code computes.

Weights are a deterministic function of their original names and come in through the importer, as a published file
would. Logits of the original in fp64; its training step in fp32. Every eighth class and channel is kept.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import DATA, images, imported, names, relative_error
from torch import Tensor

import supernet
from supernet.calibrate import track_statistics
from supernet.pretrained.ofa import OFA_RESNET
from supernet.slicing import copy_slices
from supernet.space import Arch

ARCHS: dict[str, Any] = json.loads((DATA / "ofa_resnet50_archs.json").read_text())


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(DATA / "ofa_resnet50_golden.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> supernet.Supernet:
    """The supernet in fp64, filled, with running statistics."""
    return imported("ofa_resnet50", tmp_path_factory.mktemp("original"))


def arch_of(net: supernet.Supernet, name: str) -> Arch:
    """Read under the original's keys d, e and w."""
    return net.space.from_json({**ARCHS[name]["arch"], "resolution": ARCHS[name]["resolution"]})


@pytest.mark.parametrize("name", ARCHS)
def test_macs_and_parameters(net: supernet.Supernet, name: str) -> None:
    arch = arch_of(net, name)
    assert supernet.cost(net.space.plan(arch)) == (ARCHS[name]["macs"], ARCHS[name]["params"])
    module = net.space.module(net.space.plan(arch))
    assert sum(p.numel() for p in module.parameters()) == ARCHS[name]["params"]


def test_every_weight_has_one_original(net: supernet.Supernet, golden: dict[str, np.ndarray]) -> None:
    table = names(net.net, OFA_RESNET)
    assert sorted(table[key] for key, _ in net.net.named_parameters()) == sorted(golden["step/keys"].tolist())


@pytest.mark.parametrize("name", ARCHS)
def test_eval_logits(net: supernet.Supernet, golden: dict[str, np.ndarray], name: str) -> None:
    with torch.no_grad():
        logits = net.eval()(images(2, ARCHS[name]["resolution"]), arch_of(net, name))
    assert relative_error(logits, golden[f"eval/{name}"]) < 1e-11


@pytest.mark.parametrize("name", ["min", "max", "rand00", "rand05"])
def test_train_logits(net: supernet.Supernet, golden: dict[str, np.ndarray], name: str) -> None:
    with torch.no_grad():
        logits = net.train()(images(8, ARCHS[name]["resolution"]), arch_of(net, name))
    assert relative_error(logits, golden[f"train/{name}"]) < 1e-11


@pytest.mark.parametrize("wrong", [{"norm_eps": 1e-3}, {"shortcut": "conv"}])
def test_another_epsilon_or_shortcut_does_not_pass(
    net: supernet.Supernet, golden: dict[str, np.ndarray], wrong: dict[str, Any]
) -> None:
    other = supernet.build("ofa_resnet50", **wrong).double()
    track_statistics(other.net)
    other.net.load_state_dict(net.net.state_dict())
    for mode, batch in (("eval", 2), ("train", 8)):
        with torch.no_grad():
            logits = other.train(mode == "train")(images(batch, 128), arch_of(other, "min"))
        assert relative_error(logits, golden[f"{mode}/min"]) > 1e-4


def test_ratios_of_other_blocks_do_not_pass(net: supernet.Supernet, golden: dict[str, np.ndarray]) -> None:
    turned = {**ARCHS["rand05"]["arch"], "e": ARCHS["rand05"]["arch"]["e"][::-1], "resolution": 160}
    with torch.no_grad():
        logits = net.eval()(images(2, 160), net.space.from_json(turned))
    assert relative_error(logits, golden["eval/rand05"]) > 1e-2


def test_training_step(net: supernet.Supernet, golden: dict[str, np.ndarray]) -> None:
    """Loss, and of every gradient the norm, the sum and the number of non-zeros; None where nothing flows.

    The original's step is in fp32, where relus near 0 switch: its own noise is up to 4e-3 of a norm, 2e-4 typically.
    """
    net.zero_grad()
    logits = net.train()(images(8, 128), arch_of(net, "rand00"))
    loss = F.cross_entropy(logits, torch.arange(8))
    assert loss.item() == pytest.approx(float(golden["step/loss"]), rel=2e-6)
    loss.backward()
    table = names(net.net, OFA_RESNET)
    gradients = {table[key]: p.grad for key, p in net.net.named_parameters()}
    net.zero_grad()
    errors = []
    for key, (norm, total, nonzero) in zip(golden["step/keys"].tolist(), golden["step/gradients"], strict=True):
        gradient = gradients[key]
        if math.isnan(norm):
            assert gradient is None, key
            continue
        assert gradient is not None, key
        errors.append(abs(gradient.norm().item() / norm - 1))
        assert errors[-1] < 0.01, key
        assert abs(gradient.sum().item() - total) < 0.01 * norm * math.sqrt(nonzero), key
        assert int(gradient.count_nonzero()) == nonzero, key
    assert np.median(errors) < 5e-4


def test_running_statistics_after_one_training_forward(net: supernet.Supernet, golden: dict[str, np.ndarray]) -> None:
    """Those of the extracted subnet, which are the original's leading channels; momentum 0.1."""
    plan = net.space.plan(arch_of(net, "rand00"))
    subnet = net.space.module(plan).double().train()
    track_statistics(subnet)
    copy_slices(net.net, subnet)
    with torch.no_grad():
        subnet(images(8, 128))
    expected, table = _split(net, golden), names(net.net, OFA_RESNET)
    compared = 0
    for key, tensor in subnet.named_buffers():
        if not key.endswith("num_batches_tracked"):
            ours, theirs = tensor[::8].numpy(), expected[table[key]]
            np.testing.assert_allclose(ours, theirs[: len(ours)], rtol=1e-4, atol=1e-5, err_msg=key)
            compared += len(ours)
    assert compared > 2000


def _split(net: supernet.Supernet, golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The original's statistics by name; the file holds them end to end."""
    table = names(net.net, OFA_RESNET)
    widths = {table[key]: -(-tensor.numel() // 8) for key, tensor in net.net.named_buffers()}
    keys = golden["running/keys"].tolist()
    ends = np.cumsum([widths[key] for key in keys])
    assert ends[-1] == len(golden["running/values"])
    return dict(zip(keys, np.split(golden["running/values"], ends[:-1]), strict=True))


def test_extracted_subnet_is_the_same_bit_for_bit(net: supernet.Supernet) -> None:
    """In training mode, where both normalise with the batch's statistics; odd feature maps on the way."""
    arch = net.space.from_json({**ARCHS["rand05"]["arch"], "resolution": 132})
    x: Tensor = images(2, 132)
    with torch.no_grad():
        assert torch.equal(net.train()(x, arch), net.extract(arch).train()(x))


def test_size_counts_distinct_archs(net: supernet.Supernet) -> None:
    """Resolutions, the stem, per stage the ratios of 2 or 4 blocks and of 0, 1 or 2 more, and the widths."""
    stages = math.prod(3**blocks * (1 + 3 + 9) for blocks in (2, 2, 4, 2))
    assert net.space.size() == 25 * 2 * stages * 3**6


def test_skipped_blocks_have_no_ratio(net: supernet.Supernet) -> None:
    """Slot 2 of the first stage is skipped at depth 0 and there at depth 1; slot 3 needs depth 2."""
    base = {**ARCHS["min"]["arch"], "resolution": 128}
    for depth, count in ((0, 2), (1, 3), (2, 4)):
        archs = {
            net.space.from_json(
                {**base, "d": [0, depth, 0, 0, 0], "e": [0.35 if i == slot else 0.2 for i in range(18)]}
            )
            for slot in range(4)
        }
        plain = net.space.from_json({**base, "d": [0, depth, 0, 0, 0]})
        assert len(archs | {plain}) == count + 1
