"""Section `syncs`: a training step gives work to the device and never waits for it.

On a GPU PyTorch itself says what waits (`torch.cuda.set_sync_debug_mode`). Elsewhere `PretendDevice` follows every
tensor that would be on a GPU, and notes what would wait for it, or would not run there at all.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from supernet.observers import SlotGradients
from supernet.trainer import Trainer

REPOSITORY = Path(__file__).resolve().parent.parent
QUIET = ("train.log_every=1000000", "train.health_every=0")  # reading losses waits, and is meant to
METHODS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "path importance": ("path_sampler=importance",),
    "path importance, relative, unbiased": (
        "path_sampler=importance",
        "path_sampler.indicator=relative",
        "path_sampler.mode=unbiased",
    ),
    "data importance": ("data_sampler=importance", "data_sampler.mode=curriculum"),
    "data importance, unbiased": ("data_sampler=importance", "data_sampler.mode=unbiased"),
    "attentive": ("path_sampler=attentive",),
    "fair": ("path_sampler=fair", "path_sampler.strict=false"),
    "alpha": ("distill=alpha",),
    "ofa": ("distill=ofa",),
    "ema": ("train.ema_decay=0.9",),
    "clip_norm": ("train.clip_norm=1.0",),
    "clip_value": ("train.clip_value=1.0",),
    "drop_path": ("train.drop_path=0.2", "train.dropout=0.2"),
    "mixup and cutmix": ("train.mixup=0.2", "train.cutmix=1.0"),
    "groups": ("sharing=groups", "sharing.groups=2", "sharing.by=random"),
    "deps": ("phases=deps",),
    "bf16": ("train.amp=true",),
    "adamw": ("optim=adamw",),
    "rmsprop": ("optim=rmsprop",),
}
# Who may wait: a slot that trains the best of several subnets must know their losses first, once a step.
MEANT = ("supernet/paths/attentive.py",)

ATEN = torch.ops.aten
READS = {
    ATEN._local_scalar_dense,
    ATEN.is_nonzero,
    ATEN.nonzero,
    ATEN.masked_select,
    ATEN.equal,
    ATEN._unique2,
    ATEN.unique_dim,
    ATEN.unique_consecutive,
}
COPIES = {ATEN.copy_, ATEN._foreach_copy_}  # from the CPU to the device is allowed
READING_METHODS = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.item}
# On the CPU these look at values that they trust on a GPU.
CPU_CHECKS = {"one_hot"}


class PretendDevice:
    """Notes what would wait for a GPU, if the given tensors and all that is computed of them were there.

    Use as a context manager around CPU code; `waits` then lists "<file>:<line> <operation>". Noted are: values that
    the host reads, copies to the host, operations whose output's size depends on values, and operations over tensors
    of both sorts, which would fail. Tensors of one value may come from the CPU. Tensors that are moved
    (`.to(torch.device)`) or created with `device=` count as being on the device.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.waits: list[str] = []
        self._there: dict[int, Any] = {}  # storages, kept alive so that no address comes back as another
        self._modes = ExitStack()
        self.trusting = False  # inside an operation that looks at values on the CPU alone
        self.leaving = False  # what is computed now belongs to the host
        for tensor in tensors:
            self.add(tensor)

    def add(self, tensor: Tensor) -> None:
        """Count a tensor as being on the device."""
        storage = tensor.untyped_storage()
        self._there[storage._cdata] = storage

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor would be on the device."""
        return tensor.untyped_storage()._cdata in self._there

    def note(self, operation: str) -> None:
        """Remember a wait, with the innermost line of this repository's packages that led to it."""
        self.waits.append(f"{_caller()} {operation}")

    def __enter__(self) -> PretendDevice:
        self._modes.enter_context(_Functions(self))
        self._modes.enter_context(_Operations(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._modes.close()
        self._there.clear()


class _Operations(TorchDispatchMode):
    """What reaches the backend, the backward pass included."""

    def __init__(self, device: PretendDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in found if self._device.holds(tensor)]
        packet = func.overloadpacket
        masks = packet in (ATEN.index, ATEN.index_put_, ATEN.index_put) and any(
            tensor.dtype in (torch.bool, torch.uint8) for tensor in there[1:]
        )
        if there and (packet in READS or masks) and not self._device.trusting:
            self._device.note(str(packet))
        elsewhere = [tensor for tensor in found if not self._device.holds(tensor) and tensor.ndim]
        if packet in COPIES:
            if there and elsewhere and not self._device.holds(found[0]):
                self._device.note(f"{packet} to the host")
        elif there and elsewhere and not self._device.trusting:
            self._device.note(f"{packet} over tensors of the CPU and the device")
        result = func(*args, **kwargs)
        if there and packet is not ATEN._local_scalar_dense and not self._device.leaving:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self._device.add(leaf)
        return result


class _Functions(TorchFunctionMode):
    """What never reaches the backend, since there is nothing to do on a CPU; and where tensors are asked for."""

    def __init__(self, device: PretendDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        ours = bool(args) and isinstance(args[0], Tensor) and self._device.holds(args[0])
        fetched = ours and (func is Tensor.cpu or (func is Tensor.to and "cpu" in args[1:]))
        if fetched or (ours and func in READING_METHODS):
            self._device.note(f"Tensor.{func.__name__}")
        before = self._device.trusting
        self._device.trusting = before or getattr(func, "__name__", "") in CPU_CHECKS
        try:
            result = func(*args, **kwargs)
        finally:
            self._device.trusting = before
        if fetched:
            self._device.leaving = True
            result = result.clone()
            self._device.leaving = False
        moved = func is Tensor.to and any(isinstance(value, torch.device) for value in (*args[1:], *kwargs.values()))
        if isinstance(result, Tensor) and (moved or kwargs.get("device") is not None):
            self._device.add(result)
        return result


def _caller() -> str:
    """ "supernet/step.py:80": the innermost frame in supernet, search or the file that called; this one left out."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(REPOSITORY) and path != Path(__file__) and ".venv" not in path.parts:
            return f"{path.relative_to(REPOSITORY).as_posix()}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"


@contextmanager
def watched(trainer: Trainer, *more: Tensor) -> Iterator[list[str]]:
    """What waits for the device in the block, as "<file>:<line> <operation>": complete once the block has ended.

    more: further tensors that are on the device, such as those of the batch; a GPU needs no telling.
    """
    if trainer.device.type != "cuda":
        with PretendDevice([*held(trainer), *more]) as device:
            yield device.waits
        return
    waits: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchronizing" in str(warning.message):
            path = Path(warning.filename)
            shown = path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path
            waits.append(f"{shown.as_posix()}:{warning.lineno} {warning.message}")


def held(trainer: Trainer) -> list[Tensor]:
    """The tensors that a trainer keeps on its device."""
    tensors = [*trainer.net.parameters(), *trainer.net.buffers()]
    tensors += [p.grad for p in trainer.net.parameters() if p.grad is not None]
    if trainer.ema is not None:
        tensors += [*trainer.ema.parameters(), *trainer.ema.buffers()]
    if trainer.teacher is not None:
        tensors += [*trainer.teacher.network.parameters(), *trainer.teacher.network.buffers()]
    if trainer.weights is not None:
        tensors.append(trainer.weights)
    for state in trainer.optimizer.state.values():  # "step" counts on the CPU, unless the optimizer is fused
        tensors += [value for value in state.values() if isinstance(value, Tensor) and value.ndim]
    for observer in trainer.course._gradients._observers.values():
        tensors += observer._nothing.values() if isinstance(observer, SlotGradients) else ()
    for name in ("path_sampler", "data_sampler"):
        part = getattr(trainer.course, name)
        tensors += [value for key, value in vars(part).items() if isinstance(value, Tensor) and key in ON_DEVICE]
    return tensors


# Of samplers: what moves to the device with the first observation. Probabilities stay on the CPU.
ON_DEVICE = ("_scores", "_seen")


def unexpected(waits: Iterable[str]) -> list[str]:
    """Those of `waits` that nobody has asked for."""
    return [wait for wait in waits if wait.partition(":")[0] not in MEANT]
