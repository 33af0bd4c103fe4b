"""What the checkpoint of a training run must hold: looked at right after it is read, before anything relies on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from supernet.construct import LARGEST_INT, shown
from supernet.errors import UserError

# What foreign values raise where they are taken over: by torch's `load_state_dict` and by parts that learn.
UNFIT = (LookupError, RuntimeError, ValueError, TypeError, AttributeError, ArithmeticError)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_INT


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST_INT  # not NaN


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _is_description(value: Any) -> bool:
    """Whether it is a mapping of plain values: what JSON can say too."""
    return _is_mapping(value) and not any(isinstance(node, Tensor) for node in _nodes(value))


def _is_config(value: Any) -> bool:
    """Whether the sections that are read on opening are sections, and the seed is one."""
    if not _is_description(value) or not _is_count(value.get("seed", 0)):
        return False
    sections = [value[key] for key in ("data", "train", "sharing") if value.get(key) is not None]
    return all(_is_mapping(section) for section in sections)


def _are_weights(value: Any) -> bool:
    return _is_mapping(value) and all(isinstance(tensor, Tensor) for tensor in value.values())


def _is_guard(value: Any) -> bool:
    return _is_mapping(value) and _is_number(value.get("best")) and _is_count(value.get("strikes"))


def _is_time(value: Any) -> bool:
    return _is_number(value) and value >= 0


Kinds = Mapping[str, tuple[str, Callable[[Any], bool]]]
WEIGHTS, MAPPING = ("named tensors", _are_weights), ("a mapping", _is_mapping)
DESCRIPTION = ("a mapping of plain values", _is_description)
# What the weights of a run, and what a run that goes on, are read from.
OPENED: Kinds = {
    "space": DESCRIPTION,
    "model": WEIGHTS,
    "config": ("a configuration", _is_config),
    "step": ("a number of steps", _is_count),
}
RESUMED: Kinds = {
    **OPENED,
    "optimizer": MAPPING,
    "course": MAPPING,
    "best": ("a number", _is_number),
    "guard": ("the guard's best score and strikes", _is_guard),
    "seconds": ("a time", _is_time),
}
# What may be None, or missing in checkpoints of searches.
OPTIONAL: Kinds = {"ema": WEIGHTS, "teacher": WEIGHTS, "splits": DESCRIPTION}


def checked(file: Path, state: dict[str, Any], kinds: Kinds) -> dict[str, Any]:
    """`state` as `checkpoint.load` read it from `file`, if it is of these kinds.

    Raises:
        UserError: naming the file and what is missing or something else.
    """
    if missing := kinds.keys() - state.keys():
        raise UserError(f"checkpoint {file} holds no training run (it lacks {sorted(missing)})")
    given = {key: kind for key, kind in OPTIONAL.items() if state.get(key) is not None}
    for key, (words, is_one) in {**kinds, **given}.items():
        if not is_one(state[key]):
            raise UserError(f"checkpoint {file} holds no training run: its {key!r} is not {words}")
    return state


def run_config(state: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration in a state that is `checked`, for those that read the run.

    It orders no download, and says how many images calibrate: where it does not itself, as many as by default.
    """
    from supernet.settings import TrainSettings

    config = without_downloads(state["config"])
    if not config:
        return {}
    train = {"calibration_images": TrainSettings.calibration_images, **(config.get("train") or {})}
    if not _is_count(train["calibration_images"]):
        raise UserError(
            f"train.calibration_images={shown(train['calibration_images'])}: expected a number of images, in the "
            "configuration that the checkpoint holds"
        )
    return {**config, "train": train}


def without_downloads(node: Any) -> Any:
    """A stored configuration that downloads nothing, at any depth: only who types `data.download=true` asks for it."""
    if isinstance(node, Mapping):
        return {key: False if key == "download" and value else without_downloads(value) for key, value in node.items()}
    return [without_downloads(value) for value in node] if isinstance(node, list | tuple) else node


