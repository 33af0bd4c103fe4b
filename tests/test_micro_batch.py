"""Batches in parts: the same step in less memory, and the choice of how small the parts are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import images, randomise
from tiny import tiny_space
from tiny_run import assert_same, tiny_config
from tiny_vit import tiny_vit
from torch import Tensor, nn

import supernet.memory
import supernet.micro_batch
from supernet.calibrate import track_statistics
from supernet.distill import LabelsAndTeacher
from supernet.errors import UserError
from supernet.memory import free_memory
from supernet.micro_batch import (
    Choice,
    Estimate,
    Need,
    choose,
    estimate,
    memory_line,
    micro_batches,
    settled,
    statistics_note,
)
from supernet.net import Supernet
from supernet.observers import SlotGradients
from supernet.optim import zero_gradients
from supernet.recompute import checkpoint_activations
from supernet.samplers.base import Slot
from supernet.step import Pass, accumulate

COUNT = 7
TEACHER = torch.randn(COUNT, 4, dtype=torch.double, generator=torch.Generator().manual_seed(2))
WEIGHTS = torch.tensor([2.0, 0.5, 1.0, 3.0, 1.0, 0.25, 1.0], dtype=torch.double)


@pytest.mark.parametrize("count", [1, 2, 7, 64, 65])
@pytest.mark.parametrize("size", [None, 1, 2, 3, 16, 64, 100])
def test_parts_cover_a_batch_once_and_are_as_equal_as_can_be(count: int, size: int | None) -> None:
    parts = micro_batches(count, size)
    assert [i for part in parts for i in range(count)[part]] == list(range(count))
    lengths = {part.stop - part.start for part in parts}
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= (count if size is None else size)
    assert len(parts) == (1 if size is None else -(-count // size))


def frozen_norms(net: Supernet) -> Supernet:
    """Batch norms with running statistics that they use."""
    track_statistics(net)
    return net.eval()


NETS: dict[str, Any] = {
    "layer norms": lambda: Supernet(tiny_vit()).train(),
    "frozen batch norms": lambda: frozen_norms(Supernet(tiny_space())),
    "batch norms": lambda: Supernet(tiny_space()).train(),
}


class Seen:
    """Everything that observers are shown, and the gradients of single slots."""

    def __init__(self, net: Supernet) -> None:
        self.values: list[Tensor] = []
        self._gradients = SlotGradients(
            net.net, lambda _, given: self.values.extend(map(torch.clone, given.values())), self._random
        )

    def _random(self, slot: Slot) -> bool:
        return slot.role == "random"

    def before(self, slot: Slot) -> None:
        self._gradients.before(slot)

    def after(self, slot: Slot, done: Pass) -> None:
        self._gradients.after(slot, done)
        self.values += [value for value in done if value is not None]


def run(name: str, micro_batch: int | None, weighted: bool, taught: bool, recompute: bool = False) -> list[Tensor]:
    """Losses, what observers see, gradients."""
    net = NETS[name]().double()
    randomise(net)
    zero_gradients(net)
    if recompute:
        checkpoint_activations(net.net)
    space = net.space
    first, second = space.sample(np.random.default_rng(3), 2)
    slots = [Slot(space.largest(), "largest"), Slot(first, "random", 0.1), Slot(second, "random")]
    slots.append(Slot(space.smallest(), "smallest"))
    seen = Seen(net)
    losses = accumulate(
        net,
        images(COUNT, 12).double(),
        torch.arange(COUNT) % 4,
        slots,
        lambda logits, targets: F.cross_entropy(logits, targets, reduction="none"),
        LabelsAndTeacher(),
        weights=WEIGHTS if weighted else None,
        teacher=TEACHER if taught else None,
        observers=[seen],
        micro_batch=micro_batch,
    )
    return [*losses, *seen.values, *(p.grad for p in net.parameters() if p.grad is not None)]


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest, relative to the largest number of its tensor."""
    assert len(one) == len(other) > 20
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        assert a.shape == b.shape
        assert b.isfinite().all()
        worst = max(worst, float((a - b).abs().max()) / max(float(b.abs().max()), 1e-3))
    return worst


@pytest.mark.parametrize("micro_batch", [1, 3, 6])
@pytest.mark.parametrize("name", ["layer norms", "frozen batch norms"])
def test_parts_give_what_the_whole_batch_gives(name: str, micro_batch: int) -> None:
    for weighted, taught in ((False, False), (True, True)):
        whole = run(name, None, weighted, taught)
        assert difference(run(name, micro_batch, weighted, taught), whole) < 1e-12
    assert difference(run(name, micro_batch, weighted, taught, recompute=True), whole) < 1e-12


