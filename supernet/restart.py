"""What a launcher has started before: torchrun starts all processes again, with one command, when one has failed."""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import suppress
from pathlib import Path

from supernet.errors import UserError
from supernet.runs import read_json

ENVIRONMENT = "environment.json"


def launcher() -> str | None:
    """A name of the launcher of this process that no other has; None where there is none.

    The job's number alone will not do: torchrun's default is the same for all jobs.
    """
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    if job is None:
        return None
    parent, began = os.getppid(), ""
    with suppress(OSError, IndexError):  # numbers of processes come again
        began = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    return hashlib.sha256(f"{job} {socket.gethostname()} {parent} {began}".encode()).hexdigest()[:16]


def begun_before(root: Path) -> Path | None:
    """The newest folder directly under `root` that an earlier start by this process's launcher has begun.

    None at the first start, and where the process that wrote it ran on another machine.
    """
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or (mine := launcher()) is None:
        return None
    found = []
    for file in root.glob(f"*/{ENVIRONMENT}"):
        with suppress(UserError, OSError):
            described = read_json(file)
            if isinstance(described, dict) and described.get("launcher") == mine:
                found.append((file.stat().st_mtime_ns, file.parent))
    return max(found)[1] if found else None
