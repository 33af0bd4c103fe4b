"""No code from files, no shells, no secrets on the disk: see docs/security.md."""

from __future__ import annotations

import ast
import copy
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_run import REPOSITORY, only_run, search_config, tiny_config

from search import conclude, runner
from search.conclude import begun_command, resume_command
from supernet import job
from supernet.cli import entry
from supernet.data.files import read_image
from supernet.errors import UserError
from supernet.hydra_section import check_section
from supernet.log import RunLog
from supernet.runs import read_json

PACKAGES = ("supernet", "search")
SUBPROCESSES = {"supernet/runs.py": "git", "search/latency/timing.py": "nvidia-smi"}
# Whatever runs what it is given, or reads a format that can.
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.spawnl"),
    *("pickle.load", "pickle.loads", "marshal.loads", "shelve.open", "joblib.load", "torch.hub.load", "numpy.load"),
    *("np.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "hydra.utils.instantiate", "runpy.run_path"),
    *(
        "subprocess.call",
        "subprocess.Popen",
        "subprocess.check_output",
        "subprocess.getoutput",
        "shutil.unpack_archive",
    ),
}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """File, dotted name and node of every call in the packages."""
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield path.relative_to(REPOSITORY).as_posix(), ast.unparse(node.func), node


def test_nothing_that_is_read_is_run() -> None:
    found = [(file, name) for file, name, _ in calls()]
    assert len(found) > 1000
    assert not [(file, name) for file, name in found if name in FORBIDDEN]


def test_checkpoints_are_read_as_weights_only() -> None:
    loads = [(file, node) for file, name, node in calls() if name == "torch.load"]
    assert {file for file, _ in loads} == {"supernet/checkpoint.py", "supernet/pretrained/files.py"}
    for file, node in loads:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert given.get("weights_only") == "True", file


def test_other_programs_are_started_by_name_without_a_shell() -> None:
    started = [(file, node) for file, name, node in calls() if name == "subprocess.run"]
    assert {file for file, _ in started} == set(SUBPROCESSES)
    for file, node in started:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert "shell" not in given, file
        assert "timeout" in given, file
        text = (REPOSITORY / file).read_text(encoding="utf-8")
        assert re.search(rf'command = \["{SUBPROCESSES[file]}", ', text), f"{file}: a list, its program a constant"


SECRETS = {f"NAME_{number}": f"s3cr3t-{number}-xyzzy" for number in range(6)}
IN_ENVIRONMENT = dict(
    zip(("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"), SECRETS.values(), strict=False)
)
ON_COMMAND_LINE = (
    f"+hydra.job.env_set.WANDB_API_KEY={SECRETS['NAME_4']}",
    f"+hydra.job.env_set={{HF_TOKEN: {SECRETS['NAME_5']}}}",
)


def test_no_secret_reaches_the_disk_or_the_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A training run, and an interrupted search of it, with secrets in the environment and in what was typed."""
    for name, value in IN_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["train.py", "train.epochs=1", *ON_COMMAND_LINE])
    job.main(tiny_config(tmp_path, "train.epochs=1"))
    run = only_run(tmp_path)
    config = search_config(run)
    monkeypatch.setattr(sys, "argv", ["search.py", f"checkpoint={run}", "data.eval_batch_size=64", *ON_COMMAND_LINE])
    with monkeypatch.context() as patch:
        patch.setattr("search.study.ship", interrupt)
        with pytest.raises(KeyboardInterrupt):
            runner.main(config)
    runner.main({**config, "resume": "auto"})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"environment.json", "checkpoint.pt", "log.txt", "trials.jsonl", "report.md"} <= {
        path.name for path in files
    }
    printed = capfd.readouterr()
    texts = {str(path): path.read_bytes() for path in files} | {"screen": (printed.out + printed.err).encode()}
    found = [(where, value) for where, text in texts.items() for value in SECRETS.values() if value.encode() in text]
    assert not found
    # What was typed is there, but for the values.
    argv = read_json(run / "environment.json")["argv"]
    assert argv[1] == "train.epochs=1"
    assert argv[2] == "+hydra.job.env_set.WANDB_API_KEY=***"
    for command in (resume_command(run), begun_command(run)):
        assert "s3cr3t" not in command
    assert "data.eval_batch_size=64" in conclude._data_overrides()


def interrupt(*given: object) -> None:
    raise KeyboardInterrupt


def test_a_setting_of_the_logger_that_does_not_exist_is_not_stored(tmp_path: Path) -> None:
    """A key of an account, say: every setting is written to the run folder."""
    with pytest.raises(UserError, match=r"logger\.api_key: unknown name") as caught:
        job.main(tiny_config(tmp_path, "+logger.api_key=s3cr3t"))
    assert "s3cr3t" not in str(caught.value)
    with pytest.raises(UserError, match=r"logger\.config: unknown name"):
        job.main(tiny_config(tmp_path, "+logger.config={api_key: s3cr3t}"))
    with pytest.raises(UserError, match=r"^epochs: unknown setting"):
        job.main(tiny_config(tmp_path, "+epochs=50"))
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


RECIPES = {
    "hydra.callbacks": "callbacks: {x: {_target_: os.mkdir, path: MADE}}",
    "hydra.job.env_set": "job: {env_set: {PATH: MADE}}",
    "hydra.launcher": "launcher: {_target_: os.abort}",
    "hydra.run.dir": "run: {dir: MADE}",
    "hydra.output_subdir": "{output_subdir: .hydra}",
    "hydra.sweep.dir": "sweep: {dir: MADE}",
    "hydra.sweeper": "sweeper: {_target_: os.abort}",
    "hydra.job_logging.handlers": "job_logging: {version: 1, handlers: {x: {(): os.mkdir, path: MADE}}, root: {}}",
}


@pytest.mark.parametrize("key", RECIPES)
@pytest.mark.parametrize("several", [False, True])
def test_a_recipe_of_somebody_else_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], key: str, several: bool
) -> None:
    """Not through Hydra's own section either, which can name anything."""
    made = tmp_path / "made"
    recipe = tmp_path / "configs" / "recipe" / "theirs.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(f"# @package _global_\nhydra:\n  {RECIPES[key].replace('MADE', str(made))}\n")
    words = ["-cd", str(recipe.parent.parent), "recipe=theirs", f"runs_dir={tmp_path / 'runs'}", *["-m"] * several]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    ran = []
    with pytest.raises(SystemExit) as left:
        entry("train", lambda config: ran.append(config) or 0.0)  # type: ignore[func-returns-value]
    assert left.value.code == 2
    assert not made.exists()
    assert not ran
    error = capfd.readouterr().err
    assert error.startswith(f"error: {key}: not allowed here")
    assert len(error.splitlines()) == 1


