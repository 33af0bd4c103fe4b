"""Objects from config: what may be named, and how values are checked."""

import functools
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from endless import shared_lists

from supernet.construct import coerce, construct, construct_only, nearest
from supernet.errors import UserError


@dataclass(frozen=True)
class Inner:
    size: int = 1


class Thing:
    def __init__(
        self,
        epochs: int,
        *,
        rate: float = 0.1,
        flag: bool = False,
        label: str | None = None,
        kind: Literal["a", "b"] = "a",
        sides: tuple[int, ...] = (),
        pair: tuple[int, float] = (1, 1.0),
        inner: Inner | None = None,
        anything: Any = None,
    ) -> None:
        if epochs < 0:
            raise ValueError(f"epochs={epochs}: must not be negative")
        self.values = dict(locals())


def flexible(first: int, **rest: Any) -> dict[str, Any]:
    return {"first": first, **rest}


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that counts as the project's own, with things that it defines and things that it imports."""
    fake = types.ModuleType("supernet.models.fake_module")
    for own in (Inner, Thing, flexible):
        monkeypatch.setattr(own, "__module__", fake.__name__)
        setattr(fake, own.__name__, own)
    import os

    fake.os = os  # type: ignore[attr-defined]
    fake.system = os.system  # type: ignore[attr-defined]
    fake.partial = functools.partial  # type: ignore[attr-defined]
    fake.Path = Path  # type: ignore[attr-defined]
    fake._Private = Thing  # type: ignore[attr-defined]
    fake.instance = Thing(1)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, fake.__name__, fake)


def build(where: str = "train", /, _name: str = "Thing", **params: Any) -> Any:
    return construct({"_target_": f"supernet.models.fake_module.{_name}", **params}, where)


def test_values_arrive_and_lists_become_tuples() -> None:
    thing = build(epochs=3, rate=1, sides=[1, 2], pair=[1, 2], anything={"x": [1, [2]]}, label="n")
    values = thing.values
    assert values["epochs"] == 3
    assert values["rate"] == 1.0
    assert isinstance(values["rate"], float)
    assert values["sides"] == (1, 2)
    assert values["pair"] == (1, 2.0)
    assert values["anything"] == {"x": (1, (2,))}
    assert values["label"] == "n"


def test_nested_targets_and_partial() -> None:
    node = {"_target_": "supernet.models.fake_module.Inner", "size": 5}
    assert build(epochs=1, inner=node).values["inner"] == Inner(5)
    assert build(epochs=1, anything=[node]).values["anything"] == (Inner(5),)
    partial = construct({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5}, "optim")
    optimizer = partial([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["lr"] == 0.5
    with pytest.raises(UserError, match=r"optim\.lrr: .*did you mean lr"):
        construct({"_target_": "torch.optim.SGD", "_partial_": True, "lrr": 0.5}, "optim")


def test_code_arguments_override_and_are_not_checked() -> None:
    cfg = {"_target_": "supernet.models.fake_module.Thing", "epochs": "wrong type, but not used"}
    assert construct(cfg, "train", epochs=2, rate="free").values["rate"] == "free"


@pytest.mark.parametrize(
    ("where", "target", "given"),
    [
        ("space", "supernet.models.stages.SqueezeExciteRule", {"num_classes": 10}),
        ("phases", "supernet.phases.base.Phase", {"horizon": None}),
        ("optim", "torch.optim.lr_scheduler.StepLR", {"params": []}),
    ],
)
def test_a_name_of_something_else_says_where_to_look(where: str, target: str, given: dict[str, Any]) -> None:
    """It may be named, but it is not what is wanted here."""
    with pytest.raises(UserError) as caught:
        construct({"_target_": target}, where, **given)
    message = str(caught.value)
    assert message.startswith(f"{where}._target_={target}: cannot be used as {where}")
    assert f"configs/{where}" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "supernetwork.x",
        "supernet",
        "supernet.models.fake_module.os.system",
        "supernet.models.fake_module.system",
        "supernet.models.fake_module.partial",
        "supernet.models.fake_module.Path",
        "supernet.models.fake_module._Private",
        "supernet.models.fake_module.instance",
        "supernet.models.fake_module.Thing.__init__",
        "supernet.models.fake_module.__builtins__",
        "supernet.construct.importlib.import_module",
        "supernet.construct.importlib",
        "torch.optim.sgd.torch.load",
        "torch.optim.Optimizer.__class__",
        "torch.load",
        "supernet..os",
        "supernet.models.fake_module.Thing ",
        None,
        3,
    ],
)
def test_everything_else_is_refused(target: Any) -> None:
    with pytest.raises(UserError, match="_target_"):
        construct({"_target_": target}, "data")


def test_construct_only_builds_what_is_allowed_at_every_depth() -> None:
    inner = {"_target_": "supernet.models.fake_module.Inner", "size": 5}
    config = {
        "_target_": "supernet.models.fake_module.Thing",
        "epochs": 1,
        "inner": inner,
        "anything": {"x": [[inner]]},
    }
    thing = construct_only(config, "data", ("supernet.models.fake_module.",), flag=True)
    assert thing.values["inner"] == Inner(5)
    assert thing.values["anything"] == {"x": ((Inner(5),),)}
    assert thing.values["flag"] is True


