"""Training with `torch.compile`: a bounded number of graphs for any number of subnets.

`compiled(net, mode)` is called as the supernet is, by `supernet.step.accumulate`. It works on the network's own
parameters, so state, extraction, moving average and evaluation stay those of the network. The modes:

- `extremes`: the whole network of the largest and of the smallest subnet, which a sandwich trains in every step, is
  one graph each, with fixed shapes. At most 2 graphs; other subnets run eagerly.
- `blocks`: what all subnets share, batch norm with the activation after it, is compiled once for each kind of
  activation, with symbolic shapes (see `supernet.fused`). Convolutions are library calls either way. On a CPU at most
  2 graphs for each kind, for the forward and the backward pass; elsewhere 1, with its backward.

What arrives in another form than was prepared for (another batch size, say) runs eagerly, so graphs are never without
end; it is said once. Without gradients or in eval mode everything runs eagerly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from supernet.data.base import resize
from supernet.errors import UserError
from supernet.fused import fresh, fused
from supernet.net import memory_format
from supernet.sharing.members import AnySupernet, member_of, members_of
from supernet.space import Arch, Space

CompileMode = Literal["off", "blocks", "extremes"]
Say = Callable[[str], None]


class WarmUp(NamedTuple):
    """What compiling took."""

    graphs: int
    seconds: float

    def __str__(self) -> str:
        return f"compiled {self.graphs} graphs in {self.seconds:.1f} s"


class Compiled(Protocol):
    """A supernet that a training step calls."""

    space: Space

    @property
    def graphs(self) -> int:
        """Compiled so far; the backward pass of a graph does not count again."""

    @property
    def bound(self) -> int:
        """The most graphs that there can be."""

    def __call__(self, x: Tensor, arch: Arch, dropout: float = 0.0, drop_path: float = 0.0) -> Tensor:
        """See `Supernet.forward`."""

    def warm_up(self, images: Tensor, rates: Mapping[str, float], autocast: bool = False) -> WarmUp:
        """Compile all that a step needs; parameters, gradients and random states stay as they are.

        Args:
            images: [B, C, S, S], as many as a pass takes, in the memory format of training.
            rates: `dropout` and `drop_path` of the largest subnet; the smallest has none.
            autocast: whether passes run in bf16.

        Raises:
            UserError: if compiling fails: without a C++ compiler, say.
        """


def compiled(
    net: AnySupernet, mode: CompileMode, say: Say = print, backend: str = "inductor", autocast: bool = False
) -> Compiled:
    """The compiled form of a supernet that already has its device and memory format.

    Args:
        mode: `blocks` or `extremes`.
        say: told once when something runs eagerly that should not.
        backend: of `torch.compile`.
        autocast: whether passes will run in bf16.

    Raises:
        UserError: if there is nothing in the network that `mode` could compile.
        ValueError: for another mode.
    """
    if mode == "extremes":
        return Extremes(net, say, backend)
    if mode == "blocks":
        if autocast and next(net.parameters()).device.type == "cpu":
            raise UserError("train.compile=blocks does nothing with train.amp=true on a CPU; set one of them to off")
        return Blocks(net, say, backend)
    raise ValueError(f"compile={mode}: must be blocks or extremes here; off is the network itself")


class Extremes:
    """The largest and the smallest subnet as one graph each; see the top of this file."""

    def __init__(self, net: AnySupernet, say: Say, backend: str) -> None:
        self.net, self.space = net, net.space
        self._say = _once(say)
        archs = dict.fromkeys((self.space.largest(), self.space.smallest()))
        self._backend = _Limited(backend, len(archs), self._say)
        self._runs = {arch: self._whole(arch) for arch in archs}
        self._forms: dict[Arch, tuple[Any, ...]] = {}  # what each was compiled for

    @property
    def graphs(self) -> int:
        return self._backend.graphs

    @property
    def bound(self) -> int:
        return self._backend.limit

    def _whole(self, arch: Arch) -> Callable[..., Tensor]:
        network, plan = member_of(self.net, arch).net, self.space.plan(arch)
        plan.get("")  # fills its index; that cannot be part of a graph

        def run(x: Tensor, dropout: float, drop_path: float) -> Tensor:
            return network(x, plan, dropout=dropout, drop_path=drop_path)

        return torch.compile(fresh(run), backend=self._backend, dynamic=False, fullgraph=True)

    def __call__(self, x: Tensor, arch: Arch, dropout: float = 0.0, drop_path: float = 0.0) -> Tensor:
        """See `Supernet.forward`."""
        run = self._runs.get(arch)
        if run is not None and self.net.training and torch.is_grad_enabled():
            form = (x.shape, x.stride(), x.dtype, torch.is_autocast_enabled(x.device.type), dropout, drop_path)
            known = self._forms.setdefault(arch, form)
            if known == form:
                return run(x, dropout, drop_path)
            if known[0] != x.shape:
                self._say(f"train.compile=extremes: passes of other batches than {list(known[0])} run eagerly")
        return self.net(x, arch, dropout=dropout, drop_path=drop_path)

    def warm_up(self, images: Tensor, rates: Mapping[str, float], autocast: bool = False) -> WarmUp:
        """See `Compiled.warm_up`."""
        start, before = time.perf_counter(), self.graphs
        passes = {self.space.smallest(): {}, self.space.largest(): dict(rates)}  # the rates, where both are the same
        with _explained(), _same_random_numbers(images.device):
            for arch, own in passes.items():
                x = resize(images, self.space.resolution(arch))
                with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
                    logits = self(x, arch, **own)
                torch.autograd.grad(logits.float().sum(), list(self.net.parameters()), allow_unused=True)
        return WarmUp(self.graphs - before, time.perf_counter() - start)


class Blocks:
    """Every subnet with compiled norms and activations; see the top of this file."""

    def __init__(self, net: AnySupernet, say: Say, backend: str) -> None:
        self.net, self.space = net, net.space
        self._backend = _Limited(backend, 0, _once(say))
        self._layout = memory_format(net)
        members = members_of(net)
        twins, self._operations = fused(nn.ModuleList(member.net for member in members), self._layout, self._compile)
        self._twins = dict(zip(members, twins.train().children(), strict=True))
        if not self._operations:
            problem = "no batch norm with an activation after it in this space"
            raise UserError(f"train.compile=blocks: {problem}; set train.compile to extremes or off")
        self._device = next(net.parameters()).device
        self._backend.limit = len(self._operations) * (2 if self._device.type == "cpu" else 1)

    @property
    def graphs(self) -> int:
        return self._backend.graphs

    @property
    def bound(self) -> int:
        return self._backend.limit

    def _compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, backend=self._backend, dynamic=True)

    def __call__(self, x: Tensor, arch: Arch, dropout: float = 0.0, drop_path: float = 0.0) -> Tensor:
        """See `Supernet.forward`."""
        if self.net.training and torch.is_grad_enabled():
            twin, plan = self._twins[member_of(self.net, arch)], self.space.plan(arch)
            return twin(x, plan, dropout=dropout, drop_path=drop_path)
        return self.net(x, arch, dropout=dropout, drop_path=drop_path)

    def warm_up(self, images: Tensor, rates: Mapping[str, float], autocast: bool = False) -> WarmUp:
        """See `Compiled.warm_up`; of `images` only the dtype matters."""
        start, before = time.perf_counter(), self.graphs
        dtype = torch.bfloat16 if autocast else next(self.net.parameters()).dtype
        with _explained():
            for operation in self._operations:
                operation.prepare(self._device, dtype, next(self.net.parameters()).dtype)
        return WarmUp(self.graphs - before, time.perf_counter() - start)


class _Limited:
    """A backend of `torch.compile` that counts its graphs. From its limit on it leaves them as they are."""

    def __init__(self, name: str, limit: int, say: Say) -> None:
        self.name, self.limit, self.graphs, self._say = name, limit, 0, say

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        if self.graphs >= self.limit:
            self._say(f"train.compile: all {self.limit} graphs are in use; the rest runs eagerly")
            return graph.forward
        self.graphs += 1
        if self.name == "inductor":
            from torch._inductor.compile_fx import compile_fx  # slow to import

            return compile_fx(graph, inputs, config_patches={"fallback_random": True})  # dropout as in eager mode
        from torch._dynamo.backends.registry import lookup_backend

        return lookup_backend(self.name)(graph, inputs)


def _once(say: Say) -> Say:
    """Hands on what it is told first."""
    said: list[str] = []

    def told(line: str) -> None:
        if not said:
            said.append(line)
            say(line)

    return told


@contextmanager
def _explained() -> Iterator[None]:
    """Failures to compile as one line."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the compiler's own exceptions have no common base
        chain = f"{type(error).__name__} {error!r} {error.__cause__!r}"
        if "InvalidCxxCompiler" in chain or "No working C++ compiler" in chain:
            raise UserError("train.compile: no C++ compiler found; install g++, or set train.compile=off") from error
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"train.compile: compiling failed ({first.strip()}); set train.compile=off") from error


@contextmanager
def _same_random_numbers(device: torch.device) -> Iterator[None]:
    """Random states are afterwards what they were before."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices=devices, device_type="cuda" if device.type == "cpu" else device.type):
        yield
