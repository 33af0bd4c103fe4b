"""Training several supernets at once: initial weights, gradients by member, members that rest.

All of it takes a plain supernet too, as a single member.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

from supernet.distributed import ALONE, Ranks
from supernet.init import Init, ZeroGamma, initialise
from supernet.net import Supernet
from supernet.sharing.grouped import GroupedSupernet
from supernet.slicing import copy_slices
from supernet.space import Arch

if TYPE_CHECKING:
    from supernet.observers import OnGradients
    from supernet.samplers.base import Slot
    from supernet.step import Observer, Pass

AnySupernet = Supernet | GroupedSupernet


def members_of(net: AnySupernet) -> list[Supernet]:
    """The members; of a plain supernet itself."""
    return net.each() if isinstance(net, GroupedSupernet) else [net]


def member_of(net: AnySupernet, arch: Arch) -> Supernet:
    """The supernet that `arch` lives in."""
    return net.member(arch) if isinstance(net, GroupedSupernet) else net


def initialise_members(net: AnySupernet, seed: int, conv: Init, zero_gamma: ZeroGamma) -> None:
    """`initialise` every member; shared modules get the weights of the first.

    The first member has the weights that a plain supernet has; without `same_init` the others have seeds of their own.
    """
    for number, member in reversed(list(enumerate(members_of(net)))):
        own = isinstance(net, GroupedSupernet) and not net.same_init and number > 0
        initialise(member, _fold(seed, number) if own else seed, conv, zero_gamma)


def inherit(source: AnySupernet, net: AnySupernet) -> None:
    """Fill `net` with its slice of the weights of `source`.

    Every member takes those of a plain supernet (few-shot splitting starts so); a space of one subnet those of the
    member that the subnet lives in; otherwise member i takes those of member i.

    Raises:
        AttributeError, ValueError: if the weights do not fit, or the numbers of members differ.
    """
    targets = members_of(net)
    if isinstance(source, Supernet):
        origins = [source] * len(targets)
    elif net.space.size() == 1:
        origins = [source.member(source.space.from_json(net.space.largest().to_json()))] * len(targets)
    else:
        origins = source.each()
    if len(origins) != len(targets):
        raise ValueError(f"{len(origins)} supernets in the source, {len(targets)} in the new network")
    for origin, target in zip(origins, targets, strict=True):
        copy_slices(origin.net, target.net)


class Resting:
    """Keeps the optimizer away from the members that no pass of a step trains.

    A weight with a gradient of zeros still decays, and moves with its momentum. That is right for a weight of a
    supernet that trains, and wrong for a supernet that does not take part in the step: it must be as if it were
    trained alone. Made once for a run; use as `with resting(slots): update(optimizer, ...)`.
    """

    def __init__(self, net: AnySupernet) -> None:
        self._net = net
        each = {member: list(member.parameters()) for member in members_of(net)}
        owners = Counter(id(parameter) for parameters in each.values() for parameter in parameters)
        self._own = {m: [p for p in parameters if owners[id(p)] == 1] for m, parameters in each.items()}
        self._tied = [p for p in next(iter(each.values())) if owners[id(p)] > 1]  # by all members

    @contextmanager
    def __call__(self, slots: Sequence[Slot]) -> Iterator[None]:
        if len(self._own) == 1:
            yield
            return
        trained = {member_of(self._net, slot.arch) for slot in slots if slot.weight}
        idle = [p for member, parameters in self._own.items() if member not in trained for p in parameters]
        idle += [] if trained else self._tied
        gradients = [parameter.grad for parameter in idle]
        for parameter in idle:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, gradient in zip(idle, gradients, strict=True):
                parameter.grad = gradient


class MemberGradients:
    """`SlotGradients` of the member that a slot's subnet lives in, by that member's own parameter names."""

    def __init__(
        self, net: AnySupernet, on_gradients: OnGradients, chosen: Callable[[Slot], bool], ranks: Ranks = ALONE
    ) -> None:
        from supernet.observers import SlotGradients

        self._net = net
        self._observers: dict[nn.Module, Observer] = {
            member: SlotGradients(member.net, on_gradients, chosen, ranks) for member in members_of(net)
        }

    def before(self, slot: Slot) -> None:
        self._observers[member_of(self._net, slot.arch)].before(slot)

    def after(self, slot: Slot, done: Pass) -> None:
        self._observers[member_of(self._net, slot.arch)].after(slot, done)


def _fold(seed: int, number: int) -> int:
    """One 63-bit seed of two numbers."""
    import numpy as np

    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] >> np.uint64(1))
