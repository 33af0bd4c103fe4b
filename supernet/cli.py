"""The command line: compose a config, run a program with it, and say in one line what a user did wrong."""

import importlib
import io
import os
import re
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NoReturn

import hydra
import yaml  # type: ignore[import-untyped]
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from supernet.construct import nearest
from supernet.errors import UserError
from supernet.explain import explain
from supernet.help import explained
from supernet.hydra_section import checked_sections
from supernet.interrupt import StopRequest, deferred, exit_code, interrupts_unwrapped, notices_interrupt
from supernet.runs import SECRET, config_dir

Run = Callable[[dict[str, Any]], float | None]

USER_ERROR = 2
CLOSED_PIPE = 141  # what shells report for SIGPIPE, which ends other programs here
OTHERS_WAIT_S = 5.0
LONGEST = 2000  # characters of a message: a mistyped override can be of any length
CONFIG_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)
ROW = re.compile(r"[^'\"]+#\d+")
FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra's own switch for raw tracebacks
OPTIONS = (
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir"),  # --experimental-rerun reads pickles
    *("--info", "-h", "-c", "-p", "-r", "-m", "-sc", "-cp", "-cn", "-cd", "-i"),
)


def entry(config_name: str, run: Run | str, configs: Path | None = None) -> None:
    """Run a program from the command line: `run` gets the composed, resolved config as a plain dict.

    `config_name` is the top YAML file's name without suffix; `run` may be "package.module:function", which
    is imported only when there is something to run. `configs` overrides the folder of YAML files. Hydra's
    options work: --help, --cfg job, --info, -m (several runs), -cd (a further folder of YAML files).

    A mistake of the user, or a failing machine, prints one line `error: …` on stderr and leaves with code 2, Ctrl-C
    with 130, SIGTERM, SIGUSR1 and SIGHUP with 75, a closed pipe with 141, any other exception with its traceback and 1.
    HYDRA_FULL_ERROR=1 lets every exception through untouched.
    """
    raw = FULL_ERROR in os.environ

    codes: list[int] = []  # of each job
    stop = StopRequest()  # Hydra turns interruptions into errors of its own

    def job(cfg: DictConfig) -> float | None:
        program = _import(run) if isinstance(run, str) else run
        with stop.suspended():
            if raw:
                return program(_settings(cfg))
            code, value = _guarded(program, cfg)
        codes.append(code)
        return value

    folder = configs
    try:
        sys.argv[1:] = [_quoted(arg) for arg in sys.argv[1:]]
        options = _check_options(sys.argv[1:])
        folder = configs or config_dir()
        helping = _explaining(folder, config_name) if options.help else nullcontext()
        with notices_interrupt(), stop, _hydra_raises(), checked_sections(), interrupts_unwrapped(), helping:
            hydra.main(version_base="1.3", config_path=str(folder.resolve()), config_name=config_name)(job)()
        if stop.requested:
            raise stop.interruption()
        if options.multirun and not (codes or raw):
            raise UserError("-m: these values are none at all, so nothing was run")
        sys.exit(next(filter(None, codes), 0))
    except KeyboardInterrupt as interruption:
        sys.exit(exit_code(interruption))
    except BrokenPipeError:  # `--help | head`
        sys.exit(_closed_pipe())
    except UserError as error:
        _fail(str(error))
    # Hydra raises ValueError for some misuses; those of `run` never get here.
    except (*CONFIG_ERRORS, ValueError) as error:
        if raw or folder is None:
            raise
        _fail(_explain(error, config_name, folder))
    except RecursionError:
        if raw:
            raise
        _fail("these settings, or a config file, are nested too deeply to be read")
    # What Hydra did not expect of an override such as `+=`; failures of `run` never get here.
    except (AssertionError, AttributeError, LookupError, TypeError) as error:
        if raw:
            raise
        _fail(f"these settings cannot be read ({type(error).__name__}: {error}): write key=value for each")
    except OSError as error:  # of Hydra, which makes folders for sweeps
        line = explain(error)
        if line is None and error.errno is None:  # OmegaConf's word for a YAML file that is no mapping
            line = f"a config file must be YAML of keys and values ({error})"
        if raw or line is None:
            raise
        _fail(line)


def _settings(cfg: DictConfig) -> dict[str, Any]:
    """Resolve every interpolation and return plain dicts and lists; `overrides` lists what was typed."""
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    typed = list(HydraConfig.get().overrides.task)
    return {**{str(key): value for key, value in plain.items()}, "overrides": typed}


def _guarded(run: Run, cfg: DictConfig) -> tuple[int, float | None]:
    """Call `run`; returns the exit code and its value. A failure is reported here, and kept from Hydra, which would add
    words of its own. In a sweep the other jobs still run, and the first failure decides the exit code."""
    try:
        with interrupts_unwrapped():
            return 0, run(_settings(cfg))
    except BrokenPipeError:
        return _closed_pipe(), None
    except Exception as error:
        line = _user_line(error)
        if line is not None:
            _say(line)
        else:
            traceback.print_exc()
        return 1 if line is None else USER_ERROR, None


def _closed_pipe() -> int:
    """The exit code where nobody reads the output any more; the interpreter's own last flush must not fail either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return CLOSED_PIPE


def _user_line(error: Exception) -> str | None:
    """Return the line for a failure that the user can mend, None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OmegaConfBaseException):
        return _unresolved(error)
    return explain(error)


