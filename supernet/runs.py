"""Run folders, atomic files, and the record of where and how a run was made."""

import json
import math
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from supernet.errors import UserError

RESULTS = "results.json"
CHECKPOINT = "checkpoint.pt"
LOCK = ".lock"
PACKAGES = ("torch", "torchvision", "timm", "numpy", "hydra-core", "safetensors")
# A name of a secret before the first `=`, or as a key inside of `{…}`.
SECRET = re.compile(
    r"(^[^=]*|[{,]\s*['\"]?[\w.\-]*)([_-]key|apikey|token(?!s)|secret|passw|credential)[\w.\-]*['\"]?\s*[=:]",
    re.IGNORECASE,
)


def config_dir() -> Path:
    """Folder of the YAML configs: `configs/` of a checkout, else the copy inside the package.

    Raises `UserError` when neither exists.
    """
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "configs", package / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError(f"no configs found beside {package}: run from a clone of the repository")


def new_run(root: Path, name: str | None = None, now: datetime | None = None) -> Path:
    """Create and return the folder `<root>/<YYYYmmdd-HHMMSS>-<name>`, never one that exists.

    A taken name gets the suffix -2, -3, …, also when several processes ask at the same time.
    Characters of `name` other than letters, digits and `._+=-` become `-`.
    """
    stamp = (now or datetime.now()).strftime("%Y%m%d-%H%M%S")
    clean = re.sub(r"[^\w.+=-]+", "-", name or "").strip("-")
    base = f"{stamp}-{clean}" if clean else stamp
    root.mkdir(parents=True, exist_ok=True)
    count = 1
    while True:
        folder = root / (base if count == 1 else f"{base}-{count}")
        try:
            folder.mkdir()
        except FileExistsError:
            count += 1
        else:
            return folder


def newest_finished(root: Path, file: str = RESULTS, command: str = "python train.py") -> Path:
    """Return the run folder under `root` whose `file` (written when a run ends) is the newest.

    Raises `UserError` that names `root` and the `command` that makes such a run.
    """
    found = latest(root, file)
    if found is None:
        raise UserError(f"no finished run (a folder with {file}) under {root}: run `{command}` first")
    return found


def latest(root: Path, file: str = CHECKPOINT) -> Path | None:
    """Return the run folder directly under `root` whose `file` is the newest, None when there is none."""
    found: list[tuple[int, str, Path]] = []
    for path in root.glob(f"*/{file}"):
        with suppress(FileNotFoundError):  # removed since it was listed
            found.append((path.stat().st_mtime_ns, path.parent.name, path.parent))
    return max(found)[2] if found else None


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process: two writers would spoil each other's files. Ends with the process.

    Raises `UserError` if another process holds it. Where the system has no locks nothing is held.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is writing to {folder}: wait for it, or stop it first") from None
        except OSError:  # a file system without locks
            pass
        yield


def refuse_held(folder: Path) -> None:
    """Raises `UserError` if a process holds `folder` now."""
    with lock(folder):
        pass


def folder_of(given: str) -> Path:
    """A run's folder, also where a file in it was given."""
    path = Path(given)
    return path.parent if path.is_file() else path


def is_locked(folder: Path) -> bool:
    """Whether a process holds `folder` now."""
    try:
        with lock(folder):
            return False
    except UserError:
        return True


def write_atomic(
    path: Path, write: Callable[[BinaryIO], object], ready: Callable[[Path], object] = lambda temporary: None
) -> None:
    """Replace `path` by what `write` puts into a binary file, completely or not at all.

    The bytes go to a temporary file in the same folder and reach the disk before the old file is replaced; in between,
    `ready` is called with the temporary file. A failure, also of `ready`, leaves the old file and no temporary one;
    what killed writers left is removed.
    """
    prefix = f".{path.name}.{socket.gethostname()}."
    for stale in path.parent.glob(f"{_escape(prefix)}*.tmp"):
        if not _alive_elsewhere(stale.name[len(prefix) : -len(".tmp")]):
            stale.unlink(missing_ok=True)
    temporary = path.with_name(f"{prefix}{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        ready(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # more telling than the temporary name, or none
        raise
    _sync_folder(path.parent)


def write_json(path: Path, obj: Any) -> None:
    """Write `obj` as indented JSON, atomically. Numbers that JSON lacks (NaN, infinities) become null."""
    text = json.dumps(plain(obj), indent=2, allow_nan=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises `UserError` when it is missing, unreadable as text, or not JSON."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise IsADirectoryError
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(f"{path} does not exist or is not a file") from error
    except (ValueError, RecursionError) as error:  # not JSON, not text, numbers without end, nested without end
        raise UserError(f"{path} is damaged or is not JSON: {error}") from error


def plain(obj: Any) -> Any:
    """Convert to what JSON can hold: paths to strings, scalars of numpy or torch to numbers, NaN to None.

    Raises `TypeError` for anything else.
    """
    if obj is None or isinstance(obj, str | bool | int):
        return obj
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else None
    if isinstance(obj, Mapping):
        return {str(key): plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [plain(value) for value in obj]
    if isinstance(obj, Path):
        return str(obj)
    if hasattr(obj, "item") and getattr(obj, "ndim", None) == 0:
        return plain(obj.item())
    raise TypeError(f"{type(obj).__name__} cannot be written as JSON: {obj!r}")


def environment() -> dict[str, Any]:
    """Describe machine, software and code version of this run, for its `environment.json`.

    Holds no environment variables, host or user names; values of arguments named like secrets are hidden.
    """
    import torch

    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "argv": typed(),
        "version": _version("one-shot-supernet"),
        "git": _git(Path(__file__).resolve()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda_devices": cuda,
    }


def typed() -> list[str]:
    """The command line's words, the program's name first. Values of arguments that are named like secrets, also inside
    of `{…}`, are hidden: this is printed and stored. (`supernet.cli` refuses such arguments.)"""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]  # where a program lies is nobody's business
    return [f"{word.split('=', 1)[0]}=***" if SECRET.search(word) else word for word in words]


def _version(package: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def _git(file: Path) -> dict[str, Any] | None:
    """Commit of the checkout that tracks `file`, and whether tracked files differ from it."""

    def ask(*args: str) -> str:
        command = ["git", "-C", str(file.parent), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository: that commit would say nothing.
        ask("ls-files", "--error-unmatch", file.name)
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name() -> str:
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _alive_elsewhere(pid: str) -> bool:
    """Whether another process with this id runs now; our own id can only be a leftover."""
    if not (pid.isascii() and pid.isdecimal() and len(pid) < 10) or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _escape(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable. Some file systems refuse to sync a folder: then nothing more can be done."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
