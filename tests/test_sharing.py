"""Several supernets behind one interface: who trains what, and that nothing else moves."""

from __future__ import annotations

import copy
import json
from collections import Counter
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import big_space, tiny_space
from tiny_run import tiny_config
from torch import Tensor

from supernet import checkpoint
from supernet.calibrate import calibrate
from supernet.construct import construct
from supernet.data import DataInfo
from supernet.distill import HardLabels
from supernet.errors import UserError
from supernet.export import export, load_subnet
from supernet.init import initialise
from supernet.job import main
from supernet.net import Supernet
from supernet.observers import SlotGradients
from supernet.optim import parameter_groups, zero_gradients
from supernet.samplers.base import Slot
from supernet.sharing.grouped import GroupedSupernet
from supernet.sharing.groups import Groups, every_code
from supernet.sharing.make import make_network, with_listed
from supernet.sharing.members import (
    AnySupernet,
    MemberGradients,
    Resting,
    inherit,
    initialise_members,
    member_of,
)
from supernet.slicing import copy_slices
from supernet.space import Arch
from supernet.step import accumulate, update

SPACE = tiny_space()
ARCHS = [SPACE.decode(code) for code in every_code(SPACE)]
FOUR = [ARCHS[i] for i in (0, 100, 200, 383)]
By = Literal["random", "similarity"]


def grouped(archs: list[Arch] | None, groups: int, shared: tuple[str, ...] = (), by: By = "similarity") -> Any:
    net = GroupedSupernet(SPACE, Groups(SPACE, 0, groups, by, archs), shared)
    initialise_members(net, 0, "fan_out", "none")
    return net


def plain() -> Supernet:
    net = Supernet(SPACE)
    initialise(net, 0, "fan_out", "none")
    return net


def batch(number: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(number)
    return torch.randn(5, 3, 12, 12, generator=rng), torch.randint(4, (5,), generator=rng)


def label_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


def train(net: AnySupernet, steps: list[tuple[int, Arch]], optim: str = "SGD") -> AnySupernet:
    """A step for each (number of a batch, subnet), with momentum and decay, as a training run makes it."""
    groups = parameter_groups(net, 0.1)
    settings: dict[str, Any] = {"SGD": {"momentum": 0.9}, "AdamW": {}}[optim]
    optimizer = getattr(torch.optim, optim)(groups, lr=0.05, **settings)
    zero_gradients(net)
    resting = Resting(net)
    for number, arch in steps:
        slots = [Slot(arch, "random")]
        accumulate(net, *batch(number), slots, label_loss, HardLabels())  # type: ignore[arg-type]
        with resting(slots):
            update(optimizer, 0.05, clip_norm=1.0)
    return net


def states_equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


# The partition --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["random", "similarity"])
@pytest.mark.parametrize("groups", [1, 2, 5, 7, 384])
def test_every_subnet_has_one_group_and_sizes_differ_by_at_most_one(by: By, groups: int) -> None:
    rule = Groups(SPACE, 3, groups, by)
    sizes = Counter(rule.member(arch) for arch in ARCHS)
    assert set(sizes) == set(range(groups)) == set(range(rule.members))
    assert max(sizes.values()) - min(sizes.values()) <= 1
    assert [rule.member(arch) for arch in ARCHS] == [Groups(SPACE, 3, groups, by).member(arch) for arch in ARCHS]


def test_every_code_lists_the_space_in_lexicographic_order() -> None:
    codes = every_code(SPACE)
    assert len(codes) == SPACE.size() == len(set(codes))
    assert codes == sorted(codes)
    assert all(SPACE.encode(SPACE.decode(code)) == code for code in codes)


def test_similarity_makes_slices_and_random_does_not() -> None:
    slices = [Groups(SPACE, 0, 6).member(arch) for arch in ARCHS]
    assert slices == sorted(slices)
    mixed = [Groups(SPACE, 0, 6, "random").member(arch) for arch in ARCHS]
    # Neighbours of a random partition into six agree in a sixth of the cases: 64 of 383, sd 7.3.
    assert 34 < sum(a == b for a, b in pairwise(mixed)) < 94
    assert mixed != [Groups(SPACE, 1, 6, "random").member(arch) for arch in ARCHS]


@pytest.mark.parametrize("by", ["random", "similarity"])
def test_a_listed_partition_covers_the_list_evenly_and_places_all_others(by: By) -> None:
    listed = [ARCHS[i] for i in np.random.default_rng(0).choice(len(ARCHS), 22, replace=False)]
    rule = Groups(SPACE, 0, 4, by, listed)
    assert sorted(Counter(rule.member(arch) for arch in listed).values()) == [5, 5, 6, 6]
    everywhere = [rule.member(arch) for arch in ARCHS]
    assert set(everywhere) == {0, 1, 2, 3}
    assert by == "random" or everywhere == sorted(everywhere)


def test_large_spaces_need_a_list_unless_nothing_is_divided() -> None:
    space = big_space()
    archs = space.sample(np.random.default_rng(0), 10)
    assert Groups(space, 0, 1).member(archs[0]) == 0
    assert sorted(Groups(space, 0, 10, "random", archs).member(arch) for arch in archs) == list(range(10))
    with pytest.raises(ValueError, match="archs=<JSON file>"):
        Groups(space, 0, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 0}, "groups=0"),
        ({"groups": 385}, "only 384 subnets"),
        ({"groups": 2, "by": "luck"}, "luck"),
        ({"groups": 1, "shared": ["stim"]}, "did you mean .*stem"),
        ({"groups": 2, "shared": [""]}, "no such module"),
        ({"groups": 2, "archs": "nowhere.json"}, "nowhere.json: no such file"),
        ({"groups": 2, "archs": [{"resolution": 8}]}, "number 0"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str) -> None:
    section = {"_target_": "supernet.sharing.make.groups", **settings}
    with pytest.raises(UserError, match=message):
        make_network({"sharing": section}, SPACE)


