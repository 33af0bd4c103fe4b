"""How much is shared, from a configuration: one function for each file of `configs/sharing`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from supernet.construct import construct_only
from supernet.errors import UserError
from supernet.net import Supernet
from supernet.sharing.grouped import GroupedSupernet
from supernet.sharing.groups import Groups
from supernet.space import Arch, Space

FULL = {"_target_": "supernet.sharing.make.full"}  # of configurations that say nothing about it


def full(space: Space, seed: int) -> Supernet:
    """One supernet: all subnets share their weights."""
    return Supernet(space)


def groups(
    space: Space,
    seed: int,
    groups: int,
    by: Literal["random", "similarity"] = "similarity",
    archs: str | Sequence[Mapping[str, Any]] | None = None,
    shared: Sequence[str] = (),
    same_init: bool = True,
) -> GroupedSupernet:
    """One supernet for each group of subnets, see `Groups` and `GroupedSupernet`.

    `archs`: the subnets in their readable form, or a JSON file with a list of them; None: all of the space.

    Raises:
        UserError: if the file cannot be read or lists something else.
        ValueError: from `Groups` and `GroupedSupernet`.
    """
    listed = None if archs is None else read_archs(space, archs)
    return GroupedSupernet(space, Groups(space, seed, groups, by, listed), shared, same_init)


def make_network(config: Mapping[str, Any], space: Space) -> Supernet | GroupedSupernet:
    """The network of a run's configuration, also one read from a checkpoint: nothing else gets built.

    Its weights are PyTorch's initial ones, see `supernet.sharing.members.initialise_members`.

    Raises:
        UserError: if the section `sharing` is wrong, or names anything outside `supernet.sharing`.
    """
    section = config.get("sharing") or FULL
    net = construct_only(section, "sharing", ("supernet.sharing.make.",), space=space, seed=config.get("seed", 0))
    if not isinstance(net, Supernet | GroupedSupernet):
        raise UserError(f"sharing._target_={section['_target_']}: makes no supernet")
    return net


def with_listed(section: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The section `where` of a configuration with the subnets themselves in place of the file that lists them.

    A checkpoint then says which group a subnet is in, whatever becomes of the file.

    Raises:
        UserError: if the file cannot be read.
    """
    if not isinstance(section.get("archs"), str):
        return dict(section)
    return {**section, "archs": _listed(section["archs"], f"{where}.archs")}


def read_archs(space: Space, archs: str | Sequence[Mapping[str, Any]]) -> list[Arch]:
    """Subnets in their readable form, or those of a JSON file: a list of them, or of rows with `arch`.

    Raises:
        UserError: naming what cannot be read.
    """
    rows = _listed(archs) if isinstance(archs, str) else archs
    found = []
    for number, row in enumerate(rows):
        try:
            found.append(space.from_json(row))
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"archs, number {number}: {error}") from None
    return found


def _listed(path: str, where: str = "archs") -> list[Any]:
    from supernet.runs import read_json

    if not Path(path).is_file():
        raise UserError(f"{where}={path}: no such file; give a JSON list of subnets")
    content = read_json(Path(path))
    if not isinstance(content, list) or not content:
        raise UserError(f"{where}={path}: holds no list of subnets; give a JSON list with at least one")
    for number, row in enumerate(content):
        if not isinstance(row, dict) or not isinstance(row.get("arch", row), dict):
            raise UserError(f"{where}={path}, entry {number} (from 0) is no subnet: {str(row)[:60]!r}")
    return [row.get("arch", row) for row in content]
