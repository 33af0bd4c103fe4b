"""Hydra's own section of a configuration: what in it could run code, or start programs, is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, OmegaConf

from supernet.errors import UserError

PLUGINS = {
    "launcher": {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"},
    "sweeper": {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"},
}
PLACES = {  # where Hydra itself would write
    "run.dir": ".",
    "sweep.dir": "${runs_dir}/multirun",
    "sweep.subdir": ".",
    "output_subdir": None,
    "job.chdir": False,
}
LOGGING = ("job_logging", "hydra_logging")
LOGGING_KEYS = {"version", "root", "loggers", "formatters", "disable_existing_loggers"}
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")


@contextmanager
def checked_sections() -> Iterator[None]:
    """While it lasts, every configuration that Hydra composes is checked before Hydra acts on it.

    Any YAML file can write to this section, and Hydra calls what its callbacks, launchers, sweepers and log handlers
    name. It offers no place between composing and that, hence the patch, of a method that both a single run and every
    job of a sweep go through.
    """
    compose = ConfigLoaderImpl.load_configuration

    def checked(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> DictConfig:
        config = compose(self, *args, **kwargs)
        if config.hydra.job.config_name is not None:  # --hydra-help has none, and does nothing with the section
            check_section(OmegaConf.to_container(config.hydra, resolve=False))
        return config

    ConfigLoaderImpl.load_configuration = checked  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = compose  # type: ignore[method-assign]


def check_section(section: Any) -> None:
    """Refuse callbacks, other launchers and sweepers than Hydra's basic ones, log handlers that do not write to the
    screen, other folders than the shipped ones, and environment variables: those decide which programs and libraries
    are found.

    Raises:
        UserError: naming the key.
    """
    if section.get("callbacks"):
        _refuse("callbacks", "callbacks are code")
    if section["job"].get("env_set"):
        _refuse("job.env_set", "set environment variables in the shell")
    for key, shipped in PLACES.items():
        outer, _, inner = key.partition(".")
        if (section[outer][inner] if inner else section[outer]) != shipped:
            _refuse(key, "runs_dir= is where runs are written")
    for name, known in PLUGINS.items():
        given = section.get(name)
        if not isinstance(given, dict) or any(not _as_shipped(value, known.get(key)) for key, value in given.items()):
            _refuse(name, "start jobs with -m, or from a script of your own")
    for name in LOGGING:
        _check_logging(name, section.get(name))


def _as_shipped(value: Any, known: str | None) -> bool:
    """Of an entry of a launcher or sweeper: its class as it is shipped, everything else numbers or texts."""
    if known is not None:
        return bool(value == known)
    if isinstance(value, dict):
        return all(_is_text(key) and not key.startswith("_") and _is_text(each) for key, each in value.items())
    return value is None or isinstance(value, int)


def _is_text(value: Any) -> bool:
    """Or a number; an interpolation could become anything."""
    return isinstance(value, int | float) or (isinstance(value, str) and "${" not in value)


def _check_logging(name: str, given: Any) -> None:
    for key, is_harmless in (("handlers", _is_stream), ("formatters", _is_format)):
        entries = given.get(key) or {} if isinstance(given, dict) else None
        if not isinstance(entries, dict) or not all(is_harmless(entry) for entry in entries.values()):
            _refuse(f"{name}.{key}", "logs go to the screen and to the run folder")
    rest = {key: value for key, value in given.items() if key != "handlers"}
    if set(rest) - LOGGING_KEYS or any(sign in str(rest) for sign in ("${", "://")):  # ext:// imports what it names
        _refuse(name, "logs go to the screen and to the run folder")


def _is_stream(entry: Any) -> bool:
    """Whether a log handler writes to the screen, and does nothing else."""
    if not isinstance(entry, dict) or entry.get("class") != "logging.StreamHandler":
        return False
    plain = {key: value for key, value in entry.items() if key in ("class", "formatter", "level")}
    others = set(entry) - set(plain) - {"stream"}
    texts = all(isinstance(value, str | int) and "://" not in str(value) for value in plain.values())
    return texts and not others and entry.get("stream", STREAMS[0]) in STREAMS


def _is_format(entry: Any) -> bool:
    return isinstance(entry, dict) and set(entry) <= {"format", "datefmt"}


def _refuse(key: str, instead: str) -> NoReturn:
    raise UserError(f"hydra.{key}: not allowed here, a configuration file of somebody else could set it: {instead}")
