"""Turn a config node `{_target_: "supernet.x.y", **params}` into the object that it describes."""

import difflib
import functools
import importlib
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sized
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from supernet.errors import UserError

# Where constructors live: prefixes that end in a dot, and full names. Configurations come with checkpoints and run
# folders too, so what writes files (`supernet.runs.write_json`, `search.history.History`) must not be among them.
ALLOWED = (
    *("supernet.models.", "supernet.data.", "supernet.data_samplers.", "supernet.samplers.", "supernet.paths."),
    *("supernet.phases.", "supernet.sharing.", "supernet.distill.", "supernet.schedule.", "supernet.settings."),
    *("supernet.space.restrict", "supernet.narrow.narrow", "search.", "torch.optim."),
)
WRITERS = ("search.history.", "search.report.", "search.gradient.trace.", "search.latency.measure.")
RESERVED = ("_target_", "_partial_")
# Every part starts with a letter: no private and no dunder name can be reached.
TARGET = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", re.ASCII)
LARGEST_INT = 2**63 - 1  # what tensors and files can hold
DEEPEST = 100  # levels of mappings and lists in one configuration
MOST = 1_000_000  # values in them; what is in two places counts twice, for it is looked at twice
SHOWN = 120  # characters of a value in a message


def nearest(name: str, names: Iterable[str], n: int = 3) -> list[str]:
    """Return up to `n` of `names` that a person who typed `name` most likely meant, best first.

    Dotted names also match by their last part, so that `epochs` finds `train.epochs`.
    """
    known = list(dict.fromkeys(names))
    last = name.rsplit(".", 1)[-1]
    parts = {known_name: known_name.rsplit(".", 1)[-1] for known_name in known}
    whole = difflib.get_close_matches(name, known, n, cutoff=0.6)
    same_end = [known_name for known_name, part in parts.items() if part == last]
    close_ends = difflib.get_close_matches(last, list(dict.fromkeys(parts.values())), n, cutoff=0.75)
    close = [known_name for end in close_ends for known_name, part in parts.items() if part == end]
    return list(dict.fromkeys([*whole, *same_end, *close]))[:n]


def construct(cfg: Mapping[str, Any], where: str, **kwargs: Any) -> Any:
    """Build the object named by `cfg["_target_"]` from the other entries of `cfg`.

    `where` is the config's own dotted key (`data`, `optim`), used in messages. `kwargs` are given by code:
    they override `cfg` and their types are not checked. Lists become tuples; nested mappings that have a
    `_target_` are built first; `_partial_: true` returns a `functools.partial` after the same checks.
    Only what is `ALLOWED` can be named: classes of this project and of `torch.optim`, and a few functions.

    Raises `UserError` for a config that is no mapping, too large or nested too deeply, a target that is not allowed,
    does not exist or takes no such `kwargs`, unknown, missing or ill-typed parameters, and for a `ValueError`,
    `TypeError` or `ArithmeticError` of the constructor.
    """
    if not isinstance(cfg, Mapping):
        raise UserError(f"{where}={shown(cfg)}: expected a mapping with _target_")
    _check_depth(cfg, where)
    target = _find(cfg.get("_target_"), where)
    partial = cfg.get("_partial_", False)
    if not isinstance(partial, bool):
        raise UserError(f"{_key(where, '_partial_')}={partial}: expected bool, got {partial!r}")
    parameters = _parameters(target)
    accepts_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {name: p for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not accepts_any and (strange := [name for name in kwargs if name not in named]):
        raise UserError(
            f"{_key(where, '_target_')}={cfg['_target_']}: cannot be used as {where or 'settings'}: it takes no "
            f"argument {strange[0]!r}; name one that a file of configs/{where.split('.')[0]} names"
        )
    values: dict[str, Any] = {}
    for key, value in cfg.items():
        name = str(key)
        if name in RESERVED or name in kwargs:
            continue
        if name not in named and (not accepts_any or name.startswith("_")):
            raise UserError(_unknown(_key(where, name), name, named.keys() - kwargs.keys()))
        annotation = named[name].annotation if name in named else Any
        values[name] = coerce(value, annotation, _key(where, name))
    values.update(kwargs)
    missing = [name for name, p in named.items() if p.default is p.empty and name not in values]
    if missing and not partial:
        raise UserError(f"{_key(where, missing[0])}: a value is required, and none is given")
    if partial:
        return functools.partial(target, **values)
    try:
        return target(**values)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"{where}: {error}") from error