# Training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optim", ["SGD", "AdamW"])
def test_one_group_trains_as_a_plain_supernet(optim: str) -> None:
    steps = list(enumerate(islice(cycle(FOUR), 9)))
    one, other = train(grouped(None, 1), steps, optim), train(plain(), steps, optim)
    assert states_equal(one.members[0], other)  # type: ignore[index, arg-type]
    for arch in FOUR:
        x = one.resize(batch(50)[0], arch)
        assert torch.equal(one(x, arch), other(x, arch))
        assert torch.equal(one.extract(arch)(x), other(x, arch))
    assert torch.equal(one(batch(50)[0]), other(batch(50)[0]))


def test_only_the_members_of_the_step_move() -> None:
    net = train(grouped(FOUR, 4), list(enumerate(FOUR)))  # momentum everywhere
    before = copy.deepcopy(net)
    optimizer = torch.optim.SGD(parameter_groups(net, 0.1), lr=0.05, momentum=0.9)
    zero_gradients(net)
    resting = Resting(net)
    for number in range(3):  # the first makes momentum, the others would spend it
        slots = [Slot(FOUR[2 if number == 0 else 1], "random"), Slot(FOUR[3], "random", weight=0.0)]
        accumulate(net, *batch(number), slots, label_loss, HardLabels())  # type: ignore[arg-type]
        if number == 1:
            after_first = copy.deepcopy(net.members[2])  # type: ignore[index, operator]
        with resting(slots):
            update(optimizer, 0.05)
    moved = [not states_equal(a, b) for a, b in zip(before.members, net.members, strict=True)]  # type: ignore[arg-type]
    assert moved == [False, True, True, False]  # a slot without weight trains nobody
    assert states_equal(after_first, net.members[2])  # type: ignore[index, arg-type]
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in net.parameters())


@pytest.mark.parametrize("optim", ["SGD", "AdamW"])
def test_a_group_of_its_own_is_training_alone(optim: str) -> None:
    steps = list(enumerate(islice(cycle(FOUR), 12)))
    net = train(grouped(FOUR, 4), steps, optim)
    for arch in FOUR:
        mine = [(number, other) for number, other in steps if other == arch]
        alone = train(plain(), mine, optim)
        assert states_equal(member_of(net, arch), alone)
        network = Supernet(SPACE.only(arch))
        copy_slices(plain().net, network.net)
        only = network.space.largest()
        network = train(network, [(number, only) for number, _ in mine], optim)  # type: ignore[assignment]
        x = net.resize(batch(50)[0], arch)
        torch.testing.assert_close(net(x, arch), network(x, only))


