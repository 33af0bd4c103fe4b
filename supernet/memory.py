"""Memory of this process: its peak, what is free, what autograd keeps, and keeping what was freed."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


def peak_memory_mb(device: torch.device) -> float:
    """MiB: allocated on the GPU where `device` is one, otherwise resident in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def keep_freed_memory() -> None:
    """Ask the C library to keep freed memory for the next tensor instead of returning it to the system.

    Training frees and allocates the same activations in every step. With glibc's defaults each large one is a
    fresh mapping whose pages the kernel must zero again: 17% of a CPU training step. Does nothing elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 256 * 2**20)


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can still allocate; None where the system does not tell.

    On a GPU with what PyTorch's allocator holds for later use; in main memory what is available, or what the limit of
    the process's control group leaves, whichever is less.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return _free_main_memory(Path("/"))


def _free_main_memory(root: Path) -> int | None:
    """Of Linux; `root` is where /proc and /sys are."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min([*available, *_left_in_groups(root)], default=None)


def _left_in_groups(root: Path) -> list[int]:
    """What the control groups of this process and their parents leave, versions 1 and 2."""
    try:
        entries = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    left = []
    for number, controllers, name in entries:
        two = number == "0" and not controllers
        if not two and "memory" not in controllers.split(","):
            continue
        files = ("memory.max", "memory.current") if two else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        top = root / ("sys/fs/cgroup" if two else "sys/fs/cgroup/memory")
        own = top / name.lstrip("/")
        for folder in (own, *own.parents):
            left += _left(folder, *files)
            if folder == top:
                break
    return left


def _left(folder: Path, limit: str, usage: str) -> list[int]:
    """What one group leaves, file cache that can be dropped included; nothing where it has no limit."""
    try:
        most, used = ((folder / file).read_text().strip() for file in (limit, usage))
        pairs = (line.partition(" ") for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return []
    if most == "max":
        return []
    stats = {key: int(value) for key, _, value in pairs if key.endswith("inactive_file")}
    cache = stats.get("total_inactive_file", stats.get("inactive_file", 0))  # version 1 has both
    return [max(0, int(most) - max(0, int(used) - cache))]


class Kept(NamedTuple):
    """Bytes that a forward pass keeps for its backward pass, weights left out; see `kept_for_backward`."""

    outside: int  # of the blocks
    inputs: int  # of the blocks
    inside: list[int]  # what every block keeps besides, in the order in which they ran


def kept_for_backward(net: nn.Module, call: Callable[[], object], blocks: Sequence[nn.Module] = ()) -> Kept:
    """What autograd keeps of a forward pass: storages, each once, but for those of parameters and buffers.

    Args:
        call: runs the pass; its result is dropped.
        blocks: parts of `net` that run one after another.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers())}
    outside: dict[int, int] = {}  # bytes by address
    inside: list[dict[int, int]] = []
    inputs: list[Tensor] = []  # held, so that nothing else gets their addresses
    where = outside

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        where[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the storage lives as long as the graph

    def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal where
        inputs.extend(value for value in args if isinstance(value, Tensor))
        where = {}
        inside.append(where)

    def leave(*_: object) -> None:
        nonlocal where
        where = outside

    hooks = [block.register_forward_pre_hook(enter) for block in blocks]
    hooks += [block.register_forward_hook(leave) for block in blocks]
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            call()
    finally:
        for hook in hooks:
            hook.remove()
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in inputs}
    sizes = []
    for group in (held, outside, *inside):  # each storage counts in the first of them
        sizes.append(sum(size for at, size in group.items() if at not in known))
        known |= group.keys()
    return Kept(inputs=sizes[0], outside=sizes[1], inside=sizes[2:])