def test_batch_norms_see_one_part_at_a_time() -> None:
    """The documented difference: each part is normalised as a batch of its own."""
    assert difference(run("batch norms", 3, False, False), run("batch norms", None, False, False)) > 1e-3
    net = NETS["batch norms"]().double()
    randomise(net)
    x, arch = images(COUNT, 12).double(), net.space.largest()
    passes: list[Pass] = []

    class Keep:
        def before(self, slot: Slot) -> None:
            pass

        def after(self, slot: Slot, done: Pass) -> None:
            passes.append(done)

    slots, targets = [Slot(arch, "largest")], torch.arange(COUNT) % 4
    accumulate(net, x, targets, slots, F.cross_entropy, LabelsAndTeacher(), observers=[Keep()], micro_batch=4)
    assert torch.equal(passes[0].logits, torch.cat([net(x[part], arch) for part in micro_batches(COUNT, 4)]))


def test_a_part_as_large_as_the_batch_changes_nothing() -> None:
    for size in (COUNT, COUNT + 1):
        assert_same(run("batch norms", size, True, False), run("batch norms", None, True, False))


def test_dropout_is_drawn_for_every_part_and_repeats() -> None:
    def losses(seed: int, micro_batch: int | None) -> list[Tensor]:
        net = Supernet(tiny_vit()).train()
        randomise(net)
        x = images(1, 12).expand(6, -1, -1, -1)  # the same image in every part
        seen: list[Tensor] = []

        def label_loss(logits: Tensor, targets: Tensor) -> Tensor:
            seen.append(logits.detach())
            return F.cross_entropy(logits, targets)

        torch.manual_seed(seed)
        slots = [Slot(net.space.largest(), "largest")]
        accumulate(
            net, x, torch.zeros(6).long(), slots, label_loss, LabelsAndTeacher(), 0.5, 0.5, micro_batch=micro_batch
        )
        return seen

    first, second = losses(0, 3)
    assert not torch.allclose(first, second)
    assert_same(losses(0, 3), [first, second])
    assert not torch.allclose(losses(1, 3)[0], first)


# The choice ---------------------------------------------------------------------------------------------------------

MB = 2**20


def needs(batch_norm: bool = True) -> Estimate:
    """10 MB an image, or 2 MB with activations computed again; 20 MB beside."""
    return Estimate(Need(5 * MB, 10 * MB), Need(5 * MB, 2 * MB), 20 * MB, batch_norm)


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (10_000, Choice(False, None)),
        ((640 + 25) / 0.9 + 1, Choice(False, None)),
        ((640 + 25) / 0.9 - 1, Choice(True, None)),
        ((128 + 25) / 0.9 + 1, Choice(True, None)),
        ((128 + 25) / 0.9 - 1, Choice(True, 32)),  # 63 would fit, and two equal parts are as few
        ((2 * 20 + 25) / 0.9 + 1, Choice(True, 16)),
        ((2 * 2 + 25) / 0.9 + 1, Choice(True, 2)),
    ],
)
def test_what_changes_least_is_chosen_first(free: float, expected: Choice) -> None:
    assert choose(needs(), free * MB, 64) == expected


def test_recomputation_that_is_asked_for_stays() -> None:
    assert choose(needs(), 10_000 * MB, 64, checkpointing=True) == Choice(True, None)


def test_what_does_not_fit_at_all_is_refused() -> None:
    free = (2 * 1 + 25) / 0.9 * MB + 1
    assert choose(needs(batch_norm=False), free, 64) == Choice(True, 1)
    with pytest.raises(
        UserError, match=r"train\.micro_batch=auto: .* needs about 32 MiB for micro-batches of 2, and 30"
    ):
        choose(needs(), free, 64)


