"""Read the tensors of somebody else's checkpoint file, and run nothing that the file brings along.

A PyTorch file is a pickle, and a pickle can name any function to be called. Here it is read by PyTorch's weights-only
reader, which knows tensors, plain values and a few constructors of its own. Files of the published codes often hold a
configuration object next to the weights; the reader would refuse them for it. Every name it does not know therefore
stands for the same inert object: nothing is imported or called under it, and what it holds is dropped.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from supernet.checkpoint import check_whole, is_dense
from supernet.errors import UserError

ZIP = b"PK\x03\x04"  # how PyTorch's files begin since version 1.6
WRAPPERS = ("state_dict", "model")  # the entries under which the published codes keep their weights
PARALLEL = "module."  # what DistributedDataParallel puts before every name
NESTING = 4  # wrappers around a state dict, and prefixes before its names; a file can hold itself


@dataclass(frozen=True)
class Weights:
    """The tensors of a file by their original names; beside them, what else the file holds, which was not read."""

    tensors: dict[str, Tensor]
    entries: tuple[str, ...]
    objects: tuple[str, ...]


def read_weights(path: Path) -> Weights:
    """The tensors of a checkpoint file, on the CPU: a state dict, bare or under "state_dict" or "model".

    While it reads, PyTorch's process-wide list of names that are safe to load also holds the inert ones.

    Raises:
        UserError: if the file is missing, damaged, no checkpoint, or asks for what cannot be skipped safely.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} " + ("is not a file" if path.exists() else "does not exist"))
    with path.open("rb") as file:
        is_zip = file.read(len(ZIP)) == ZIP
    if is_zip:
        check_whole(path)
    objects = _foreign_names(path) if is_zip else []
    try:
        with safe_globals([(_Inert, name) for name in objects]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file from anywhere can break its reader in any way
        wanted = f" (it names {some(objects)})" if objects else ""
        raise UserError(
            f"checkpoint {path} cannot be read as weights only: it is damaged, is no checkpoint of PyTorch, or holds "
            f"objects that cannot be skipped safely{wanted}; where it was made, save its state_dict alone"
        ) from error
    entries, state = _unwrapped(path, content)
    return Weights(_tensors(path, state), entries, tuple(objects))


def _foreign_names(path: Path) -> list[str]:
    """The classes and functions that a file names and PyTorch does not read by default, without reading it."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(path))
    except Exception:  # not PyTorch's layout: reading it says so
        return []


class _Calls(type):
    """Calls to `_Inert` give an instance of it, without a look at the arguments."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cast(Any, object).__new__(cls)


class _Inert(metaclass=_Calls):
    """Stands for every class and function that is not PyTorch's.

    Pickles make an object by calling something, or by `cls.__new__` where it is an ordinary instance. The reader
    lets the latter be filled like a dictionary only if it is one, as configuration objects often are.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()

    def __setstate__(self, state: Any) -> None:
        """Drop it."""


def _unwrapped(path: Path, content: Any) -> tuple[tuple[str, ...], Any]:
    """The names of the entries around the state dict, and the state dict."""
    around: list[str] = []
    for _ in range(NESTING + 1):
        if not isinstance(content, dict):
            return tuple(around), content
        content = dict(dict.items(content))  # a pickle may set attributes of an OrderedDict, such as `get`
        wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), dict)), None)
        if wrapper is None:
            return tuple(around), content
        around += [str(key) for key in content if key != wrapper]
        content = content[wrapper]
    raise UserError(
        f"checkpoint {path} holds {' or '.join(map(repr, WRAPPERS))} inside one another, more than {NESTING} deep: "
        "save its state_dict alone"
    )


def _tensors(path: Path, state: Any) -> dict[str, Tensor]:
    """`state` with names without the prefix of parallel training, if it is a state dict."""
    named = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    if not named or not any(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"checkpoint {path} holds no state dict: give a file of weights, bare or under {WRAPPERS}")
    if wrong := [key for key, value in state.items() if not _is_plain(value)]:
        raise UserError(f"checkpoint {path}: {some(wrong)} of its state dict: not plain real tensors")
    if unreal := [key for key, value in state.items() if not _has_storage(value)]:
        raise UserError(f"checkpoint {path}: {some(unreal)} of its state dict: larger than what the file holds of it")
    for _ in range(NESTING):
        if all(key.startswith(PARALLEL) for key in state):
            state = {key.removeprefix(PARALLEL): value for key, value in state.items()}
    return {key: Tensor.detach(value) for key, value in state.items()}


def _is_plain(value: Any) -> bool:
    """Whether it is a dense tensor of real numbers whose values are there."""
    return is_dense(value) and value.device.type == "cpu"


def _has_storage(tensor: Tensor) -> bool:
    """Whether each value has a place of its own: strides of 0 make tensors of any size of a single value."""
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def some(names: Sequence[str]) -> str:
    """The first five of many names, and how many more there are."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
