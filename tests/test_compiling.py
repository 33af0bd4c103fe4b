"""Compiled training: the numbers of eager training, and no more graphs than promised."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import images, randomise
from tiny import tiny_space
from tiny_vit import tiny_vit
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from supernet.compiling import Compiled, CompileMode, compiled
from supernet.data.base import resize
from supernet.distill import SoftCrossEntropy
from supernet.errors import UserError
from supernet.fused import NormAct
from supernet.net import Supernet
from supernet.recompute import checkpoint_activations
from supernet.samplers.base import Slot
from supernet.sharing.grouped import GroupedSupernet
from supernet.sharing.groups import Groups
from supernet.space import Arch, Space
from supernet.step import accumulate

RATES = {"dropout": 0.3, "drop_path": 0.2}
EXHAUSTIVE = pytest.param("extremes", marks=pytest.mark.exhaustive)
FORMATS = [torch.contiguous_format, torch.channels_last]


def all_kinds() -> Space:
    """Every activation that is compiled, and one that is not after a norm: relu, hswish, relu6, swish; 2 in a gate."""
    stages = [
        {"width": [8, 12], "depth": [1, 2], "kernel": [3], "expand": [1, 2], "stride": 1, "act": "relu"},
        {"width": [12, 16], "depth": [1, 2], "kernel": [3, 5], "expand": [2], "stride": 2, "act": "hswish", "se": True},
        {"width": [16, 20], "depth": [1, 2], "kernel": [3], "expand": [2, 3], "stride": 1, "act": "relu6"},
    ]
    return tiny_space(stages=stages)  # stem and head: swish


def small() -> Space:
    """Four subnets of one or two blocks, sides 8 and 12: quick to trace."""
    stage = {"width": [8], "depth": [1, 2], "kernel": [3], "expand": [2], "stride": 1, "act": "hswish", "se": True}
    return tiny_space(stages=[stage], head={"width": [16]})


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """No graphs of other tests."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def made(space: Space, layout: torch.memory_format = torch.contiguous_format, double: bool = True) -> Supernet:
    net = Supernet(space)
    randomise(net)
    return net.to(torch.float64 if double else torch.float32).to(memory_format=layout).train()


def batch(net: Any, arch: Arch, size: int = 3) -> Tensor:
    """Images at the subnet's resolution, in the network's dtype."""
    x = resize(images(size, 12).to(next(net.parameters()).dtype), net.space.resolution(arch))
    return x.contiguous(memory_format=torch.channels_last)


def results(net: Any, called: Any, arch: Arch, size: int = 3, **rates: float) -> list[Tensor]:
    """Logits, and the gradient of every parameter of `net`."""
    net.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    logits = called(batch(net, arch, size), arch, **rates)
    F.cross_entropy(logits, torch.arange(size) % 4).backward()
    return [logits.detach(), *(torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters())]


def assert_same(one: list[Tensor], other: list[Tensor], tolerance: float) -> None:
    scale = max(float(tensor.abs().max()) for tensor in other[1:])
    assert scale > 1e-3
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * scale)


def prepared(
    net: Any, mode: CompileMode, rates: dict[str, float] | None = None, backend: str = "aot_eager"
) -> tuple[Compiled, list[str]]:
    """A warm network, and what it says."""
    said: list[str] = []
    fast = compiled(net, mode, said.append, backend)
    fast.warm_up(batch(net, net.space.largest()), rates or {})
    return fast, said


def sampled(space: Space, count: int) -> list[Arch]:
    return space.sample(np.random.default_rng(0), count)


@pytest.mark.parametrize("layout", FORMATS)
def test_blocks_of_any_subnet_are_eight_graphs_and_the_same_numbers(layout: torch.memory_format) -> None:
    net = made(all_kinds(), layout)
    fast, said = prepared(net, "blocks")
    assert fast.graphs == fast.bound == 8  # four activations, forward and backward
    for i, arch in enumerate([*sampled(net.space, 30), net.space.largest(), net.space.smallest()]):
        size = 2 + i % 3
        assert_same(results(net, fast, arch, size), results(net, net, arch, size), 1e-10)
    assert fast.graphs == 8
    assert not said


def test_extremes_are_two_graphs_and_the_same_numbers() -> None:
    net = made(tiny_space(), torch.channels_last)
    fast, said = prepared(net, "extremes", RATES)
    assert fast.graphs == fast.bound == 2
    largest, smallest = net.space.largest(), net.space.smallest()
    assert_same(results(net, fast, largest, **RATES), results(net, net, largest, **RATES), 1e-10)
    assert_same(results(net, fast, smallest), results(net, net, smallest), 1e-10)
    for arch in sampled(net.space, 30):
        assert_same(
            results(net, fast, arch), results(net, net, arch), 0.0 if arch not in (largest, smallest) else 1e-10
        )
    assert fast.graphs == 2
    assert not said


