"""What people type on a command line, and mistype: a grammar of overrides of `train.py` and `search.py`.

Of every line it is known whether it must be refused. The rest may be refused, or may run.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hydra import compose, initialize_config_dir
from hydra.types import RunMode
from hypothesis import strategies as st
from mistakes import BEYOND, FRACTIONS, FREE, GROUPS, SYNTAX, WRONG
from omegaconf import OmegaConf
from tiny_run import OVERRIDES, only_run, spaces, tiny_config

from search.gradient.search import GradientSearch
from search.latency.mode import LatencySettings
from search.settings import MEASURING
from supernet import job
from supernet.cli import entry
from supernet.construct import construct
from supernet.runs import config_dir
from supernet.trainer import Trainer


class Reached(Exception):  # noqa: N818 - not an error: all checks have passed
    """Work would begin here."""


@dataclass(frozen=True)
class Line:
    """The overrides of one command, and whether they must be refused."""

    program: str
    words: tuple[str, ...]
    wrong: bool


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


@contextlib.contextmanager
def no_work(data: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Programs that stop where training, scoring or measuring would begin."""

    def reached(*args: Any, **kwargs: Any) -> Any:
        raise Reached

    def study(searched: Any, described: Mapping[str, Any]) -> Any:
        own = {"objectives": list(searched.settings.objectives)} if "objectives" in described else {}
        construct({**described, **own}, "algorithm", budget=searched.budget, seed=searched.settings.seed)
        searched.resumable()
        raise Reached

    def gradient(searched: Any, name: str) -> Any:
        GradientSearch.of(searched.config["algorithm"], searched.budget)
        searched.resumable()
        raise Reached

    def measure(config: Mapping[str, Any]) -> Any:
        settings = LatencySettings.of(config)
        settings.open_space()
        settings.setting()
        raise Reached

    patches = {
        "supernet.trainer.Trainer.run": reached,
        "search.runner.run_study": study,
        "search.runner.dry_run": reached,
        "search.runner.evaluate_and_export": reached,
        "search.gradient.study.run_gradient": gradient,
        "search.latency.mode.main": measure,
        "supernet.job.dry_run": reached,
        # Hydra composes everything once more to learn that this is no sweep.
        "hydra._internal.hydra.Hydra.get_mode": lambda self, **given: RunMode.RUN,
    }
    with contextlib.ExitStack() as stack:
        for name, replacement in patches.items():
            stack.enter_context(patch(name, replacement))
        yield


def run(
    program: str,
    folder: Path,
    *words: str,
    run_folder: Path | None = None,
    defaults: bool = True,
    keep_yaml: bool = False,
) -> Outcome:
    """What a command prints, and its exit code.

    `run_folder`: the training run that a search is of. `defaults`: the settings of a tiny run come first. `keep_yaml`:
    the space's file is there already.
    """
    given = ["-cd", str(folder / "configs" if keep_yaml else spaces(folder)), f"runs_dir={folder / 'runs'}"]
    if program == "train":
        given += OVERRIDES if defaults else ()
    else:
        given += [f"checkpoint={run_folder}", "device=cpu", "constraint.macs=0.9", "calibration_images=16"]
    main = job.main if program == "train" else _search
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = [f"{program}.py", *given, *words]
    with patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            entry(program, _until_reached(main))
        except SystemExit as left:
            code = int(left.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def _search(config: dict[str, Any]) -> float:
    from search.runner import main

    return main(config)


def _until_reached(main: Callable[[dict[str, Any]], float]) -> Callable[[dict[str, Any]], float]:
    def program(config: dict[str, Any]) -> float:
        try:
            return main(config)
        except Reached:
            return 0.0

    return program


def stored_run(folder: Path) -> Path:
    """A training run below `folder` that has saved its first state, and stopped."""

    def save(trainer: Trainer) -> Any:
        trainer.save()
        raise Reached

    with no_work(), pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "run", save)
        with pytest.raises(Reached):
            job.main(tiny_config(folder))
    return only_run(folder)


# The grammar -------------------------------------------------------------------------------------------------------


