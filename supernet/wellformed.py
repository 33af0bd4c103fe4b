"""What every space must be, whatever family or file it comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from supernet.space import Gene, Unit

COMBINATIONS = 2**20  # of the options that layers depend on, over all layers; building a supernet looks at each
UNITS = 20_000  # layers of the largest network


def check_genes(genes: Sequence[Gene]) -> None:
    """Raises ValueError for options that are empty, not distinct or not ascending, and for wrong conditions."""
    for position, gene in enumerate(genes):
        words = all(isinstance(option, str) for option in gene.options)  # in the order that the family gives
        if not gene.options or len(set(gene.options)) != len(gene.options):
            raise ValueError(f"{gene.name}: options must be distinct, got {list(gene.options)}")
        if not words and list(gene.options) != sorted(gene.options):
            raise ValueError(f"{gene.name}: options must be ascending, got {list(gene.options)}")
        if gene.parent is not None and not 0 <= gene.parent < position:
            raise ValueError(f"{gene.name}: its parent must come before it")
        if gene.among is not None and (gene.parent is None or gene.above):
            raise ValueError(f"{gene.name}: among={gene.among} needs a parent, and no `above`")


def check_size(genes: Sequence[Gene], units: Sequence[Unit]) -> None:
    """Raises ValueError if building the supernet would not end in reasonable time; names the layer."""
    if len(units) > UNITS:
        raise ValueError(f"the largest network has {len(units):,} layers, at most {UNITS:,} are possible")
    counts = {unit.name: math.prod(len(genes[i].options) for i in unit.reads) for unit in units}
    if sum(counts.values()) > COMBINATIONS:
        most = max(counts, key=lambda name: counts[name])
        raise ValueError(
            f"the layers depend on more than {COMBINATIONS:,} combinations of options, {most} alone on "
            f"{counts[most]:,}: give fewer options"
        )