@pytest.mark.parametrize("shared", [("stem",), ("stem", "stages.0")])
def test_shared_modules_learn_from_every_group(shared: tuple[str, ...]) -> None:
    net = grouped(FOUR, 4, shared)
    images, targets = batch(0)
    total: dict[str, Tensor] = {}
    for arch in FOUR:
        alone = plain()
        accumulate(alone, images, targets, [Slot(arch, "random")], label_loss, HardLabels())
        for name, parameter in alone.net.named_parameters():
            if parameter.grad is not None:
                total[name] = total.get(name, torch.zeros(())) + parameter.grad
    accumulate(net, images, targets, [Slot(arch, "random") for arch in FOUR], label_loss, HardLabels())
    first = dict(net.members[0].net.named_parameters())
    for name, parameter in first.items():
        common = name.startswith(tuple(f"{prefix}." for prefix in shared))
        twins = [dict(member.net.named_parameters())[name] for member in net.members]
        assert all((twin is parameter) == common for twin in twins[1:])
        if common:
            torch.testing.assert_close(parameter.grad, total[name])
    tied = sum(p.numel() for n, p in first.items() if n.startswith(tuple(f"{prefix}." for prefix in shared)))
    assert tied > 0
    whole = sum(p.numel() for p in first.values())
    assert sum(p.numel() for p in net.parameters()) == 4 * whole - 3 * tied


def test_shared_modules_move_with_every_group_and_the_rest_does_not() -> None:
    net = grouped(FOUR, 4, ("stem",))
    before = copy.deepcopy(net)
    assert before.members[0].net.stem is before.members[3].net.stem  # copies keep what is tied
    train(net, [(0, FOUR[2])])
    moved = {n for (n, p), q in zip(net.named_parameters(), before.parameters(), strict=True) if not torch.equal(p, q)}
    assert {name.split(".")[1] for name in moved if ".stem." not in name} == {"2"}
    assert any(".stem." in name for name in moved)


def test_a_step_that_trains_nobody_leaves_shared_modules_alone() -> None:
    net = grouped(FOUR, 2, ("stem",))
    before = copy.deepcopy(net)
    optimizer = torch.optim.SGD(parameter_groups(net, 0.1), lr=0.05)
    zero_gradients(net)
    with Resting(net)([Slot(FOUR[0], "random", weight=0.0)]):
        update(optimizer, 0.05)
    assert states_equal(net, before)


def test_everything_shared_is_a_plain_supernet() -> None:
    steps = list(enumerate(islice(cycle(FOUR), 6)))
    everything = tuple(name for name, _ in Supernet(SPACE).net.named_children())
    net = train(grouped(FOUR, 4, everything), steps)
    assert states_equal(net.members[3], train(plain(), steps))  # type: ignore[index, arg-type]


def test_members_begin_equal_unless_told_otherwise() -> None:
    net = grouped(FOUR, 2)
    assert states_equal(net.members[0], net.members[1])
    other = GroupedSupernet(SPACE, Groups(SPACE, 0, 2, archs=FOUR), ("stem",), same_init=False)
    initialise_members(other, 0, "fan_out", "none")
    assert states_equal(other.each()[0], plain())
    assert not torch.equal(*(p.flatten() for p in (m.net.head.conv.conv.weight for m in other.members)))  # type: ignore[union-attr]


# Parts that look inside ---------------------------------------------------------------------------------------


def test_gradients_of_a_slot_carry_the_names_of_its_member() -> None:
    seen: list[dict[str, Tensor]] = []

    def keep(slot: Slot, gradients: Any) -> None:
        seen.append({name: gradient.clone() for name, gradient in gradients.items()})

    def run(net: AnySupernet, observer: Any) -> AnySupernet:
        zero_gradients(net)
        slots = [Slot(arch, "random") for arch in FOUR]
        accumulate(net, *batch(0), slots, label_loss, HardLabels(), observers=[observer])  # type: ignore[arg-type]
        return net

    alone = plain()
    run(alone, SlotGradients(alone.net, keep, lambda slot: True))
    net = grouped(FOUR, 4, ("stem",))
    run(net, MemberGradients(net, keep, lambda slot: True))
    unseen = run(grouped(FOUR, 4, ("stem",)), MemberGradients(net, keep, lambda slot: False))
    expected, actual = seen[:4], seen[4:]
    assert len(actual) == 4
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for watched, plainly in zip(net.parameters(), unseen.parameters(), strict=True):
        assert watched.grad is not None
        assert plainly.grad is not None
        torch.testing.assert_close(watched.grad, plainly.grad)