def construct_only(cfg: Any, where: str, allowed: tuple[str, ...], **kwargs: Any) -> Any:
    """`construct` for configs that come from files: every `_target_`, at any depth, must be allowed.

    `allowed` holds full names, and prefixes that end in a dot. Raises `UserError`, before anything is called, if a
    target is not among them or `cfg` is no mapping.
    """
    if not isinstance(cfg, Mapping):
        raise UserError(f"{where}: expected a mapping with _target_, got {shown(cfg)}")
    _check_depth(cfg, where)
    for target in _targets(cfg):
        prefixes = tuple(name for name in allowed if name.endswith("."))
        if not isinstance(target, str) or not (target in allowed or target.startswith(prefixes)):
            raise UserError(f"{_key(where, '_target_')}={shown(target)}: not allowed here; only {', '.join(allowed)}")
    return construct(cfg, where, **kwargs)


def _targets(node: Any) -> Iterable[Any]:
    """Every `_target_` in nested mappings and lists."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node["_target_"]
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _targets(value)


def coerce(value: Any, annotation: Any, where: str) -> Any:
    """Check a config value against a type annotation and return it, with lists turned into tuples.

    Checked: bool, int (of 64 bits), float (an int is fine and becomes a float; NaN is none), str, Path, None, unions,
    Literal, tuples and other collections, mappings. Every other annotation accepts any value.
    Raises `UserError` that names `where`, the value and what was expected.
    """
    if isinstance(value, Mapping) and "_target_" in value and not _is_plain(annotation):
        return construct(value, where)
    origin = get_origin(annotation)
    if origin is typing.Annotated:
        return coerce(value, get_args(annotation)[0], where)
    if origin in (Union, types.UnionType):
        return _union(value, annotation, where)
    if origin is Literal:
        if any(value == option and type(value) is type(option) for option in get_args(annotation)):
            return value
    elif annotation is None or annotation is types.NoneType:
        if value is None:
            return None
    elif annotation in (bool, int, str):
        if type(value) is annotation and not (annotation is int and abs(value) > LARGEST_INT):
            return value
    elif annotation is float:
        if type(value) is float and not math.isnan(value):
            return value
        if type(value) is int and abs(value) <= LARGEST_INT:
            return float(value)
    elif annotation is Path:
        if isinstance(value, str | Path):
            return Path(value)
    elif _is_collection(origin or annotation):
        if isinstance(value, list | tuple):
            return _collection(value, annotation, where)
    elif _is_mapping(origin or annotation):
        if isinstance(value, Mapping):
            inner = (*get_args(annotation), Any, Any)[1]
            return {name: coerce(item, inner, _key(where, str(name))) for name, item in value.items()}
    else:
        return _plain(value, where)
    raise _mismatch(value, annotation, where)


def _find(target: Any, where: str) -> Callable[..., Any]:
    """Import the class or function behind a dotted name, or raise `UserError` that says why not."""
    key = _key(where, "_target_")
    if not isinstance(target, str):
        raise UserError(f"{key}={shown(target)}: expected the dotted name of a class or function")
    refusal = UserError(
        f"{key}={shown(target)}: not allowed; only classes and functions defined in "
        f"{', '.join(prefix.rstrip('.') for prefix in ALLOWED)} can be named"
    )
    if not _is_allowed(target) or not TARGET.fullmatch(target):
        raise refusal
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A dependency that the module itself lacks is another problem, with its own message.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UserError(f"{key}={target}: there is no module {error.name}") from error
    found = getattr(module, name, None)
    if found is None:
        public = [n for n, value in vars(module).items() if _is_allowed(f"{module_name}.{n}") and _is_ours(value)]
        raise UserError(_unknown(f"{key}={target}", name, public))
    if not _is_ours(found):
        raise refusal
    return typing.cast(Callable[..., Any], found)


def _is_ours(value: Any) -> bool:
    """Whether `value` is a class or function that an allowed module defines, not one that it imported.

    The function that makes datasets, spaces or supernets is one of theirs; elsewhere only classes are constructors.
    """
    kind = inspect.isclass(value) or (inspect.isfunction(value) and not value.__module__.startswith("search."))
    return kind and _is_allowed(f"{value.__module__}.{value.__name__}")


def _is_allowed(name: str) -> bool:
    """Whether a full dotted name is among `ALLOWED`. Private parts have no match in `TARGET`."""
    prefixes = tuple(entry for entry in ALLOWED if entry.endswith("."))
    return (name in ALLOWED or name.startswith(prefixes)) and not name.startswith(WRITERS)


def _check_depth(cfg: Any, where: str) -> None:
    """Refuse what only a hostile file nests so deeply, or repeats so often: everything here goes down by recursion."""
    level, count = [cfg], 0
    for _ in range(DEEPEST):
        nodes, level = level, []
        for node in nodes:
            count += len(node)
            if count > MOST:  # before they are gathered: shared lists inside shared lists are more than fit in memory
                raise UserError(f"{where}: holds more than {MOST:,} values")
            values = node.values() if isinstance(node, Mapping) else node
            level += [value for value in values if isinstance(value, Mapping | list | tuple)]
        if not level:
            return
    raise UserError(f"{where}: nested more than {DEEPEST} levels deep")


def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Parameters of a callable, with annotations written as strings resolved where possible."""
    try:
        return inspect.signature(target, eval_str=True).parameters
    except Exception:  # an annotation may name what exists for type checkers only
        return inspect.signature(target).parameters


