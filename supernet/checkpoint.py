"""Save and load training state: one file that is always whole, and that no load can turn into code."""

import errno
import hashlib
import os
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from supernet.errors import UserError
from supernet.runs import write_atomic

FORMAT = "supernet-checkpoint"
VERSION = 1
PICKLE = b"\x80\x02"  # how files of torch before 1.6 begin
MISREAD = (ValueError, LookupError, OverflowError, NotImplementedError, RuntimeError)  # of zipfile, in damaged files
CHUNK = 1 << 20  # bytes read at a time when checking a file


class ForeignCheckpointError(UserError):
    """The file may be whole, but this project did not write it."""


class DamagedCheckpointError(UserError):
    """The file is missing or not as it was written; one that was kept from before may be whole."""


def save(path: Path, state: dict[str, Any], keep: int = 1) -> None:
    """Write `state` to `path`, replacing what is there completely or not at all.

    `state` holds only dict, list, tuple, str, int, float, bool, None and tensors: what `load` accepts.
    The temporary file in the same folder is on disk, and was read back and compared by its SHA-256, before it takes
    the place of the old one. `keep` files stay in all: the one before as `<stem>-1<suffix>`, the one before that as
    `<stem>-2<suffix>`; 1 leaves such files as they are.
    Raises `TypeError` for any other type, `OSError` (full disk, no permission, no such folder) and, where the disk does
    not give back what was written, `UserError`; the old file is then untouched.
    """
    _check_plain(state, "state")
    if clash := {"format", "version"} & state.keys():
        raise ValueError(f"the names {sorted(clash)} are taken by the file format")
    digest = hashlib.sha256()

    def ready(temporary: Path) -> None:
        if _digest_of(temporary) != digest.digest():
            raise UserError(
                f"{path}: the disk gave back other bytes than were written: check it and the machine's memory; the "
                "checkpoint before is kept"
            )
        _shift(path, keep - 1)

    write_atomic(path, lambda file: _write({"format": FORMAT, "version": VERSION, **state}, file, digest), ready)


def kept_files(path: Path) -> list[Path]:
    """`path` and what `save` has kept of the files before it, the newest first; only files that exist."""
    name = re.compile(rf"{re.escape(path.stem)}-(\d+){re.escape(path.suffix)}")
    found = [(int(match[1]), file) for file in path.parent.glob("*") if (match := name.fullmatch(file.name))]
    return [file for file in (path, *(file for _, file in sorted(found))) if file.is_file()]


def newest_whole(path: Path) -> Path:
    """`path`, or where it is missing or damaged the newest whole one of the files that were kept from before.

    Raises `UserError` if there is none, `ForeignCheckpointError` if the newest was not made by this project.
    """
    damage: UserError | None = None
    for file in kept_files(path):
        try:
            check_whole(file)
        except DamagedCheckpointError as error:
            damage = damage or error
        else:
            return file
    raise damage or DamagedCheckpointError(f"checkpoint {path} does not exist")


def load(path: Path) -> dict[str, Any]:
    """Read a file of `save`; tensors arrive on the CPU. The keys "format" and "version" are not returned.

    Raises `UserError` when the file is missing, truncated or damaged (every byte is checked), made by a newer version,
    or made by something else, which may hold objects that could run code when read (`ForeignCheckpointError`).
    """
    if not path.exists():
        raise DamagedCheckpointError(f"checkpoint {path} does not exist")
    if not path.is_file():
        raise UserError(f"checkpoint {path} is not a file: give the file inside it")
    check_whole(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of foreign pickles; what they hold is refused below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ForeignCheckpointError(
            f"checkpoint {path} was not made by this project or is unsafe to load: "
            "it holds objects other than tensors and plain values"
        ) from error
    except (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"checkpoint {path} is damaged or is not a checkpoint") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ForeignCheckpointError(f"checkpoint {path} was not made by this project (no {FORMAT!r} mark)")
    version = state.get("version")
    if type(version) is not int or version > VERSION:
        raise UserError(
            f"checkpoint {path} has format version {version}, this program reads up to {VERSION}: upgrade it"
        )
    return {key: value for key, value in state.items() if key not in ("format", "version")}


class _Sink:
    """Pass bytes on to a file and a hash, and keep an error: torch replaces an `OSError` by one without a number."""

    def __init__(self, file: BinaryIO, digest: "hashlib._Hash") -> None:
        self.file, self.digest = file, digest
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        try:
            self.file.flush()
        except OSError as error:
            self.error = error
            raise


def _write(state: dict[str, Any], file: BinaryIO, digest: "hashlib._Hash") -> None:
    sink = _Sink(file, digest)
    try:
        torch.save(state, cast(BinaryIO, sink))  # all that torch calls
    except Exception:
        if sink.error is not None:
            raise sink.error from None
        raise


def _digest_of(path: Path) -> bytes:
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):  # forget the copy in memory: what counts is what the disk holds
            with suppress(OSError):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").digest()


def _shift(path: Path, count: int) -> None:
    """Give the file at `path` and `count` - 1 before it the names of the next older ones. `path` itself stays, too."""
    names = [path, *(path.with_name(f"{path.stem}-{age}{path.suffix}") for age in range(1, count + 1))]
    for newer, older in reversed(list(pairwise(names[1:]))):
        if newer.exists():
            os.replace(newer, older)
    if count and path.exists():
        names[1].unlink(missing_ok=True)
        try:
            os.link(path, names[1])
        except OSError:  # a file system without hard links
            os.replace(path, names[1])


def _check_plain(value: Any, where: str) -> None:
    """Exact types only: a subclass (a numpy float is a float) would be pickled under its own class."""
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            if type(key) not in (str, int):
                raise TypeError(f"{where} has the key {key!r}: only str and int can be saved as keys")
            _check_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for i, item in enumerate(value):
            _check_plain(item, f"{where}[{i}]")
    elif value is not None and type(value) not in (str, int, float, bool, torch.Tensor, torch.nn.Parameter):
        raise TypeError(f"{where} is a {type(value).__name__}: only plain values and tensors can be saved")


def check_whole(path: Path) -> None:
    """Compare every entry with its checksum; torch itself reads flipped bits without complaint."""
    if path.stat().st_size == 0:
        raise DamagedCheckpointError(f"checkpoint {path} is empty")
    with path.open("rb") as file:
        if file.read(2) == PICKLE:
            raise ForeignCheckpointError(f"checkpoint {path} was not made by this project: it is in torch's old format")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # torch compresses nothing, so what is inside cannot be larger than the file.
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise zipfile.BadZipFile("more inside than the file holds")
            for entry in entries:
                with archive.open(entry) as content:
                    while content.read(CHUNK):
                        pass
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a place before the beginning, where a damaged index says that something is
            raise
        raise DamagedCheckpointError(f"checkpoint {path} is truncated or damaged, or is not a checkpoint") from error
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, *MISREAD) as error:
        raise DamagedCheckpointError(f"checkpoint {path} is truncated or damaged, or is not a checkpoint") from error
