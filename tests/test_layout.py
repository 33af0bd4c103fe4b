"""Rules of the repository: who imports whom, how long things may be, and that every configuration works."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tiny import tiny_space
from torch import nn

from search.constraint import Constraint
from supernet import UserError
from supernet.build import make_data, make_space
from supernet.construct import construct
from supernet.optim import parameter_groups
from supernet.settings import TrainSettings
from supernet.space import Space

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("supernet", "search") for path in (ROOT / folder).rglob("*.py"))
SCRIPTS = [ROOT / "train.py", ROOT / "search.py"]
EVERYTHING = [*SOURCES, *SCRIPTS, *sorted((ROOT / "tests").glob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]
HEAVY = ["hydra", "omegaconf", "timm", "torchvision", "wandb", "sklearn", "matplotlib", "rich", "scipy"]
HEAVY += ["PIL", "pandas", "search"]
GROUPS = ("space", "sampler", "distill", "optim", "schedule", "data", "logger", "recipe")
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((ROOT / "configs" / group).glob("*.yaml"))]
ALGORITHMS = sorted(path.stem for path in (ROOT / "configs" / "algorithm").glob("*.yaml"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def composed(name: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = OmegaConf.to_container(compose(name, list(overrides)), resolve=True)
    assert isinstance(config, dict)
    return config  # type: ignore[return-value]


# Layout --------------------------------------------------------------------------------------------------------


def test_supernet_never_imports_search() -> None:
    for path in (ROOT / "supernet").rglob("*.py"):
        assert not [name for name in imported(path) if name.split(".")[0] == "search"], path


def test_importing_supernet_is_light() -> None:
    program = f"import sys, supernet; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_the_search_package_wins_over_the_script() -> None:
    program = "import search; print(search.__file__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip().endswith("search/__init__.py")


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    """Files up to 400 lines, functions up to 80, entry points up to 20."""
    text = path.read_text()
    assert len(text.splitlines()) <= (20 if path in SCRIPTS else 400)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 <= 80, node.name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_and_annotations(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body, "module docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.args, *node.args.kwonlyargs]
            missing = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            assert not missing, (node.name, missing)
            assert node.returns is not None, node.name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_uses_the_global_generators(path: Path) -> None:
    """`torch.manual_seed` only inside `fork_rng`, and numpy only through explicit generators."""
    text = path.read_text()
    for word in ("np.random.seed", "random.seed(", "np.random.rand", "np.random.choice", "np.random.permutation"):
        assert word not in text
    assert "import random" not in text.splitlines()


def test_one_step_of_inheritance() -> None:
    """Modules derive from torch's own classes only."""
    modules = {}
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                modules[node.name] = [ast.unparse(base) for base in node.bases]
    of_torch = {name for name, bases in modules.items() if any(base.startswith("nn.") for base in bases)}
    assert not {name: bases for name, bases in modules.items() if set(bases) & of_torch}


def test_every_package_is_listed() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in SOURCES if path.name == "__init__.py"}
    assert found == set(listed)
    assert found == {".".join(path.parent.relative_to(ROOT).parts) for path in SOURCES}


# Configurations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: str(value))
def test_every_option_of_train_composes_and_constructs(group: str, option: str) -> None:
    config = composed("train", f"{group}={option}", "logger=none" if group != "logger" else "seed=0")
    assert config["recipe"] is None if "recipe" in config else True
    settings: TrainSettings = construct(config["train"], "train")
    assert settings.epochs > 0
    space = make_space(config["space"], num_classes=10, in_channels=3)
    assert space.size() > 1
    sampler = construct(config["sampler"], "sampler", space=tiny_space(), seed=0)
    assert sampler.slots(0)
    student = torch.zeros(2, 3)
    assert construct(config["distill"], "distill")(student, student, torch.tensor([0, 1])).shape == (2,)
    schedule = construct(config["schedule"], "schedule")
    assert 0 <= schedule(5, 10, 1000) <= 1
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    optim = dict(config["optim"])
    groups = parameter_groups(network, optim.pop("weight_decay"))
    optimizer = construct(optim, "optim", params=groups)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [config["optim"]["weight_decay"], 0.0]
    assert config["logger"]["kind"] in ("none", "wandb")


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "data"])
def test_every_dataset_loads_or_says_what_is_missing(option: str, tmp_path: Path) -> None:
    config = composed("train", f"data={option}")
    if "root" not in config["data"]:
        info = make_data(config, torch.device("cpu")).info
        assert info.num_classes == len(info.class_names) == 10
    else:
        with pytest.raises(UserError) as caught:
            make_data(config, torch.device("cpu"), {"root": str(tmp_path / "absent")})
        assert str(tmp_path / "absent") in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("option", ALGORITHMS)
def test_every_algorithm_composes_and_constructs(option: str) -> None:
    config = composed("search", f"algorithm={option}")
    constraint: Constraint = construct(config["constraint"], "constraint")
    space = tiny_space()
    algorithm = construct(config["algorithm"], "algorithm", budget=constraint.on(space), seed=0)
    proposals = algorithm.ask(4)
    assert all(algorithm.budget.feasible(arch) for arch in proposals)
    fields = set(config) - {"constraint", "algorithm", "data", "hydra"}
    assert {"checkpoint", "seed", "evaluations"} <= fields


def test_named_spaces_take_any_number_of_classes() -> None:
    for option in (option for group, option in OPTIONS if group == "space"):
        space: Space = make_space(composed("train", f"space={option}")["space"], num_classes=7, in_channels=1)
        assert space.widest["head"].classifier.out_features == 7
        assert space.widest["stem"].in_channels == 1


def test_the_default_run_takes_its_resolutions_from_the_data() -> None:
    config = composed("train")
    assert config["space"]["resolution"] == config["data"]["resolution"]
    assert composed("train", "data=fashion_mnist")["space"]["resolution"] == [20, 24, 28]
