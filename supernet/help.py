"""The text of `--help`: Hydra's, with what the YAML files say beside each setting, and this program's groups only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SETTING = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z_][\w]*):(?P<rest>.*)$")
GROUP = re.compile(r"^(?P<name>[a-z_/]+): [a-z0-9_]+(, |$)")
REMARK = re.compile(r"\s#\s+(.*)$")
COLUMN = 44  # where remarks begin, if a setting is not longer


def explained(text: str, folder: Path, config_name: str, choices: Mapping[str, str | None]) -> str:
    """Hydra's help `text` with remarks.

    Args:
        folder: of YAML files; those that are elsewhere (`-cd`) have no remarks.
        config_name: the program's file, without suffix.
        choices: the option chosen in each group.
    """
    groups = tuple(choices)
    remarks = dict(_remarks(folder / f"{config_name}.yaml"))
    for group, option in choices.items():
        prefix = f"{group.replace('/', '.')}."
        remarks |= {f"{prefix}{key}": remark for key, remark in _remarks(folder / group / f"{option}.yaml")}
    lines, path = [], list[tuple[int, str]]()
    for line in text.splitlines():
        found = GROUP.match(line)
        if found and (folder / found["name"]).is_dir() and not found["name"].startswith(groups):
            continue
        setting = SETTING.match(line)
        if setting:
            path = _below(path, setting)
            line = _with(line, remarks.get(_name(path)))
        lines.append(line)
    return "\n".join(lines)


def _with(line: str, remark: str | None) -> str:
    return line if remark is None else f"{line:<{COLUMN}}  # {remark}"


def _remarks(file: Path) -> Iterator[tuple[str, str]]:
    """Dotted names of the settings in a YAML file, and what its comments say of them, on their lines or below."""
    path, found = list[tuple[int, str]](), list[tuple[str, str]]()
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        setting, remark = SETTING.match(line), REMARK.search(line)
        if setting:
            path = _below(path, setting)
        if remark is None or not path:
            continue
        if setting:
            found.append((_name(path), remark[1]))
        elif line.startswith(" ") and line.lstrip().startswith("#") and found and found[-1][0] == _name(path):
            found[-1] = (found[-1][0], f"{found[-1][1]} {remark[1]}")  # the sentence goes on
    return iter(found)


def _below(path: Sequence[tuple[int, str]], setting: re.Match[str]) -> list[tuple[int, str]]:
    """The keys above a setting, by their indentation, and its own."""
    depth = len(setting["indent"])
    return [*(entry for entry in path if entry[0] < depth), (depth, setting["key"])]


def _name(path: Sequence[tuple[int, str]]) -> str:
    return ".".join(key for _, key in path)
