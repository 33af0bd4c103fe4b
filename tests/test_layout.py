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

from supernet import UserError
from supernet.build import make_data, make_space
from supernet.data import Data
from supernet.describe import rehearsal
from supernet.init import initialise
from supernet.net import Supernet
from supernet.space import Space

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("supernet", "search") for path in (ROOT / folder).rglob("*.py"))
SCRIPTS = [ROOT / "train.py", ROOT / "search.py"]
EVERYTHING = [*SOURCES, *SCRIPTS, *sorted((ROOT / "tests").glob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]
HEAVY = ["hydra", "omegaconf", "timm", "torchvision", "wandb", "sklearn", "matplotlib", "rich", "scipy"]
HEAVY += ["PIL", "pandas", "search"]
PARTS = ("sampler", "path_sampler", "data_sampler", "phases", "distill")
GROUPS = ("space", *PARTS, "sharing", "optim", "schedule", "data", "logger", "recipe")
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((ROOT / "configs" / group).glob("*.yaml"))]
# What some options ask for: as many random subnets as all options need; stages with as many depths as expand ratios, or
# so few that the subnets can be listed.
NEEDS = {"fair": ("sampler.num_random=6",)}
STAGES = {"compound": 2, "listed": 1}


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


def forked(tree: ast.Module) -> set[ast.AST]:
    """Every node inside a `with torch.random.fork_rng(...)`."""
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.With) and any("fork_rng(" in ast.unparse(item) for item in node.items)
    ]
    return {inner for block in blocks for inner in ast.walk(block)}


def uses_of_global_generators(path: Path) -> set[str]:
    """Imports of `random`, NumPy's functions that share one hidden state, and what seeds or restores torch's own."""
    tree = ast.parse(path.read_text())
    inside, found = forked(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name == "random"}
        elif isinstance(node, ast.ImportFrom) and node.module in ("random", "numpy.random", "numpy", "torch.random"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            explicit = ("np.random.default_rng", "np.random.SeedSequence", "np.random.Generator")
            if name.startswith(("np.random.", "numpy.random.")) and not name.startswith(explicit):
                found.add(name)
            if (
                name.startswith("torch.")
                and "(" not in name
                and name.endswith(("seed", "seed_all", "rng_state", "default_generator"))
            ):
                found |= {name} if node not in inside else set()
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_uses_the_global_generators(path: Path) -> None:
    """Only where a state of (seed, step) is set: the step, for dropout; image by image, for transforms of libraries.

    Initial weights are drawn from torch's generator too, but inside `fork_rng`, which puts it back.
    """
    allowed = {
        "supernet/shares.py": {"torch.manual_seed"},
        "supernet/data/draws.py": {"random"},  # draws what a library would, inside the seeds of `workers`
        "supernet/data/workers.py": {
            *("random", "np.random.seed", "np.random.get_state", "np.random.set_state"),
            "torch.random.default_generator",
        },
    }
    assert uses_of_global_generators(path) == allowed.get(str(path.relative_to(ROOT)), set())


def test_uses_of_global_generators_are_found(tmp_path: Path) -> None:
    bad = ("import random", "from random import choice", "np.random.rand(3)", "np.random.seed(0)", "torch.seed()")
    bad += ("torch.manual_seed(0)", "torch.cuda.manual_seed_all(0)", "torch.set_rng_state(x)")
    bad += ("from numpy.random import rand", "f = np.random.shuffle")
    good = ("np.random.default_rng(0)", "torch.Generator().manual_seed(0)", "rng.seed(0)", "import search.random")
    good += ("with torch.random.fork_rng(devices=[]):\n    torch.manual_seed(0)",)
    for lines, expected in ((bad, 1), (good, 0)):
        for line in lines:
            (tmp_path / "line.py").write_text(line)
            assert len(uses_of_global_generators(tmp_path / "line.py")) == expected, line


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
    assert found | {"supernet.configs"} == set(listed)  # the folder configs/, without Python files
    assert found == {".".join(path.parent.relative_to(ROOT).parts) for path in SOURCES}


# Configurations ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> Data:
    return make_data(composed("train"), torch.device("cpu"))


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: str(value))
def test_every_option_of_train_composes_and_builds(group: str, option: str, digits: Data) -> None:
    """A trainer with this option, on the digits; what decides a training step also takes one."""
    config = composed("train", f"{group}={option}", *NEEDS.get(option, ()))
    if option in STAGES:
        config["space"]["stages"] = config["space"]["stages"][: STAGES[option]]
    # The data itself is not there for every option.
    train = {**config["train"], "batch_size": digits_batch(digits)}
    config = {**config, "data": composed("train")["data"], "train": train}
    net = Supernet(make_space(config["space"], num_classes=10, in_channels=1))
    initialise(net, 0, "fan_out", "identity")
    assert net.space.size() > 1
    trainer = rehearsal(config, net, digits)
    optimizer = trainer.optimizer
    assert [g["weight_decay"] for g in optimizer.param_groups] == [config["optim"]["weight_decay"], 0.0]
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in net.parameters()}
    if group in (*PARTS, "optim", "schedule"):
        before = [parameter.detach().clone() for parameter in net.parameters()]
        trainer.train_step(next(digits.train(0)))
        trainer.train_step(next(digits.train(0)))
        assert all(parameter.isfinite().all() for parameter in net.parameters())
        assert any(not torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))


def digits_batch(data: Data) -> int:
    return len(next(data.train(0)).targets)


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "recipe"])
def test_a_recipe_sets_what_it_says(option: str) -> None:
    """Its own entries win over those of the groups that it chooses, and name nothing that does not exist.

    A recipe that starts from another one wins over that.
    """
    recipe, chosen = recipe_and_groups(option)
    config = composed("train", f"recipe={option}")
    for group, name in chosen.items():
        group = group.removeprefix("override /")
        assert config[group]["_target_"] == composed("train", f"{group}={name}")[group]["_target_"]
    groups = [f"{group.removeprefix('override /')}={name}" for group, name in chosen.items()]
    assert_set(recipe, config, composed("train", *groups))


def recipe_and_groups(option: str) -> tuple[Any, dict[str, str]]:
    recipe: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "recipe" / f"{option}.yaml"))
    chosen: dict[str, str] = {}
    for entry in recipe.pop("defaults"):
        chosen |= recipe_and_groups(entry)[1] if isinstance(entry, str) else entry
    return recipe, chosen


def assert_set(wanted: dict[str, Any], config: Any, without: Any, where: str = "") -> None:
    for key, value in wanted.items():
        assert key in without, f"{where}{key} is unknown"
        if isinstance(value, dict):
            assert_set(value, config[key], without[key], f"{where}{key}.")
        else:
            assert config[key] == value, f"{where}{key}"


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


def test_named_spaces_take_any_number_of_classes() -> None:
    for option in (option for group, option in OPTIONS if group == "space"):
        space: Space = make_space(composed("train", f"space={option}")["space"], num_classes=7, in_channels=1)
        assert space.widest["head"].classifier.out_features == 7
        assert space.widest.layers[0][1].in_channels == 1


def test_the_default_run_takes_its_resolutions_from_the_data() -> None:
    config = composed("train")
    assert config["space"]["resolution"] == config["data"]["resolution"]
    assert composed("train", "data=fashion_mnist")["space"]["resolution"] == [20, 24, 28]