def load_optimizer(
    optimizer: torch.optim.Optimizer, alike: Callable[[list[Tensor]], torch.optim.Optimizer], state: Any
) -> None:
    """Take over what an optimizer has learned; its settings stay those that the run's configuration gave it.

    Args:
        alike: makes another optimizer of the same settings, for these parameters.

    Raises:
        ValueError: if the state is that of another optimizer, or of other parameters.
    """
    own, entries = optimizer.state_dict()["param_groups"], state["state"]
    if [group["params"] for group in state["param_groups"]] != [group["params"] for group in own]:
        raise ValueError("the optimizer's parameters are others")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    examples = {axes: _after_a_step(alike, one) for axes, one in {one.ndim: one for one in parameters}.items()}
    for number, entry in entries.items():
        if number not in range(len(parameters)):
            raise ValueError(f"the optimizer's state has parameter {shown(number)} of {len(parameters)}")
        parameter = parameters[number]
        example = examples[parameter.ndim]
        if entry and entry.keys() != example.keys():
            raise ValueError(f"the optimizer's state has {shown(list(entry))}, expected {list(example)}")
        for name, value in entry.items():
            if not _is_like(value, example[name], parameter):
                raise ValueError(
                    f"the optimizer's {shown(name)} of a parameter of {list(parameter.shape)} does not fit"
                )
    held = sum(bool(entry) for entry in entries.values())
    # It takes momentum of all parameters or of none.
    if isinstance(optimizer, torch.optim.SGD) and optimizer.defaults.get("fused") and 0 < held < len(parameters):
        raise ValueError(f"the optimizer's state has momentum of {held} of {len(parameters)} parameters")
    optimizer.load_state_dict({"state": entries, "param_groups": own})


def _after_a_step(alike: Callable[[list[Tensor]], torch.optim.Optimizer], like: Tensor) -> dict[str, Any]:
    """What such an optimizer keeps of a parameter like this one, but of two values along each axis."""
    parameter = torch.nn.Parameter(torch.zeros([2] * like.ndim, dtype=like.dtype, device=like.device))
    parameter.grad = torch.zeros_like(parameter)
    optimizer = alike([parameter])
    optimizer.step()
    return dict(optimizer.state[parameter])


def _is_like(value: Any, example: Any, parameter: Tensor) -> bool:
    """Whether a value is what the `example` is of its own parameter: a count of steps, or as large along each axis."""
    if not isinstance(example, Tensor):
        return type(value) is type(example) or (_is_number(value) and _is_number(example))
    if not isinstance(value, Tensor) or value.is_floating_point() != example.is_floating_point():
        return False
    if example.ndim == 0:
        return value.ndim == 0 and (parameter.ndim == 0 or 0 <= value.item() < math.inf)
    sizes = [1 if side == 1 else full for side, full in zip(example.shape, parameter.shape, strict=False)]
    return list(value.shape) == sizes


def is_like(value: Any, example: Any) -> bool:
    """Whether a state of a part that learns has the structure of `example`: names, kinds, axes of tensors."""
    if isinstance(example, Mapping):
        same = isinstance(value, Mapping) and value.keys() == example.keys()
        return same and all(is_like(value[key], example[key]) for key in example)
    if isinstance(example, list | tuple):
        same = isinstance(value, list | tuple) and len(value) == len(example)
        return same and all(is_like(one, other) for one, other in zip(value, example, strict=True))
    if isinstance(example, Tensor):
        return isinstance(value, Tensor) and (value.ndim, value.dtype) == (example.ndim, example.dtype)
    if example is None or _is_number(example):
        return _is_number(value) or (example is None and value is None)
    return type(value) is type(example)


def reason(error: Exception) -> str:
    """The last line of a message, which says most in those of torch."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def _nodes(node: Any) -> Iterator[Any]:
    """Everything in nested mappings and lists."""
    yield node
    inner: Sequence[Any] = (
        list(node.values()) if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    )
    for value in inner:
        yield from _nodes(value)
