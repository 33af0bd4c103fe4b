"""The command line: what runs, what is refused, and in which words."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supernet import cli
from supernet.cli import entry
from supernet.errors import UserError
from supernet.interrupt import Preempted, StopRequest

TRAIN = """
defaults:
  - data: digits
  - optional extra: null
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
  - _self_
seed: 0
runs_dir: runs
train: {epochs: 3, batch_size: 64}
optim: {lr: 0.1}
needed: 1
sides: [1, 2]
hydra:
  output_subdir: null
  run: {dir: .}
  sweep: {dir: "${runs_dir}/multirun", subdir: .}
  job: {chdir: false}
  help:
    template: |
      Usage: train.py
      $APP_CONFIG_GROUPS
      $CONFIG
"""
FILES = {
    "train.yaml": TRAIN,
    "data/digits.yaml": "size: 16\nsteps: ${train.epochs}",
    "data/folder.yaml": "root: ???",
    "data/fashion_mnist.yaml": "root: null",
    "data/lost.yaml": "root: ${no.such}",
    "data/broken.yaml": "a: [1",
}


class Session:
    """Calls `entry` as a script would and keeps what came of it."""

    def __init__(self, configs: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.configs, self.capsys, self.monkeypatch = configs, capsys, monkeypatch
        self.seen: list[dict[str, Any]] = []

    def __call__(self, *argv: str, run: Callable[[dict[str, Any]], float | None] | None = None) -> int:
        def remember(cfg: dict[str, Any]) -> float | None:
            self.seen.append(cfg)
            return run(cfg) if run else None

        self.monkeypatch.setattr(sys, "argv", ["train.py", *argv])
        code = 0
        try:
            entry("train", remember, self.configs)
        except SystemExit as left:
            code = int(left.code or 0)
        self.out, self.err = self.capsys.readouterr()
        return code

    def error(self, *argv: str, run: Callable[[dict[str, Any]], float | None] | None = None) -> str:
        assert self(*argv, run=run) == 2
        assert self.err.startswith("error: "), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("error: ").rstrip()


@pytest.fixture
def session(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Session:
    for name, text in FILES.items():
        path = tmp_path / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return Session(tmp_path / "configs", capsys, monkeypatch)


def test_run_gets_a_plain_resolved_config_and_nothing_is_written(session: Session) -> None:
    assert session("train.epochs=7", "optim.lr=1e-3", "+new.key=x") == 0
    (cfg,) = session.seen
    assert cfg == {
        "data": {"size": 16, "steps": 7},
        "seed": 0,
        "runs_dir": "runs",
        "train": {"epochs": 7, "batch_size": 64},
        "optim": {"lr": 0.001},
        "needed": 1,
        "sides": [1, 2],
        "new": {"key": "x"},
        "overrides": ["train.epochs=7", "optim.lr=1e-3", "+new.key=x"],
    }
    assert all(type(cfg[key]) is kind for key, kind in (("data", dict), ("sides", list)))
    assert list(Path.cwd().iterdir()) == []
    assert "HYDRA_FULL_ERROR" not in os.environ


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["trian.epochs=3"],
            "unknown override 'trian.epochs': did you mean train.epochs? (all: python train.py --help)",
        ),
        (["epochs=3"], "unknown override 'epochs': did you mean train.epochs?"),
        (["dta=digits"], "unknown override 'dta': did you mean data"),
        (["data=folder", "data.rot=x"], "unknown override 'data.rot': did you mean data.root"),
        (["~train.epoch"], "unknown override 'train.epoch': did you mean train.epochs"),
        (["train.epochs.x=1"], "unknown override 'train.epochs.x'"),
        (
            ["data=fashionmnist"],
            "data=fashionmnist: no such option: did you mean fashion_mnist? (all: broken, digits,",
        ),
        (["data=3"], "Config group override must be a string"),
        (["digits"], "bad override 'digits': write key=value"),
        (["a==b"], "bad override 'a==b': write key=value"),
        (["+seed=1"], "seed exists already: write seed=<value> without the +"),
        (["seed=0,1"], "seed=0,1: write 'seed=[0,1]' for a list, or add -m to run once for each value"),
        (["data=folder"], "data.root needs a value: give data.root=<value>"),
        (["data=lost"], "data.root: Interpolation key 'no.such' not found"),
        (["--epochs", "3"], "unknown option '--epochs': settings have no dashes, as in epochs=<value>"),
        (["-cd", "/no/such/folder"], "Additional config directory '/no/such/folder' not found"),
        (["-cn", "other"], "there is no config 'other' in"),
        (["--resolve"], "The --resolve flag can only be used"),
        (["-m", "trian.epochs=1,2"], "unknown override 'trian.epochs': did you mean train.epochs?"),
        (["-m", "data=digits,fashionmnist"], "data=fashionmnist: no such option"),
    ],
)
def test_mistakes_get_one_line(session: Session, argv: list[str], line: str) -> None:
    assert session.error(*argv).startswith(line)
    assert session.seen == []


def test_broken_yaml_names_file_and_line(session: Session) -> None:
    assert "broken.yaml, line " in session.error("data=broken")


def fail(error: BaseException) -> Callable[[dict[str, Any]], float | None]:
    def run(cfg: dict[str, Any]) -> float | None:
        raise error

    return run


def test_failures_of_the_run(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert session.error(run=fail(UserError("train.epochs=-1:\n must be positive"))) == (
        "train.epochs=-1: must be positive"
    )
    assert session.error(run=fail(OSError(28, "No space left on device", "x.pt"))) == "No space left on device: x.pt"
    assert session.error(run=fail(PermissionError(13, "Permission denied", "/r"))) == "Permission denied: /r"
    assert "lower train.batch_size" in session.error(run=fail(torch.OutOfMemoryError("CUDA out of memory. Tried")))
    assert "lower train.batch_size" in session.error(run=lambda cfg: torch.empty(10**16).item())
    assert session(run=fail(KeyboardInterrupt())) == 130
    assert session.err == ""
    monkeypatch.setenv("RANK", "3")
    assert session.error(run=fail(UserError("x"))) == "x (rank 3)"


class InterruptedWhileNamed:
    """As an attribute of a class that is being made when Ctrl-C arrives."""

    def __set_name__(self, owner: type, name: str) -> None:
        raise Preempted


def test_an_interruption_that_was_wrapped_is_one(session: Session) -> None:
    """Python turns it into a RuntimeError where it arrives in the making of a class, as in any import."""
    assert session(run=lambda config: type("Made", (), {"x": InterruptedWhileNamed()})) == 75
    assert session.err == ""


@pytest.mark.parametrize("bug", [ValueError("a bug"), OSError(22, "a bug"), KeyError("a bug"), TypeError("a bug")])
def test_bugs_keep_their_traceback(session: Session, bug: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    assert session(run=fail(bug)) == 1
    assert "Traceback" in session.err
    assert "a bug" in session.err
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(type(bug), match="a bug"):
        session(run=fail(bug))


def test_sweep_runs_every_job_and_reports_failures(session: Session) -> None:
    def run(cfg: dict[str, Any]) -> float | None:
        if cfg["seed"] == 1:
            raise UserError("seed 1 is bad")
        return 0.5

    assert session("-m", "seed=0,1,2", run=run) == 2
    assert [cfg["seed"] for cfg in session.seen] == [0, 1, 2]
    assert session.err == "error: seed 1 is bad\n"
    assert session("--multirun", "seed=0,2", "data=digits,fashion_mnist", run=run) == 0
    assert len(session.seen) == 3 + 4
    assert session.error("-m", "seed=range(0)", run=run).startswith("-m: these values are none at all")
    assert len(session.seen) == 3 + 4


def test_secrets_are_refused_and_not_repeated(session: Session) -> None:
    """Settings are stored, and a sweep stores them before any program can check them."""
    for word in (
        "+api_key=xyzzy",
        "+logger.API_KEY=xyzzy",
        "+logger={mode: offline, api_key: xyzzy}",
        "hf_token=xyzzy",
    ):
        for several in ([], ["-m"]):
            assert "named like a secret" in session.error(*several, word)
            assert "xyzzy" not in session.err
    assert session("+new.monkey=x", "+new.tokens=3", "+new.text='api_key'") == 0


def test_help_says_what_settings_mean(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remarks of the YAML files, those of the chosen options too; groups of other programs are not offered."""
    for program, words, lines in (
        ("train", (), ("label_smoothing: 0.1 # of the largest subnet's loss", "arch: null # train this one subnet")),
        ("train", ("optim=adamw",), ("fused: true # one kernel for all weights",)),
        ("train", ("data=folder",), ("num_workers: null # decoding processes; null: one per core",)),
        ("search", ("algorithm=predictor",), ("batch: 20 # subnets scored between two fits",)),
        ("search", (), ("calibration_images: null # training images that set",)),
    ):
        monkeypatch.setattr(sys, "argv", [f"{program}.py", "--help", *words])
        with pytest.raises(SystemExit) as left:
            entry(program, lambda config: None)
        assert left.value.code == 0
        out = session.capsys.readouterr().out
        shown = [" ".join(line.split()) for line in out.splitlines()]
        for wanted in lines:
            assert any(line.startswith(wanted) for line in shown), (program, wanted)
        # Of two batches in a search only the algorithm's has this remark.
        assert sum("between two fits" in line for line in shown) == (words == ("algorithm=predictor",))
        assert program == "search" or ("algorithm" not in out and "distill: alpha, none" in out)
    assert session.error("--help", "nothing=1").startswith("unknown override")
    assert session.out == ""