def _union(value: Any, annotation: Any, where: str) -> Any:
    """Coerce to the member that has the value's own type, or else to the first that accepts it."""
    members = sorted(get_args(annotation), key=lambda member: type(value) is not member)
    for member in members:
        try:
            return coerce(value, member, where)
        except UserError:
            continue
    raise _mismatch(value, annotation, where)


def _collection(value: list[Any] | tuple[Any, ...], annotation: Any, where: str) -> Any:
    """Coerce the items of a list; the result is a tuple unless the annotation says list or set."""
    inner = get_args(annotation)
    kind = get_origin(annotation) or annotation
    if kind is tuple and inner and inner[-1] is not Ellipsis:
        if len(value) != len(inner):
            raise UserError(f"{where}={_show(value)}: expected {len(inner)} values, got {len(value)}")
        item_types: Collection[Any] = inner
    else:
        item_types = [inner[0] if inner else Any] * len(value)
    pairs = enumerate(zip(value, item_types, strict=True))
    items = [coerce(item, item_type, f"{where}[{i}]") for i, (item, item_type) in pairs]
    return kind(items) if kind in (list, set, frozenset) else tuple(items)


def _plain(value: Any, where: str) -> Any:
    """Convert a value of unchecked type: lists to tuples, nested `_target_` mappings to objects."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            return construct(value, where)
        return {name: _plain(item, _key(where, str(name))) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(item, f"{where}[{i}]") for i, item in enumerate(value))
    return value


def _is_plain(annotation: Any) -> bool:
    """Whether only values that YAML can write fit, so that nothing has to be built."""
    if get_origin(annotation) in (Union, types.UnionType):
        return all(_is_plain(member) for member in get_args(annotation))
    kinds = (bool, int, float, str, Path, None, types.NoneType)
    return get_origin(annotation) is Literal or any(annotation is kind for kind in kinds)


def _is_collection(kind: Any) -> bool:
    if not inspect.isclass(kind) or issubclass(kind, str | bytes | Mapping):
        return False
    return issubclass(kind, Collection) or kind in (Iterable, Container, Sized)


def _is_mapping(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, Mapping)


def _key(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _show(value: Any) -> str:
    return _cut(str(list(value)) if isinstance(value, tuple) else str(value))


def shown(value: Any) -> str:
    """`value` in a message: on one line and not longer than that is of use."""
    return _cut(str(value) if isinstance(value, str) else repr(value))


def _cut(text: str) -> str:
    if not text.isprintable():  # a line end would make two lines of one
        text = text.encode("unicode_escape").decode()
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _unknown(subject: str, name: str, names: Collection[str]) -> str:
    close = nearest(name, sorted(names))
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{_cut(subject)}: unknown name; {hint}(valid: {', '.join(sorted(names)) or 'none'})"


def _mismatch(value: Any, annotation: Any, where: str) -> UserError:
    return UserError(f"{where}={_show(value)}: expected {_describe(annotation)}, got {_cut(repr(value))}")


def _describe(annotation: Any) -> str:
    """Name a type the way a config author would: `int or None`, `list of int`, `one of 'a', 'b'`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is types.NoneType or annotation is None:
        return "None"
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(member) for member in inner)
    if origin is Literal:
        return f"one of {', '.join(repr(option) for option in inner)}"
    if _is_collection(origin or annotation):
        if origin is tuple and inner[-1] is not Ellipsis:
            return f"list of {len(inner)} values"
        return f"list of {_describe(inner[0])}" if inner else "list"
    if _is_mapping(origin or annotation):
        return "mapping"
    return str(getattr(annotation, "__name__", annotation))
