"""Save and load training state: one file that is always whole, and that no load can turn into code."""

import errno
import hashlib
import io
import math
import os
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Collection
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from supernet.construct import DEEPEST, MOST
from supernet.errors import UserError
from supernet.runs import write_atomic

FORMAT = "supernet-checkpoint"
VERSION = 1
PICKLE = b"\x80\x02"  # how files of torch before 1.6 begin
ZIP = b"PK\x03\x04"  # how later ones begin; torch takes anything else for an old one
MISREAD = (ValueError, LookupError, OverflowError, NotImplementedError, RuntimeError)  # of zipfile, in damaged files
CHUNK = 1 << 20  # bytes read at a time when checking a file
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)
# What the pickle inside a file of `save` names; calling any of these takes no memory beyond what the file holds.
NAMES = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
NAMES |= {f"torch {kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16", "Bool")}
NAMES |= {f"torch {kind}Storage" for kind in ("Long", "Int", "Short", "Char", "Byte")}
# Torch's weights-only reader calls these with a number that the file gives: so many bytes, whatever the file's size.
GREEDY = {"builtins bytearray", "__builtin__ bytearray"}


class ForeignCheckpointError(UserError):
    """The file may be whole, but this project did not write it."""


class DamagedCheckpointError(UserError):
    """The file is missing or not as it was written; one that was kept from before may be whole."""


def save(path: Path, state: dict[str, Any], keep: int = 1) -> None:
    """Write `state` to `path`, replacing what is there completely or not at all.

    `state` holds only dict, list, tuple, str, int, float, bool, None and dense tensors: what `load` accepts.
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
    or made by something else, which may hold objects that could run code or take any memory when read
    (`ForeignCheckpointError`).
    """
    if not path.exists():
        raise DamagedCheckpointError(f"checkpoint {path} does not exist")
    if not path.is_file():
        raise UserError(f"checkpoint {path} is not a file: give the file inside it")
    check_whole(path)
    unsafe = ForeignCheckpointError(
        f"checkpoint {path} was not made by this project or is unsafe to load: "
        "it holds objects other than tensors and plain values"
    )
    if pickled_names(path) - NAMES:
        raise unsafe
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of foreign pickles; what they hold is refused below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise unsafe from error
    except (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"checkpoint {path} is damaged or is not a checkpoint") from error
    if not _is_bounded(state):
        raise UserError(f"checkpoint {path} is unsafe to load: what it holds is nested, or repeated, without end")
    if not _is_all_plain(state):
        raise unsafe
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
    elif isinstance(value, torch.Tensor):
        if not is_dense(value):
            raise TypeError(f"{where} is a {type(value).__name__} ({value.dtype}, {value.layout}): cannot be saved")
    elif value is not None and type(value) not in (str, int, float, bool):
        raise TypeError(f"{where} is a {type(value).__name__}: only plain values and tensors can be saved")


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether it can be saved and read back, on whatever device it is now."""
    exact = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    return exact and tensor.layout == torch.strided and tensor.dtype in DTYPES and tensor.device.type != "meta"


def _is_bounded(state: Any) -> bool:
    """Whether all that goes down `state` by recursion comes to an end soon.

    A pickle can name one list many times: twenty lists of the one before, twice, unfold to a million.
    """
    found: dict[int, tuple[float, float]] = {}  # of each container: values in it, levels; endless while it is open
    stack, closed = [state], set[int]()
    while stack:
        node = stack[-1]
        if id(node) in closed:
            stack.pop()
            continue
        inner = [value for value in _values(node) if isinstance(value, dict | list | tuple)]
        if id(node) not in found:
            found[id(node)] = (math.inf, math.inf)
            stack += [value for value in inner if id(value) not in found]
            continue
        sizes = [found[id(value)] for value in inner]
        values = len(_values(node)) + sum(size for size, _ in sizes)
        found[id(node)] = (values, 1 + max((levels for _, levels in sizes), default=0))
        closed.add(id(node))
    values, levels = found[id(state)]
    return values <= MOST and levels <= DEEPEST


def _values(node: Any) -> Collection[Any]:
    """Of a mapping by its class's own method: a pickle may set attributes of an OrderedDict, such as `values`."""
    return dict.values(node) if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()


def _is_all_plain(state: Any) -> bool:
    """Whether `save` would take what was loaded."""
    if isinstance(state, OrderedDict) and not vars(state).keys() <= {"_metadata"}:  # torch's, of a network's state
        return False
    if type(state) in (dict, OrderedDict):
        named = all(type(key) in (str, int) for key in dict.keys(state))
        return named and all(_is_all_plain(value) for value in dict.values(state))
    if type(state) in (list, tuple):
        return all(_is_all_plain(value) for value in state)
    if isinstance(state, torch.Tensor):
        return is_dense(state) and state.device.type == "cpu"
    return state is None or type(state) in (str, int, float, bool)


def pickled_names(path: Path) -> set[str]:
    """The classes and functions that a file of `torch.save` names, as "module name"; nothing is imported or called.

    Raises `DamagedCheckpointError` where it holds no pickle that can be read.
    """
    try:
        pickled = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")  # the very bytes that torch will read
        operations = pickletools.genops(io.BytesIO(pickled))
        return {str(value) for operation, value, _ in operations if operation.name == "GLOBAL"}
    except (RuntimeError, ValueError) as error:
        raise DamagedCheckpointError(f"checkpoint {path} is damaged or is not a checkpoint") from error


def check_whole(path: Path) -> None:
    """Compare every entry with its checksum; torch itself reads flipped bits without complaint."""
    if path.stat().st_size == 0:
        raise DamagedCheckpointError(f"checkpoint {path} is empty")
    with path.open("rb") as file:
        start = file.read(len(ZIP))
    if start.startswith(PICKLE):
        raise ForeignCheckpointError(f"checkpoint {path} was not made by this project: it is in torch's old format")
    if start != ZIP:
        raise DamagedCheckpointError(f"checkpoint {path} is truncated or damaged, or is not a checkpoint")
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
        # A disk that cannot read it, and a place before the beginning, where a damaged index says that something is.
        if error.errno not in (errno.EIO, errno.EINVAL):
            raise
        raise DamagedCheckpointError(f"checkpoint {path} is truncated or damaged, or is not a checkpoint") from error
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, *MISREAD) as error:
        raise DamagedCheckpointError(f"checkpoint {path} is truncated or damaged, or is not a checkpoint") from error
    if greedy := pickled_names(path) & GREEDY:
        raise ForeignCheckpointError(
            f"checkpoint {path} is unsafe to load: it names {min(greedy).replace(' ', '.')}, which can take any memory"
        )