def test_hydra_options_work(session: Session, tmp_path: Path) -> None:
    assert session("--hydra-help") == 0
    assert "Hydra" in session.out
    assert session("--help") == 0
    assert "Usage: train.py" in session.out
    assert "data: broken, digits, fashion_mnist, folder, lost" in session.out
    assert session("--cfg", "job", "train.epochs=9") == 0
    assert "epochs: 9" in session.out
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "own.yaml").write_text("size: 99")
    assert session("-cd", str(tmp_path / "mine"), "data=own") == 0
    assert session.seen[-1]["data"] == {"size": 99}


# The package without its __init__, to see what the command line itself imports.
BARE = """
import sys, types
package = types.ModuleType("supernet")
package.__path__ = [{folder!r}]
sys.modules["supernet"] = package
from pathlib import Path
from supernet.cli import entry
import supernet.log
try:
    entry("train", "platform:node", Path({configs!r}))
finally:
    print([name for name in ("torch", "rich", "wandb", "timm") if name in sys.modules])
"""


def test_help_needs_no_torch_and_a_named_run_is_imported_late(tmp_path: Path, session: Session) -> None:
    script = tmp_path / "train.py"
    folder = str(Path(cli.__file__).parent)
    script.write_text(BARE.format(folder=folder, configs=str(session.configs)))
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: train.py" in done.stdout
    assert done.stdout.endswith("[]\n")
    called = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert called.returncode == 1
    assert "node() takes" in called.stderr, "the named function is called with the config"


@pytest.mark.parametrize("value", ["runs/a/front.json#3", "front.json#0"])
def test_a_row_of_a_file_needs_no_quotes(session: Session, value: str) -> None:
    assert session(f"+new.key={value}") == 0
    assert session.seen[-1]["new"]["key"] == value


def test_a_terminal_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGHUP asks to save and stop, unless the program was started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.requested
            assert isinstance(stop.interruption(), Preempted)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)