SHIPPED = {
    "callbacks": {},
    "job": {"env_set": {}, "name": "train", "chdir": False},
    "run": {"dir": "."},
    "sweep": {"dir": "${runs_dir}/multirun", "subdir": "."},
    "output_subdir": None,
    "launcher": {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"},
    "sweeper": {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "params": {"seed": "0,1"}},
    "job_logging": {"version": 1, "root": None, "disable_existing_loggers": False},
    "hydra_logging": {
        "version": 1,
        "formatters": {"simple": {"format": "%(message)s"}},
        "handlers": {
            "console": {"class": "logging.StreamHandler", "formatter": "simple", "stream": "ext://sys.stdout"}
        },
        "root": {"handlers": ["console"]},
    },
}
HIDDEN = [
    ("callbacks", "${mine}"),
    ("run.dir", "/elsewhere"),
    ("sweep.dir", "${mine}"),
    ("sweep.subdir", "../.."),
    ("output_subdir", ".hydra"),
    ("job.chdir", True),
    ("launcher", "${mine}"),
    ("launcher.x", {"_target_": "os.abort"}),
    ("launcher.x", {"y": {"_target_": "os.abort"}}),
    ("launcher.x", ["${mine}"]),
    ("sweeper._recursive_", "${mine}"),
    ("sweeper.params", {"seed": "${mine}"}),
    ("sweeper.params", {"_target_": "os.abort"}),
    ("sweeper.max_batch_size", "${mine}"),
    ("job_logging", "${mine}"),
    ("job_logging.filters", {"x": {"()": "os.abort"}}),
    ("job_logging.formatters", {"x": {"()": "os.abort"}}),
    ("job_logging.formatters", {"x": {"class": "theirs.Formatter"}}),
    ("job_logging.formatters", {"x": {"format": "ext://theirs.name"}}),
    ("job_logging.formatters", {"x": {"format": "${mine}"}}),
    ("job_logging.root", {"level": "ext://theirs.name"}),
    ("job_logging.handlers", {"x": {"class": "logging.FileHandler", "filename": "/somewhere"}}),
    ("job_logging.handlers", {"x": {"class": "logging.StreamHandler", "stream": "ext://theirs.name"}}),
    ("job_logging.handlers", {"x": {"class": "logging.StreamHandler", "level": "ext://theirs.name"}}),
    ("job_logging.handlers", {"x": {"class": "logging.StreamHandler", "()": "os.abort"}}),
    ("job_logging.handlers", {"x": "${mine}"}),
    ("hydra_logging.handlers", "${mine}"),
]


def test_the_section_as_shipped_is_accepted() -> None:
    check_section(SHIPPED)


@pytest.mark.parametrize(("key", "value"), HIDDEN)
def test_nothing_hides_in_hydras_section(key: str, value: object) -> None:
    """Not behind interpolations, classes of formatters, names that logging imports, arguments that are built."""
    section: dict[str, Any] = copy.deepcopy(SHIPPED)
    outer, _, inner = key.partition(".")
    if inner:
        section[outer][inner] = value
    else:
        section[outer] = value
    with pytest.raises(UserError, match=rf"^hydra\.{outer}.*: not allowed here"):
        check_section(section)


EPS = """%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
showpage
"""


def test_an_image_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would hand PostScript to Ghostscript, whatever the file's name ends in."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    (tmp_path / "image.png").write_text(EPS)
    with pytest.raises(UserError, match="cannot be read as an image"):
        read_image(tmp_path / "image.png")
    assert not (tmp_path / "started").exists()


def test_a_pickle_is_not_run_again(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Hydra's `--experimental-rerun` would unpickle the file that it is given."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--experimental-rerun", "theirs.pickle"])
    with pytest.raises(SystemExit) as left:
        entry("train", lambda config: 0.0)
    assert left.value.code == 2
    assert "unknown option '--experimental-rerun'" in capfd.readouterr().err


@pytest.mark.exhaustive
def test_wandb_is_not_told_what_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setattr(sys, "argv", ["train.py", *ON_COMMAND_LINE])
    monkeypatch.setenv("WANDB_API_KEY", SECRETS["NAME_0"])
    with RunLog(tmp_path, wandb={"kind": "wandb", "mode": "offline", "config": {"seed": 1}}) as log:
        log.record("train", 1, {"loss": 1.0})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if path.suffix == ".wandb"]
    assert not [path for path in files if b"s3cr3t" in path.read_bytes()]
