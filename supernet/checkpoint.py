"""Save and load training state: one file that is always whole, and that no load can turn into code."""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from supernet.errors import UserError
from supernet.runs import write_atomic

FORMAT = "supernet-checkpoint"
VERSION = 1
PICKLE = b"\x80\x02"  # how files of torch before 1.6 begin
CHUNK = 1 << 20  # bytes read at a time when checking a file


class ForeignCheckpointError(UserError):
    """The file may be whole, but this project did not write it."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`, replacing what is there completely or not at all.

    `state` holds only dict, list, tuple, str, int, float, bool, None and tensors: what `load` accepts.
    The temporary file in the same folder is on disk before it takes the place of the old one.
    Raises `TypeError` for any other type, `OSError` (full disk, no permission) with the old file untouched.
    """
    _check_plain(state, "state")
    if clash := {"format", "version"} & state.keys():
        raise ValueError(f"the names {sorted(clash)} are taken by the file format")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda file: _write({"format": FORMAT, "version": VERSION, **state}, file))


def load(path: Path) -> dict[str, Any]:
    """Read a file of `save`; tensors arrive on the CPU. The keys "format" and "version" are not returned.

    Raises `UserError` when the file is missing, truncated or damaged (every byte is checked), made by a newer version,
    or made by something else, which may hold objects that could run code when read (`ForeignCheckpointError`).
    """
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist")
    if not path.is_file():
        raise UserError(f"checkpoint {path} is not a file: give the file inside it")
    check_whole(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ForeignCheckpointError(
            f"checkpoint {path} was not made by this project or is unsafe to load: "
            "it holds objects other than tensors and plain values"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise UserError(f"checkpoint {path} is damaged or is not a checkpoint") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ForeignCheckpointError(f"checkpoint {path} was not made by this project (no {FORMAT!r} mark)")
    version = state.get("version")
    if type(version) is not int or version > VERSION:
        raise UserError(
            f"checkpoint {path} has format version {version}, this program reads up to {VERSION}: upgrade it"
        )
    return {key: value for key, value in state.items() if key not in ("format", "version")}


class _Sink:
    """Pass bytes on to a file and keep its error: torch replaces an `OSError` by one without a number."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
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


def _write(state: dict[str, Any], file: BinaryIO) -> None:
    sink = _Sink(file)
    try:
        torch.save(state, cast(BinaryIO, sink))  # all that torch calls
    except Exception:
        if sink.error is not None:
            raise sink.error from None
        raise


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
        raise UserError(f"checkpoint {path} is empty")
    with path.open("rb") as file:
        if file.read(2) == PICKLE:
            raise ForeignCheckpointError(f"checkpoint {path} was not made by this project: it is in torch's old format")
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as entry:
                    while entry.read(CHUNK):
                        pass
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"checkpoint {path} is truncated or damaged, or is not a checkpoint") from error
