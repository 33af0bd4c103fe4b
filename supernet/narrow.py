"""Spaces with fewer options. Use `Space.narrow`; the function here is also what checkpoints name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from supernet.space import Gene, Option, Space

# How many of a gene's last options each word keeps.
WORDS = {"largest": 1, "two_largest": 2, "three_largest": 3, "all": None}


def narrow(space: Space, options: Mapping[str, Any]) -> Space:
    """See `Space.narrow`."""
    by_key: dict[str, set[Option]] = {}
    for gene in space.genes:
        by_key.setdefault(gene.key, set()).update(gene.options)
    for key, given in options.items():
        if key not in by_key:
            raise ValueError(f"{key}: space {space.name!r} has no such choice; its choices are {list(by_key)}")
        strange = [] if isinstance(given, str) else [value for value in _listed(given) if value not in by_key[key]]
        if strange:
            known = sorted(by_key[key], key=lambda option: (isinstance(option, str), option))
            raise ValueError(f"{key}={strange[0]!r}: not an option of {key} in space {space.name!r}, which has {known}")
    genes = [replace(gene, options=_kept(gene, options.get(gene.key, "all"))) for gene in space.genes]
    plain = {key: given if isinstance(given, str) else _listed(given) for key, given in options.items()}
    config = {"_target_": "supernet.narrow.narrow", "space": space.config, "options": plain}
    return Space(space.name, genes, space.units, space.module, config, space.lengths)


def _kept(gene: Gene, given: Any) -> tuple[Option, ...]:
    if isinstance(given, str):
        if given not in WORDS:
            raise ValueError(f"{gene.key}={given}: give a list of options, or one of {', '.join(WORDS)}")
        count = WORDS[given]
        return gene.options if count is None else gene.options[-count:]
    if len(gene.options) == 1:
        return gene.options
    kept = tuple(option for option in gene.options if option in _listed(given))
    if not kept:
        raise ValueError(f"{gene.name}: none of {_listed(given)} is one of its options {list(gene.options)}")
    return kept


def _listed(given: Any) -> list[Option]:
    """A list of options; a single number counts as a list of one."""
    return [given] if isinstance(given, int | float) else list(given)
