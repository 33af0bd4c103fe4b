"""What a configuration can name: no trick of spelling, nesting or partial application reaches anything else."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from families import refusal
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import tiny_space

import search
import supernet
from supernet import checkpoint
from supernet.build import open_run
from supernet.construct import construct, construct_only
from supernet.net import Supernet
from supernet.runs import config_dir, plain

ATTACKS = (
    *("os.system", "subprocess.run", "subprocess.Popen", "builtins.eval", "builtins.exec", "builtins.__import__"),
    *("shutil.rmtree", "pathlib.Path", "pickle.loads", "importlib.import_module", "runpy.run_path", "pty.spawn"),
    *("torch.load", "torch.hub.load", "torch.save", "torch.jit.load", "torch.package.PackageImporter"),
    *("torch.optim.sgd.torch.load", "torch.optim.os.system", "torch.optim.Optimizer.__class__", "torch.optim"),
    *("supernet.construct.importlib.import_module", "supernet.construct.importlib", "supernet.runs.subprocess.run"),
    *("supernet.runs.os.system", "supernet.models.mbconv.Space", "supernet.models.mbconv.Callable"),
    *("supernet.runs.write_json", "supernet.runs.write_atomic", "supernet.runs.lock", "supernet.checkpoint.save"),
    *("supernet.log.RunLog", "supernet.job.main", "supernet.trainer.Trainer", "supernet.export.export"),
    *("supernet.cli.entry", "supernet.cli._import", "supernet.construct.construct", "supernet.build.build"),
    *("search.history.History", "search.runner.main", "search.report.write_front", "search.job.open_job"),
    *("search.latency.model.LatencyModel.load", "search.latency.timing.subprocess.run", "search.random.np.load"),
    *("supernet.models.mbconv.space.__globals__", "supernet.models.mbconv.space.__class__", "supernet.models"),
    *("supernet..models.mbconv.space", ".supernet.models.mbconv.space", "supernet.models.mbconv.space.", "supernet"),
    *("supernet.models.mbconv.space ", " supernet.models.mbconv.space", "supernet.models.mbconv:space"),
    *("supernet.models.mbconv.space\n", "supernet.models.mbconv.\u200bspace", "supernet.models.mbconv.spa\u0441e"),
    *("\uff53upernet.models.mbconv.space", "supernet\uff0emodels.mbconv.space", "s\u0443pernet.models.mbconv.space"),
    *("supernet/models/mbconv.space", "supernet.models.mbconv.space()", "supernet.models.mbconv.space;os.system"),
    *("supernet.models.mbconv._Builder", "supernet.models.mbconv._check", "supernet.__init__.build", "supernetx.y"),
    *("SUPERNET.models.mbconv.space", "supernet.MODELS.mbconv.space", "__main__.x", "sys.modules", "", ".", "..", "a"),
)
ODD: list[Any] = [None, 3, True, 1.5, [], ["supernet.models.mbconv.space"], {}, {"_target_": "os.system"}, "x" * 5000]


def refused(target: Any, tmp_path: Path) -> None:
    """In the place of every section, and inside others, called or not."""
    victim = tmp_path / "victim"
    arguments = {"path": str(victim), "obj": 1, "folder": str(victim), "command": f"touch {victim}"}
    attack = {"_target_": target, **arguments}
    good = {"_target_": "supernet.samplers.sandwich.Sandwich", "num_random": 1}
    for cfg in (
        attack,
        {"_target_": target},
        {"_target_": target, "_partial_": True},
        {**good, "num_random": attack},
        {"_target_": "torch.optim.SGD", "_partial_": True, "lr": {"_target_": target, "_partial_": True}},
    ):
        assert refusal(construct, cfg, "data") is not None, cfg
        assert refusal(construct_only, cfg, "data", ("supernet.data.", "supernet.models.")) is not None, cfg
    assert not victim.exists()


@pytest.mark.parametrize("target", ATTACKS)
def test_names_of_others(target: str, tmp_path: Path) -> None:
    refused(target, tmp_path)


@pytest.mark.parametrize("target", ODD, ids=repr)
def test_what_is_no_name(target: Any, tmp_path: Path) -> None:
    refused(target, tmp_path)


WORDS = ("supernet", "search", "torch", "optim", "models", "data", "mbconv", "space", "construct", "importlib", "os")
WORDS += ("system", "eval", "builtins", "__class__", "__globals__", "__init__", "load", "runs", "write_json", "Popen")
parts = st.lists(st.sampled_from(WORDS) | st.text(max_size=6), min_size=1, max_size=6)


@given(st.builds(lambda words, dot: dot.join(words), parts, st.sampled_from((".", ".", ".", "..", "/", ":"))))
@example("supernet.models.mbconv.space")
def test_random_names(target: str) -> None:
    """Found and refused, or one of this project's constructors."""
    before = set(sys.modules)
    message = refusal(construct, {"_target_": target, "_partial_": True}, "x")
    loaded = set(sys.modules) - before
    assert all(name.startswith(("supernet", "search", "torch")) for name in loaded), loaded
    if message is None:
        made = construct({"_target_": target, "_partial_": True}, "x").func
        assert made.__module__.startswith(("supernet.", "search.", "torch.optim"))


