"""A fixed partition of the subnets into groups.

Zhang et al., "Deeper Insights into Weight Sharing in Neural Architecture Search", 2020: group sharing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal

from supernet.space import Arch, Space

MOST = 100_000  # subnets of which a partition is made
Codes = tuple[int, ...]


class Groups:
    """Subnets in groups whose sizes differ by at most one.

    "similarity": the subnets in lexicographic order of their codes (`Space.encode`), cut into slices, so that members
    of a group share their first choices. "random": a random partition.

    Args:
        space: the space.
        seed: of the random partition.
        groups: how many; 1 is ordinary weight sharing, one per subnet is none.
        by: "similarity" or "random".
        archs: the subnets to partition; None: all of the space. A subnet outside the list belongs to the slice in
            which its code would lie, or to a random group, always the same.

    Raises:
        ValueError: if there are fewer subnets than groups, or too many subnets to list.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        groups: int,
        by: Literal["random", "similarity"] = "similarity",
        archs: Sequence[Arch] | None = None,
    ) -> None:
        import numpy as np

        if by not in ("random", "similarity"):
            raise ValueError(f"by={by!r}: choose random or similarity")
        if groups < 1:
            raise ValueError(f"groups={groups}: must be at least 1")
        self.space, self.seed, self.members, self.by = space, seed, groups, by
        self._starts: list[Codes] = []
        self._member: dict[Codes, int] = {}
        if groups == 1:
            return  # nothing to divide: spaces of any size
        codes = every_code(space) if archs is None else sorted({space.encode(arch) for arch in archs})
        if len(codes) < groups:
            raise ValueError(f"groups={groups}: there are only {len(codes)} subnets to put into them")
        if by == "similarity":
            self._starts = [codes[int(part[0])] for part in np.array_split(np.arange(len(codes)), groups)]
        else:
            parts = np.array_split(np.random.default_rng(seed).permutation(len(codes)), groups)
            self._member = {codes[i]: number for number, part in enumerate(parts) for i in part.tolist()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Groups:
        return self  # immutable: copies of a network share their partition

    def member(self, arch: Arch) -> int:
        """The group of `arch`.

        Raises:
            ValueError: if `arch` is not one of the space.
        """
        if self.members == 1:
            return 0
        code = self.space.encode(arch)
        if self.by == "similarity":
            return max(bisect_right(self._starts, code) - 1, 0)
        known = self._member.get(code)
        return self._unlisted(code) if known is None else known

    def _unlisted(self, code: Codes) -> int:
        import numpy as np

        return int(np.random.default_rng((self.seed, *code)).integers(self.members))


def every_code(space: Space) -> list[Codes]:
    """The canonical code of every subnet, in lexicographic order.

    Raises:
        ValueError: if there are more than `MOST`.
    """
    if space.size() > MOST:
        raise ValueError(
            f"space {space.name!r} has {space.size():.3g} subnets, more than the {MOST:,} that a partition can be made "
            "of: list those to divide in archs=<JSON file>, or take a space with fewer options"
        )
    codes: list[Codes] = [()]
    for gene in space.genes:
        every, first = range(len(gene.options)), range(1)
        codes = list(
            chain.from_iterable(
                ((*code, option) for option in (every if space.counts(gene, code) else first)) for code in codes
            )
        )
    return codes