def leaves(program: str, folder: Path) -> dict[str, Any]:
    """Every setting of a program by its dotted name, with its value."""
    search = [f"hydra.searchpath=[file://{spaces(folder)}]"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose(program, [*search, *(OVERRIDES if program == "train" else ())])
    return dict(_flat(OmegaConf.to_container(config)))


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read_by(name: str) -> tuple[str, ...]:
    """The mode that looks at a setting, if not the default one."""
    return ("mode=latency",) if name in MEASURING else ()


def words_for(value: Any) -> list[str]:
    """Values of another type, as they are typed. Lists of options may well be one number."""
    words = list(WRONG.get(type(value), ())) if not isinstance(value, str) else ["[1]", "{a: 1}"]
    return [word for word in words if not (value is True and word == "null")]  # torch's own choice: optim.fused=null


@st.composite
def misspelled(draw: st.DrawFn, names: list[str]) -> str:
    """A name with a letter more or less, or two changed places; never one of `names` or the beginning of one."""
    name = draw(st.sampled_from(names))
    i = draw(st.integers(0, len(name) - 1))
    extra = draw(st.sampled_from("abcxyz_"))
    ways = (name[:i] + name[i + 1 :], name[:i] + extra + name[i:], name[: i + 1] + name[i:], name + "." + extra)
    wrong = draw(st.sampled_from(ways))
    known = any(other == wrong or other.startswith(f"{wrong}.") for other in names)
    return f"no_{name}" if known or not wrong.strip(".") else wrong


VALUES = st.sampled_from(
    ("0", "1", "-3", "0.5", "1e-3", "true", "false", "null", "abc", "''", "[1,2]", "{a: 1}", "inf")
)
MARKS = st.sampled_from(("", "+", "++"))
# What would let Hydra run code, or write somewhere.
OF_HYDRA = (
    *("hydra.run.dir=/proc/nope", "hydra.run.dir=elsewhere", "hydra.sweep.dir=x", "hydra.output_subdir=.hydra"),
    *("hydra.job.chdir=true", "+hydra.callbacks.x=1", "+hydra.job.env_set.PATH=x", "+hydra.launcher.x=[1]"),
    *("hydra/job_logging=default", "hydra/launcher=none_such", "hydra/sweeper=none_such"),
)
TEXT = st.text(alphabet=st.sampled_from("ab.=[]{}'\"$:,\\ ()~+@!-_/#é∞🙂\u0000\n0"), max_size=12)


def lines(settings: Mapping[str, Mapping[str, Any]]) -> Any:
    """Commands of both programs, `settings` being what `leaves` says of each."""
    return st.sampled_from(sorted(settings)).flatmap(lambda program: _lines(program, settings[program]))


def _lines(program: str, known: Mapping[str, Any]) -> Any:
    top = {name.split(".")[0] for name in known} | {"hydra", *GROUPS[program]}
    names = [name for name in known if not name.startswith("hydra")]
    typed = [name for name in names if name.split(".")[0] not in FREE and words_for(known[name])]
    typed = [name for name in typed if not name.endswith("_target_")]
    wrong_type = st.sampled_from(typed).flatmap(
        lambda name: st.sampled_from(words_for(float(known[name]) if name in FRACTIONS else known[name])).map(
            lambda word: (f"{name}={word}", *_read_by(name))
        )
    )
    group = st.sampled_from(GROUPS[program])
    unknown = st.from_regex(r"[a-z_]{3,12}", fullmatch=True).filter(lambda name: name not in top)
    option = st.sampled_from(("none_such", "../x", "/etc/passwd", "x" * 300, "é", ".", "a/b", "0x"))
    must_fail = st.one_of(
        st.sampled_from(BEYOND[program]).map(lambda text: tuple(text.split(" ")) if " " in text else (text,)),
        st.builds(lambda name, value: (f"{name}={value}",), misspelled(names), VALUES),
        st.builds(lambda name, value: (f"{name}={value}",), group, option),
        st.builds(lambda name: (f"+{name}=1",), st.sampled_from([name for name in names if known[name] is not None])),
        st.builds(lambda mark, name, value: (f"{mark}{name}={value}",), MARKS, unknown, VALUES),
        st.sampled_from(OF_HYDRA).map(lambda word: (word,)),
        wrong_type,
    )
    may_fail = st.one_of(
        st.sampled_from(SYNTAX).map(lambda word: (word,)),
        TEXT.map(lambda word: (word,)),
        st.builds(lambda name, value: (f"{name}={value}",), st.sampled_from(names), VALUES | TEXT),
        st.builds(
            lambda mark, name, value: (f"{mark}{name}={value}",), st.sampled_from(("+", "++", "~", "")), TEXT, TEXT
        ),
        st.builds(lambda name: (f"~{name}",), st.sampled_from(names)),
    )
    line = st.builds(lambda words: Line(program, words, True), must_fail)
    return line | st.builds(lambda words: Line(program, words, False), may_fail)
