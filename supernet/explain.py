"""One line for failures that are nobody's bug: a full disk, full memory, a process that the system ended."""

from __future__ import annotations

import errno
import re

# Also where no file is named.
REFUSED_BY_SYSTEM = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.EEXIST),
)
# Python's and torch's words for memory that the machine does not have, and for loaders that have ended.
NO_CPU_MEMORY = re.compile(r"DefaultCPUAllocator.*(not enough|can't allocate) memory", re.DOTALL)
LOST_WORKER = re.compile(r"DataLoader worker.*(is killed by signal|exited unexpectedly)", re.DOTALL)


def explain(error: BaseException) -> str | None:
    """The line for the user, who can mend it; None for anything else."""
    if isinstance(error, OSError) and error.errno is not None and (error.filename or error.errno in REFUSED_BY_SYSTEM):
        return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    # By name, because a run that failed early may not have imported torch.
    name, text = type(error).__name__, str(error).split("\n")[0].split(". ")
    if name == "OutOfMemoryError":
        advice = "lower train.batch_size or data.eval_batch_size, or take a smaller space"
        return f"the GPU's memory is full ({'. '.join(text[:2]).rstrip('.')}): {advice}"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_CPU_MEMORY.search(str(error))):
        return "the machine's memory is full: lower train.batch_size or data.eval_batch_size"
    if isinstance(error, RuntimeError) and LOST_WORKER.search(str(error)):
        return "a process that loads images was ended by the system: if memory was full, lower data.num_workers"
    return None
