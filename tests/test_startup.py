"""What a command loads before it answers: the cause of a slow start, not the clock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "torchvision", "numpy", "scipy", "sklearn", "sympy", "matplotlib", "pandas", "timm", "wandb", "rich")
UNUSED = ("matplotlib", "pandas", "timm", "wandb", "pymoo", "torch._inductor", "torch.onnx", "IPython", "tensorboard")


def loaded(program: str, names: tuple[str, ...]) -> list[str]:
    """Which of `names` a new interpreter has loaded after `program`."""
    code = f"import sys\n{program}\nprint([name for name in {names!r} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    found: list[str] = json.loads(done.stderr.splitlines()[-1].replace("'", '"'))
    return found


def command(script: str, *arguments: str) -> str:
    """A program that runs a script with arguments and goes on after its end."""
    return f"""
import runpy
sys.argv = [{script!r}, *{arguments!r}]
try:
    runpy.run_path({script!r}, run_name="__main__")
except SystemExit:
    pass
"""


@pytest.mark.parametrize("script", ["train.py", "search.py"])
@pytest.mark.parametrize("argument", ["--help", "trian.epochs=3", "--epochs"])
def test_help_and_mistakes_load_nothing_heavy(script: str, argument: str) -> None:
    assert loaded(command(script, argument), HEAVY) == []


def test_the_package_loads_torch_with_the_first_name_that_needs_it() -> None:
    assert loaded("import supernet, supernet.errors, supernet.runs, supernet.construct", HEAVY) == []
    assert set(loaded("import supernet; supernet.build", HEAVY)) - {"numpy"} == {"torch"}


def test_all_public_names_load_little_more_than_torch() -> None:
    everything = "import supernet\nfor name in supernet.__all__: getattr(supernet, name)"
    assert set(loaded(everything, (*HEAVY, *UNUSED, "hydra", "omegaconf"))) <= {"torch", "numpy"}


def test_training_loads_no_plots_and_no_trackers_before_it_needs_them() -> None:
    assert loaded("import supernet.job, supernet.data", (*UNUSED, "sklearn")) == []


def test_a_public_name_stays_what_it_is_where_a_module_has_the_same() -> None:
    """Whichever is imported first."""
    program = """
import supernet.build, supernet.calibrate, supernet.cost, supernet.evaluate
names = ("build", "calibrate", "cost", "evaluate")
before = [getattr(supernet, name) for name in names]
from supernet import build, calibrate, cost, evaluate
import supernet.job, search.runner
for name, old, new in zip(names, before, (build, calibrate, cost, evaluate)):
    assert old is new is getattr(supernet, name) is vars(sys.modules[f"supernet.{name}"])[name], name
    assert callable(new) and type(new) is not type(sys), name
"""
    assert loaded(program, ("torch",)) == ["torch"]


def test_submodules_and_unknown_names() -> None:
    program = """
import supernet
assert supernet.export.load_subnet is supernet.load_subnet
assert set(supernet.__all__) <= set(dir(supernet))
try:
    supernet.nothing
except AttributeError as error:
    assert "has no attribute 'nothing'" in str(error)
else:
    raise AssertionError
from supernet import *
assert Space is supernet.space.Space and build is supernet.build
"""
    assert loaded(program, ("torch",)) == ["torch"]
