"""`GroupedSupernet`: several supernets over one space behind the interface of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from supernet.construct import nearest
from supernet.net import Supernet
from supernet.sharing.assignment import Assignment
from supernet.space import Arch, Space


class GroupedSupernet(nn.Module):
    """Members that are supernets of their own; every subnet lives in one of them.

    Offers what a `Supernet` offers. One member without shared modules computes and trains as a plain supernet does,
    bit for bit; only the names in its state differ ("members.0.net.stem..." for "net.stem...").

    Args:
        space: what can be chosen; the same for all members.
        assignment: which member a subnet lives in.
        shared: names of modules that all members have in common, such as "stem" or "stages.0": one set of weights,
            trained by every group. With the first modules of the network this is prefix sharing (Zhang et al.,
            "Deeper Insights into Weight Sharing in Neural Architecture Search", 2020).
        same_init: whether all members start from equal weights.

    Raises:
        ValueError: if a name of `shared` is no module of the network.
    """

    def __init__(
        self, space: Space, assignment: Assignment, shared: Sequence[str] = (), same_init: bool = True
    ) -> None:
        super().__init__()
        self.space, self.assignment, self.shared, self.same_init = space, assignment, tuple(shared), same_init
        self.members = nn.ModuleList(Supernet(space) for _ in range(assignment.members))
        nets = [member.net for member in self.each()]
        for name in self.shared:
            tie(nets, name)

    @property
    def net(self) -> nn.ModuleList:
        """The members' networks under the names "0", "1", ...; a weight that is shared has the name of the first."""
        return nn.ModuleList(member.net for member in self.each())

    def each(self) -> list[Supernet]:
        """All members."""
        return [cast(Supernet, member) for member in self.members]

    def member(self, arch: Arch) -> Supernet:
        """The supernet that `arch` lives in."""
        return cast(Supernet, self.members[self.assignment.member(arch)])

    def forward(self, x: Tensor, arch: Arch | None = None, dropout: float = 0.0, drop_path: float = 0.0) -> Tensor:
        """See `Supernet.forward`."""
        arch = self.space.largest() if arch is None else arch
        logits: Tensor = self.member(arch)(x, arch, dropout=dropout, drop_path=drop_path)
        return logits

    def resize(self, x: Tensor, arch: Arch) -> Tensor:
        """See `Supernet.resize`."""
        return self.member(arch).resize(x, arch)

    def extract(self, arch: Arch) -> nn.Module:
        """See `Supernet.extract`."""
        return self.member(arch).extract(arch)


def tie(nets: Sequence[nn.Module], name: str) -> None:
    """Put the first network's module `name` in place of that of all others.

    Raises:
        ValueError: if there is no such module.
    """
    modules = dict(nets[0].named_modules())
    if not name or name not in modules:
        known = [key for key in modules if key and key.count(".") < 2]
        hint = nearest(name, known) or known
        raise ValueError(f"shared={name!r}: no such module in the network; did you mean {hint}?")
    parent, _, leaf = name.rpartition(".")
    for net in nets[1:]:
        setattr(net.get_submodule(parent), leaf, modules[name])
