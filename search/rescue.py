"""What a search says when it cannot go on: why, in one line, and how to continue from what is saved."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from search.begun import STATE, TRIALS
from search.conclude import resume_command
from supernet.log import RunLog
from supernet.rescue import ending_in_one_line


def saying_how_to_go_on(folder: Path, log: RunLog) -> AbstractContextManager[None]:
    """`supernet.rescue.ending_in_one_line` for the work of a search in `folder`."""
    gone = f"the folder {folder} is gone: it was moved or deleted during the search"
    return ending_in_one_line(folder, log, "interrupted", gone, lambda: saved(folder))


def saved(folder: Path) -> str:
    """How to go on with the search in `folder`."""
    if not any((folder / name).is_file() for name in (TRIALS, STATE)):
        return "nothing was saved yet: start the search again"
    return f"what was scored and learned is saved. To go on: {resume_command(folder)}"