def constructors() -> list[str]:
    """Every public class and function of this project by its full name."""
    names = []
    for package in (supernet, search):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(found.name)
            names += [
                f"{found.name}.{name}"
                for name, value in vars(module).items()
                if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == found.name
            ]
    return names


def test_nothing_that_can_be_named_writes_or_starts_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name there is, called with a path for each argument: no file appears, no program starts."""
    victim = tmp_path / "victim"
    monkeypatch.chdir(tmp_path)
    starts: list[Any] = []
    monkeypatch.setattr(os, "system", starts.append)
    monkeypatch.setattr("subprocess.Popen.__init__", lambda *args, **kwargs: starts.append(args))
    tried = 0
    for target in constructors():
        named = {"_target_": target, "_partial_": True}
        if refusal(construct, named, "x"):
            continue
        tried += 1
        parameters = inspect.signature(construct(named, "x").func).parameters
        for value in (str(victim), {}, [str(victim)]):
            values = {name: value for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
            try:
                construct({"_target_": target, **values}, "x")
            except Exception:  # whatever it thinks of such arguments
                continue
    assert tried > 50
    assert not starts
    assert [path.name for path in tmp_path.iterdir()] == []


def test_every_name_in_the_configurations_is_allowed() -> None:
    found = 0
    for path in config_dir().rglob("*.yaml"):
        for target in _targets(yaml.safe_load(path.read_text())):
            found += 1
            assert refusal(construct, {"_target_": target, "_partial_": True}, "x") is None
    assert found > 50


def _targets(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["_target_"]] if "_target_" in node else []
        return own + [target for value in node.values() for target in _targets(value)]
    return [target for value in node for target in _targets(value)] if isinstance(node, list) else []


@pytest.mark.parametrize("target", ["supernet.runs.write_json", "os.system", "supernet.data.digits.load", None])
def test_a_checkpoint_names_nothing_else(tmp_path: Path, target: Any) -> None:
    """Its space and its sharing, from which a network is built as soon as it is opened."""
    import torch

    victim = tmp_path / "victim"
    net = Supernet(tiny_space())
    attack = {"_target_": target, "path": str(victim), "obj": 1}
    good: dict[str, Any] = {"space": plain(net.space.config), "model": net.state_dict(), "config": {}, "step": 1}
    for state in (
        {**good, "space": attack},
        {**good, "space": {**good["space"], "name": attack}},
        {**good, "space": {"_target_": "supernet.space.restrict", "space": good["space"], "arch": attack}},
        {**good, "space": {"_target_": "supernet.narrow.narrow", "space": attack, "options": {}}},
        {**good, "config": {"sharing": attack}},
        {**good, "config": {"sharing": {"_target_": "supernet.sharing.make.groups", "groups": attack}}},
    ):
        checkpoint.save(tmp_path / "c.pt", state)
        assert refusal(open_run, tmp_path / "c.pt", torch.device("cpu")) is not None, state
        assert not victim.exists()


def test_nesting_without_end() -> None:
    cfg: Any = {"_target_": "supernet.models.mbconv.space"}
    for _ in range(5000):
        cfg = {"_target_": "supernet.models.mbconv.space", "stem": cfg}
    assert "nested more than" in str(refusal(construct, cfg, "space"))
    assert "nested more than" in str(refusal(construct_only, cfg, "space", ("supernet.models.",)))
