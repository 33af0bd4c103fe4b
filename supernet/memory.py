"""Memory of this process: its peak, and keeping what was freed."""

from __future__ import annotations

import ctypes
import resource
import sys

import torch


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