@pytest.mark.parametrize("space", [tiny_space, tiny_vit])
def test_an_estimate_is_close_to_what_a_step_allocates(space: Any) -> None:
    from torch.profiler import ProfilerActivity, profile

    net = Supernet(space()).train()
    randomise(net)
    zero_gradients(net)
    x, arch = images(64, 12), net.space.largest()

    def peak() -> int:
        F.cross_entropy(net(x, arch), torch.zeros(64).long()).backward()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            F.cross_entropy(net(x, arch), torch.zeros(64).long()).backward()
        recorder: Any = profiler.profiler
        events = [event for event in recorder.kineto_results.events() if event.name() == "[memory]"]
        changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
        return int(np.cumsum([0, *changes]).max())

    found = estimate(net)
    plain = peak()
    checkpoint_activations(net.net)
    recomputed = peak()
    assert 0.9 * plain < found.plain.bytes(64) < 1.5 * plain
    assert 0.9 * recomputed < found.recomputed.bytes(64) < 2.5 * recomputed
    assert recomputed < plain


def test_an_estimate_leaves_no_trace_and_does_not_depend_on_recomputation() -> None:
    net = Supernet(tiny_space()).eval()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    found = estimate(net, dropout=0.5, drop_path=0.5)
    assert not net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in net.parameters())
    assert_same(dict(net.state_dict()), before)
    checkpoint_activations(net.net)
    assert estimate(net, dropout=0.5, drop_path=0.5) == found
    assert found.batch_norm
    assert not estimate(Supernet(tiny_vit())).batch_norm


def test_auto_becomes_plain_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tmp_path)
    config["train"] |= {"micro_batch": "auto", "checkpoint_activations": False}
    net = Supernet(tiny_space())
    wanted = estimate(net, config["train"]["amp"], config["train"]["dropout"], config["train"]["drop_path"])
    batch = config["train"]["batch_size"]

    def with_free(free: float | None) -> dict[str, Any]:
        monkeypatch.setattr(supernet.micro_batch, "free_memory", lambda device: free)
        found = settled(config, net)
        assert found.keys() == config.keys()
        return {key: found["train"][key] for key in ("checkpoint_activations", "micro_batch")}

    plenty, some = wanted.plain.bytes(batch), wanted.recomputed.bytes(batch)
    assert (
        with_free(None)
        == with_free((plenty + wanted.beside) / 0.89)
        == {"checkpoint_activations": False, "micro_batch": None}
    )
    assert with_free((plenty + wanted.beside) / 0.91) == {"checkpoint_activations": True, "micro_batch": None}
    assert with_free((some + wanted.beside) / 0.91) == {"checkpoint_activations": True, "micro_batch": batch // 2}
    assert f"checkpoint_activations=true, micro_batch={batch // 2}" in memory_line(config, net)
    config["train"]["micro_batch"] = 16
    assert settled(config, net) == config
    assert "16 images at a time instead of 256" in str(statistics_note(config, net))
    assert statistics_note(config, Supernet(tiny_vit())) is None
    config["train"]["micro_batch"] = None
    assert statistics_note(config, net) is None


# Free memory --------------------------------------------------------------------------------------------------------


def group(root: Path, folder: str, limit: tuple[str, str], used: tuple[str, str], cache: int) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name, value in (limit, used, ("memory.stat", f"anon 5\ninactive_file {cache}\n\n")):
        (root / folder / name).write_text(f"{value}\n")


def test_free_main_memory_is_the_least_of_all_limits(tmp_path: Path) -> None:
    left = supernet.memory._free_main_memory
    assert left(tmp_path) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    1000 kB\n")
    assert left(tmp_path) == 1000 * 1024
    (tmp_path / "proc/self/cgroup").write_text("0::/job/step\n")
    assert left(tmp_path) == 1000 * 1024
    group(tmp_path, "sys/fs/cgroup/job/step", ("memory.max", "max"), ("memory.current", "10"), 0)
    assert left(tmp_path) == 1000 * 1024
    group(tmp_path, "sys/fs/cgroup/job", ("memory.max", "50000"), ("memory.current", "20000"), 3000)
    assert left(tmp_path) == 33000
    (tmp_path / "proc/self/cgroup").write_text("5:cpu:/\n4:memory:/own\n0::/\n")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    group(tmp_path, "sys/fs/cgroup/memory/own", (names[0], "40000"), (names[1], "15000"), 0)
    assert left(tmp_path) == 25000
    group(tmp_path, "sys/fs/cgroup/memory", (names[0], "30000"), (names[1], "29000"), 0)
    assert left(tmp_path) == 1000


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux tells how much memory is available")
def test_this_machine_tells_how_much_is_free() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is not None
    assert 2**20 < free < 2**50


def test_a_hook_that_fails_is_removed() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    def fails() -> None:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        supernet.memory.kept_for_backward(net, fails, list(net))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net)