def test_extremes_in_single_precision() -> None:
    net = made(tiny_space(), torch.channels_last, double=False)  # kernels of 5 in fp32 take another way
    fast, said = prepared(net, "extremes", backend="eager")
    for arch in (net.space.largest(), net.space.smallest()):
        assert_same(results(net, fast, arch), results(net, net, arch), 1e-4)
    assert (fast.graphs, said) == (2, [])


def test_extremes_run_other_forms_eagerly_and_say_so_once() -> None:
    net = made(small())
    fast, said = prepared(net, "extremes")
    largest = net.space.largest()
    for size in (2, 4, 5):
        assert_same(results(net, fast, largest, size), results(net, net, largest, size), 0.0)
    assert_same(results(net, fast, largest, **RATES), results(net, net, largest, **RATES), 0.0)
    assert fast.graphs == 2
    assert said == ["train.compile=extremes: passes of other batches than [3, 3, 12, 12] run eagerly"]


def test_a_space_of_one_subnet_is_one_graph() -> None:
    one = {"width": [8], "depth": [1], "kernel": [3], "expand": [1], "stride": 1, "act": "relu"}
    net = made(tiny_space(stages=[one], head={"width": [16]}, resolution=(12,)))
    fast, said = prepared(net, "extremes", RATES)
    arch = net.space.largest()
    assert_same(results(net, fast, arch, **RATES), results(net, net, arch, **RATES), 1e-10)
    assert (fast.graphs, fast.bound, said) == (1, 1, [])


@pytest.mark.parametrize("mode", ["blocks", "extremes"])
def test_the_network_stays_the_eager_one(mode: CompileMode) -> None:
    net = made(small())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    fast, _ = prepared(net, mode, RATES)
    assert torch.equal(torch.rand(2), expected)  # warming up draws nothing
    assert all(parameter.grad is None for parameter in net.parameters())
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    arch = net.space.largest()
    x = batch(net, arch)
    with torch.no_grad():
        assert torch.equal(fast(x, arch), net(x, arch))
    net.eval()
    assert torch.equal(fast(x, arch), net(x, arch))
    net.train()
    with torch.no_grad():
        for parameter in net.parameters():  # as an optimizer does
            parameter.mul_(0.5)
    assert_same(results(net, fast, arch), results(net, net, arch), 1e-10)


@pytest.mark.parametrize("mode", ["blocks", "extremes"])
def test_a_training_step_adds_the_same_gradients(mode: CompileMode) -> None:
    net = made(small(), torch.channels_last)
    fast, said = prepared(net, mode, RATES)
    space = net.space
    slots = [Slot(space.largest(), "largest"), *(Slot(a, "random") for a in sampled(space, 2))]
    slots.append(Slot(space.smallest(), "smallest"))
    found = []
    for called in (net, fast):
        net.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        x, targets = batch(net, space.largest()), torch.tensor([0, 1, 2])
        losses = accumulate(called, x, targets, slots, F.cross_entropy, SoftCrossEntropy(), **RATES)  # type: ignore[arg-type]
        found.append([torch.stack(losses), *(p.grad.clone() for p in net.parameters() if p.grad is not None)])
    assert_same(found[1], found[0], 1e-6)  # the distillation loss computes in fp32
    assert not said


@pytest.mark.parametrize("mode", ["blocks", EXHAUSTIVE])
def test_with_activations_computed_again(mode: CompileMode) -> None:
    net = made(small())
    largest = net.space.largest()
    expected = [tensor.clone() for tensor in results(net, net, largest, **RATES)]
    checkpoint_activations(net.net)
    fast, said = prepared(net, mode, RATES)
    assert_same(results(net, fast, largest, **RATES), expected, 1e-10)
    assert fast.graphs <= fast.bound
    assert not said


@pytest.mark.parametrize("mode", ["blocks", EXHAUSTIVE])
def test_several_supernets(mode: CompileMode) -> None:
    space = small()
    net = GroupedSupernet(space, Groups(space, 0, 2, "random"), ("stem",))
    randomise(net)
    net.double().train()
    fast, said = prepared(net, mode)
    for arch in [space.largest(), space.smallest(), *sampled(space, 6)]:
        assert_same(results(net, fast, arch), results(net, net, arch), 1e-10)
    assert fast.graphs <= fast.bound
    assert not said