def test_weights_are_inherited_member_by_member() -> None:
    source = plain()
    few = GroupedSupernet(SPACE, Groups(SPACE, 0, 3, archs=FOUR))
    inherit(source, few)
    assert all(states_equal(member, source) for member in few.each())
    trained = train(grouped(FOUR, 4), list(enumerate(FOUR)))
    single = Supernet(SPACE.only(FOUR[2]))
    inherit(trained, single)
    x = trained.resize(batch(0)[0], FOUR[2])
    assert torch.equal(single(x), trained(x, FOUR[2]))
    again = GroupedSupernet(SPACE, Groups(SPACE, 0, 4, archs=FOUR))
    inherit(trained, again)
    assert states_equal(again, trained)
    with pytest.raises(ValueError, match="4 supernets in the source, 3"):
        inherit(trained, few)


def test_a_checkpoint_gives_the_network_back(tmp_path: Path) -> None:
    listing = tmp_path / "archs.json"
    listing.write_text(json.dumps([{"arch": arch.to_json()} for arch in FOUR]))
    section: dict[str, Any] = {"_target_": "supernet.sharing.make.groups", "groups": 4, "by": "random"}
    config = {"seed": 5, "sharing": with_listed({**section, "archs": str(listing), "shared": ["stem"]}, "sharing")}
    listing.unlink()  # the checkpoint needs it no more
    net = make_network(config, SPACE)
    train(net, list(enumerate(FOUR)))
    checkpoint.save(tmp_path / "net.pt", {"model": net.state_dict(), "config": config})
    state = checkpoint.load(tmp_path / "net.pt")
    again = make_network(state["config"], SPACE)
    again.load_state_dict(state["model"])
    for arch in FOUR:
        x = again.resize(batch(0)[0], arch)
        assert torch.equal(again(x, arch), net(x, arch))


def test_a_tied_weight_is_stored_once(tmp_path: Path) -> None:
    everything = tuple(name for name, _ in Supernet(SPACE).net.named_children())
    storages = []
    for groups, shared in ((1, ()), (4, everything), (4, ())):
        net = GroupedSupernet(SPACE, Groups(SPACE, 0, groups), shared)
        checkpoint.save(tmp_path / "net.pt", {"model": net.state_dict()})
        state = checkpoint.load(tmp_path / "net.pt")["model"]
        storages.append(len({tensor.untyped_storage().data_ptr() for tensor in state.values()}))
    assert storages == [storages[0], storages[0], 4 * storages[0]]


def test_older_configurations_mean_full_sharing() -> None:
    assert type(make_network({}, SPACE)) is Supernet
    full = construct({"_target_": "supernet.sharing.make.full"}, "sharing", space=SPACE, seed=0)
    assert type(full) is Supernet
    with pytest.raises(UserError, match="not allowed"):
        make_network({"sharing": {"_target_": "supernet.job.main"}}, SPACE)


def test_a_subnet_of_a_group_is_exported(tmp_path: Path) -> None:
    net = train(grouped(FOUR, 4), list(enumerate(FOUR)))
    info = DataInfo("noise", 4, tuple("abcd"), 3, 12, (0.5,) * 3, (0.25,) * 3, (8, 12))
    images = batch(0)[0]
    subnet = net.extract(FOUR[1])
    calibrate(subnet, [net.resize(images, FOUR[1])])
    differences = export(subnet, FOUR[1], net, tmp_path / "out", info, images, {}, {})  # type: ignore[arg-type]
    assert differences == {"calibrated": 0.0, "supernet": 0.0}
    x = net.resize(images, FOUR[1])
    assert torch.equal(load_subnet(tmp_path / "out")(x), subnet(x))


def test_members_rest_under_the_shipped_optimizer(tmp_path: Path) -> None:
    """A member that trains for the first time has no momentum yet, and the stem that all share has some."""
    groups = ("sharing=groups", "sharing.groups=4", "sharing.shared=[stem]", "sampler=uniform", "sampler.num_random=1")
    config = tiny_config(tmp_path, *groups, "train.epochs=1")
    assert config["optim"]["fused"] is True
    assert 0.0 <= main(config) <= 100.0