@pytest.mark.parametrize(
    "target", ["supernet.runs.write_json", "supernet.models.fake_modul.Thing", "os.system", "", None, 3]
)
def test_construct_only_refuses_everything_else_before_it_calls_anything(target: Any, tmp_path: Path) -> None:
    victim = tmp_path / "victim.json"
    bad = {"_target_": target, "path": str(victim), "obj": 1}
    good = {"_target_": "supernet.models.fake_module.Thing", "epochs": 1}
    places: list[Any] = [bad, {**good, "anything": bad}, {**good, "inner": bad}, {**good, "unknown": bad}]
    places += [
        {**good, "anything": [{"x": (0, bad)}]},
        {**good, "anything": {"_target_": "supernet.models.fake_module.flexible", "first": bad}},
    ]
    for config in places:
        with pytest.raises(UserError, match=r"^data.*_target_=.*not allowed"):
            construct_only(config, "data", ("supernet.models.fake_module.", "supernet.data."))
    for config in ([good], "supernet.models.fake_module.Thing", None):
        with pytest.raises(UserError, match=r"^data: expected a mapping"):
            construct_only(config, "data", ("supernet.models.fake_module.",))
    assert not victim.exists()


def test_lists_inside_lists_again_and_again() -> None:
    """A few kilobytes of a file that names one list twice in each of many: refused before they are gone through."""
    for shared in shared_lists().values():
        for build_it in (construct, functools.partial(construct_only, allowed=("supernet.models.",))):
            with pytest.raises(UserError, match="holds more than"):
                build_it({"_target_": "supernet.models.fake_module.Thing", "anything": shared}, "space")
    archs = [{"edges": [0] * 6, "depth": 3}] * 15_625  # all subnets of a published space
    assert len(build(epochs=1, anything=archs).values["anything"]) == 15_625


def test_wrong_names_are_answered_with_near_ones() -> None:
    with pytest.raises(UserError, match="did you mean Thing"):
        construct({"_target_": "supernet.models.fake_module.Thingy", "epochs": 1}, "data")
    with pytest.raises(UserError, match=r"there is no module supernet\.models\.nothing"):
        construct({"_target_": "supernet.models.nothing.Thing"}, "data")
    with pytest.raises(UserError, match=r"^train\.epoch: unknown name; did you mean epochs\?"):
        build(epoch=1)
    with pytest.raises(UserError, match=r"train\._convert_"):
        build(epochs=1, _convert_="all")
    with pytest.raises(UserError, match=r"^train\.epochs: a value is required"):
        build(rate=1.0)
    assert build("train", "flexible", first=1, other=[2]) == {"first": 1, "other": (2,)}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"epochs": "abc"}, "train.epochs=abc: expected int, got 'abc'"),
        ({"epochs": True}, "train.epochs=True: expected int, got True"),
        ({"epochs": 1.0}, "train.epochs=1.0: expected int, got 1.0"),
        ({"epochs": None}, "train.epochs=None: expected int, got None"),
        ({"epochs": 1, "rate": "fast"}, "train.rate=fast: expected float, got 'fast'"),
        ({"epochs": 1, "rate": False}, "train.rate=False: expected float, got False"),
        ({"epochs": 1, "flag": 1}, "train.flag=1: expected bool, got 1"),
        ({"epochs": 1, "label": 3}, "train.label=3: expected str or None, got 3"),
        ({"epochs": 1, "kind": "c"}, "train.kind=c: expected one of 'a', 'b', got 'c'"),
        ({"epochs": 1, "sides": 3}, "train.sides=3: expected list of int, got 3"),
        ({"epochs": 1, "sides": [1, "x"]}, "train.sides[1]=x: expected int, got 'x'"),
        ({"epochs": 1, "pair": [1]}, "train.pair=[1]: expected 2 values, got 1"),
        ({"epochs": -1}, "train: epochs=-1: must not be negative"),
    ],
)
def test_wrong_values_are_named(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(**params)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (3, float | int, 3),
        (3, int | float, 3),
        (3, float | None, 3.0),
        ([1], list[int], [1]),
        ([1], Sequence[float], (1.0,)),
        ([1], int | Sequence[int], (1,)),
        ({"a": 1}, Mapping[str, float], {"a": 1.0}),
        ("runs", Path | None, Path("runs")),
        ("cpu", torch.device | str, "cpu"),
        ("x", Callable[[int], int], "x"),
    ],
)
def test_coerce(value: Any, annotation: Any, expected: Any) -> None:
    result = coerce(value, annotation, "key")
    assert result == expected
    assert type(result) is type(expected)


def test_nearest() -> None:
    keys = ["train.epochs", "train.batch_size", "optim.lr", "data.root", "seed"]
    assert nearest("trian.epochs", keys)[0] == "train.epochs"
    assert nearest("epochs", keys) == ["train.epochs"]
    assert nearest("batchsize", keys) == ["train.batch_size"]
    assert nearest("lr", keys) == ["optim.lr"]
    assert nearest("zzz", keys) == []
    assert len(nearest("name1", [f"name{i}" for i in range(9)])) == 3