def test_transformers_have_extremes_but_no_blocks() -> None:
    net = made(tiny_vit())
    fast, said = prepared(net, "extremes", backend="eager")
    for arch in (net.space.largest(), net.space.smallest()):
        assert_same(results(net, fast, arch), results(net, net, arch), 1e-10)
    assert (fast.graphs, said) == (2, [])
    with pytest.raises(UserError, match=r"train\.compile=blocks: no batch norm"):
        compiled(net, "blocks")


def test_sides_of_one_pixel_run_eagerly() -> None:
    net = made(tiny_space(resolution=(2,)), torch.channels_last)
    said: list[str] = []
    fast = compiled(net, "blocks", said.append, "aot_eager")
    x = images(3, 2).double()
    for arch in sampled(net.space, 8):
        assert torch.allclose(fast(x, arch), net(x, arch), rtol=1e-10)
    assert fast.graphs <= fast.bound
    assert not said


def test_one_value_per_channel_is_refused_as_in_eager_mode() -> None:
    net = made(tiny_space(resolution=(2,)), torch.channels_last)
    fast = compiled(net, "blocks", backend="aot_eager")
    for called in (net, fast):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            called(images(1, 2).double(), net.space.largest())


def test_beyond_its_bound_nothing_is_compiled() -> None:
    net = made(all_kinds())
    said: list[str] = []
    fast = compiled(net, "blocks", said.append, "aot_eager")
    assert fast.bound == 8
    fast._backend.limit = 3  # type: ignore[attr-defined]
    arch = net.space.largest()
    assert_same(results(net, fast, arch), results(net, net, arch), 1e-10)
    assert fast.graphs == 3
    assert said == ["train.compile: all 3 graphs are in use; the rest runs eagerly"]


def test_trainings_in_one_process_do_not_share_limits() -> None:
    for _ in range(10):  # torch gives up after 8 graphs of the same function
        backend = CompileCounter()
        operation = NormAct("relu", 1e-5, torch.channels_last, partial(torch.compile, backend=backend, dynamic=True))
        operation.prepare(torch.device("cpu"), torch.float32, torch.float32)
        assert backend.frame_count == 2


@pytest.mark.parametrize("mode", ["blocks", "extremes"])
def test_failures_are_one_line(mode: CompileMode) -> None:
    net = made(small())
    fast = compiled(net, mode, backend="no_such_backend")
    with pytest.raises(UserError) as error:
        fast.warm_up(batch(net, net.space.largest()), {})
    assert str(error.value).startswith("train.compile: compiling failed (")
    assert str(error.value).endswith("set train.compile=off")
    assert "\n" not in str(error.value)


def test_modes_are_named() -> None:
    with pytest.raises(ValueError, match="compile=all"):
        compiled(made(tiny_space()), "all")  # type: ignore[arg-type]


def test_bf16_on_a_cpu_has_no_blocks() -> None:
    net = made(tiny_space(), double=False)
    with pytest.raises(UserError, match=r"train\.amp"):
        compiled(net, "blocks", backend="eager", autocast=True)


def test_without_a_compiler_it_says_what_to_install() -> None:
    from torch._functorch import config as functorch
    from torch._inductor import config as inductor

    net = made(tiny_space(), double=False)
    no_caches = functorch.patch(enable_autograd_cache=False)
    with no_caches, inductor.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}):
        fast = compiled(net, "blocks")
        with pytest.raises(UserError, match=r"no C\+\+ compiler found; install g\+\+"):
            fast.warm_up(batch(net, net.space.largest()), {})


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_compiled_code_agrees_with_eager() -> None:
    net = made(tiny_space(), torch.channels_last, double=False)
    fast, said = prepared(net, "blocks", backend="inductor")
    for arch in [*sampled(net.space, 6), net.space.largest()]:
        assert_same(results(net, fast, arch), results(net, net, arch), 1e-4)
    assert fast.graphs == fast.bound
    assert not said


@pytest.mark.exhaustive
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_compiled_extremes_agree_with_eager() -> None:
    net = made(tiny_space(), torch.channels_last, double=False)
    fast, said = prepared(net, "extremes", RATES, "inductor")
    largest, smallest = net.space.largest(), net.space.smallest()
    assert_same(results(net, fast, largest, **RATES), results(net, net, largest, **RATES), 1e-4)
    assert_same(results(net, fast, smallest), results(net, net, smallest), 1e-4)
    assert not said