def _explain(error: Exception, config_name: str, folder: Path) -> str:
    """Rewrite an error of Hydra, OmegaConf or YAML as one line that says what to type instead."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        reason = [line for line in text.splitlines() if not line.startswith(("Error parsing", "See http"))]
        return f"bad override {error.override!r}: write key=value, and quote values with spaces ({reason[0]})"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if not group:
            return f"there is no config {option!r} in {folder}"
        options = list(error.options or [])
        choices = f"all: {', '.join(options)}" if options else f"{group} has none"
        return f"{group}={option}: no such option{_hint(option, options)} ({choices})"
    if match := re.search(r"item is already at '([^']+)'", text):
        return f"{match[1]} exists already: write {match[1]}=<value> without the +"
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        key, _, value = match[1].partition("=")
        return f"{match[1]}: write '{key}=[{value}]' for a list, or add -m to run once for each value"
    unknown = re.search(r"Could not (?:override|delete|delete from config\.) '([^'=]+)(?:=[^']*)?'", text)
    if unknown:
        names = _known_keys(folder, config_name, sys.argv[1:])
        return f"unknown override '{unknown[1]}'{_hint(unknown[1], names)} (all: {_command()} --help)"
    if isinstance(error, OmegaConfBaseException):
        return _unresolved(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: {error.problem} (a config file must be YAML)"
    return text


def _unresolved(error: OmegaConfBaseException) -> str:
    """Name the key that has no value or whose `${…}` leads nowhere."""
    if isinstance(error, MissingMandatoryValue) and error.full_key:
        return f"{error.full_key} needs a value: give {error.full_key}=<value>"
    return f"{error.full_key or 'config'}: {str(error).splitlines()[0]}"


def _known_keys(folder: Path, config_name: str, argv: list[str]) -> list[str]:
    """Dotted keys and groups that an override can name, given the groups chosen in `argv`."""
    groups = [name for name in _groups_of(folder / f"{config_name}.yaml") if (folder / name).is_dir()]
    choices = [arg for arg in argv if arg.split("=")[0] in groups and "," not in arg]
    for overrides in (choices, []):
        with suppress(HydraException, OmegaConfBaseException, ValueError):
            with hydra.initialize_config_dir(str(folder.resolve()), version_base="1.3"):
                cfg = hydra.compose(config_name, overrides)
            return [name for name in _dotted(OmegaConf.to_container(cfg)) if not name.endswith("_target_")] + groups
    return groups


def _groups_of(config: Path) -> list[str]:
    """The groups that a program's defaults choose from."""
    with suppress(OSError, yaml.YAMLError):
        defaults = yaml.safe_load(config.read_text(encoding="utf-8")).get("defaults", [])
        return [str(key).removeprefix("optional ") for entry in defaults if isinstance(entry, dict) for key in entry]
    return []


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of everything below a nested mapping, inner nodes included."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _dotted(value, f"{prefix}{key}.")


def _check_options(argv: list[str]) -> Namespace:
    """Hydra's options. Refuses what looks like one of another program, such as `--epochs 3`, and secrets."""
    for arg in argv[: argv.index("--")] if "--" in argv else argv:
        name, equals, _ = arg.partition("=")
        if equals and SECRET.search(arg):
            raise UserError(
                f"{name}: named like a secret, and there is no setting for one, because all settings are stored; give "
                "wandb its key with `wandb login`, or in the environment"
            )
        if name.startswith("-") and not any(option.startswith(name) for option in OPTIONS):
            key = name.lstrip("-").replace("-", "_")
            raise UserError(
                f"unknown option {name!r}: settings have no dashes, as in {key}=<value> (all: {_command()} --help)"
            )
    parser = get_args_parser()  # which would print how to use it, and exit
    parser.error = _refuse  # type: ignore[method-assign]
    return parser.parse_args(argv)


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message} (all options: {_command()} --hydra-help)")


def _quoted(arg: str) -> str:
    """Quote the value of an override that names a row of a file (`front.json#3`): Hydra's grammar knows no `#`."""
    key, equals, value = arg.partition("=")
    return f"{key}='{value}'" if equals and ROW.fullmatch(value) else arg


def _command() -> str:
    return f"python {Path(sys.argv[0]).name}"


def _hint(name: str, names: list[str]) -> str:
    close = nearest(name, names)
    return f": did you mean {' or '.join(close)}?" if close else ""


@contextmanager
def _explaining(folder: Path, config_name: str) -> Iterator[None]:
    """Print Hydra's help with the remarks of the YAML files."""
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            yield
    finally:
        chosen = dict(HydraConfig.get().runtime.choices) if HydraConfig.initialized() else {}
        choices = {name: option for name, option in chosen.items() if not name.startswith("hydra/")}
        if text.getvalue():
            print(explained(text.getvalue(), folder, config_name, choices), flush=True)


def _import(name: str) -> Run:
    module, _, function = name.partition(":")
    with deferred():
        program: Run = getattr(importlib.import_module(module), function)
    return program


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Make Hydra raise its errors instead of printing them and exiting."""
    old = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    finally:
        if old is None:
            del os.environ[FULL_ERROR]
        else:
            os.environ[FULL_ERROR] = old


def _say(message: str) -> None:
    """Print one line on stderr; under torchrun it says which process speaks."""
    rank = os.environ.get("RANK", "0")
    line = " ".join(message.split())
    if len(line) > LONGEST:
        line = f"{line[:LONGEST]}…"
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    print(f"error: {line}" + (f" (rank {rank})" if rank != "0" else ""), file=sys.stderr, flush=True)


def _fail(message: str) -> NoReturn:
    """Leave before the processes of a job have met, so that they cannot agree who speaks.

    torchrun ends all processes when one has ended: the first one speaks and leaves at once, the others, if they live
    long enough, know something that it does not.
    """
    if os.environ.get("RANK", "0") != "0":
        time.sleep(OTHERS_WAIT_S)
    _say(message)
    sys.exit(USER_ERROR)
