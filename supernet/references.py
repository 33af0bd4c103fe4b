"""Published subnets by name: `lookup("alphanet_a4")` is what a paper calls AlphaNet-A4.

The networks are data: every JSON file in `configs/published` holds those of one space,
`{"space": ..., "source": ..., "archs": {name: {"arch": {...}, facts}}}`. An entry with `same_as: <other name>` in
place of `arch` has that entry's network and facts, and its own facts over them.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supernet.construct import nearest
from supernet.errors import UserError
from supernet.runs import config_dir, read_json


@dataclass(frozen=True)
class Reference:
    """A published subnet.

    `arch` is the readable form that `Space.from_json` of the space named `space` reads. `facts` are as published:
    `source`, `top1` (ImageNet, %), `mmacs` (MACs, millions) or `mparams` (parameters, millions), and whatever else
    the file states.
    """

    name: str
    space: str
    arch: dict[str, Any]
    facts: dict[str, Any]


def names(folder: Path | None = None) -> list[str]:
    """The name of every published subnet, in the order of the files. `folder`: default `configs/published`.

    Raises:
        UserError: see `lookup`; a damaged file.
    """
    return list(_entries(folder))


def lookup(name: str, folder: Path | None = None) -> Reference:
    """The published subnet called `name`; `<name>@<px>` has the input side px in place of the published one.

    Raises:
        UserError: an unknown name (gives the nearest ones), a side that is not a positive whole number, a network
            whose side was not published and is not given, or whose space has no choice of it; a damaged file.
    """
    wanted, at, side = name.partition("@")
    entries = _entries(folder)
    if wanted not in entries:
        close = nearest(wanted, entries)
        raise UserError(
            f"there is no published subnet {wanted!r}: "
            + (f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(entries)}")
        )
    space, entry = entries[wanted]
    arch = deepcopy(entry["arch"])
    if at:
        if "resolution" not in arch:
            raise UserError(f"{name}: the space {space} has no choice of resolution; leave out @{side}")
        if not (side.isascii() and side.isdigit() and int(side) > 0):
            raise UserError(f"{name}: the input side after @ must be a whole number of pixels, as in {wanted}@224")
        arch["resolution"] = int(side)
    elif arch.get("resolution", 0) is None:
        raise UserError(f"{wanted}: its input side was not published; say which to use, as in {wanted}@224")
    facts = {key: deepcopy(value) for key, value in entry.items() if key != "arch"}
    return Reference(wanted, space, arch, facts)


def _entries(folder: Path | None) -> dict[str, tuple[str, dict[str, Any]]]:
    """Space and entry by name, with `same_as` resolved: every entry has an `arch` and a `source`."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for path in sorted((folder or config_dir() / "published").glob("*.json")):
        data = read_json(path)
        if not isinstance(data, Mapping) or not {"space", "source", "archs"} <= set(data):
            raise UserError(f"{path} must have the entries space, source and archs")
        for name, entry in data["archs"].items():
            if name in found:
                raise UserError(f"{path} names {name} again: every published subnet has one entry")
            base = data["archs"].get(entry.get("same_as"), {})
            resolved = {"source": data["source"], **base, **entry}
            if not isinstance(resolved.get("arch"), Mapping):
                raise UserError(f"{path}: {name} needs an arch, or the name of an entry that has one in same_as")
            found[name] = (data["space"], resolved)
    return found
