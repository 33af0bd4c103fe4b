"""Which of several supernets a subnet belongs to."""

from __future__ import annotations

from typing import Protocol

from supernet.space import Arch


class Assignment(Protocol):
    """The rule by which a `GroupedSupernet` routes. One file for each rule.

    Attributes:
        members: how many supernets there are.
    """

    members: int

    def member(self, arch: Arch) -> int:
        """The number of the supernet that trains and runs `arch`, from 0 to `members` - 1."""
