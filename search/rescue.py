"""What a search says when it cannot go on: why, in one line, and how to continue from what is saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from search.begun import STATE, TRIALS
from search.conclude import resume_command
from supernet.errors import UserError
from supernet.explain import explain
from supernet.interrupt import interrupts_unwrapped
from supernet.log import RunLog


@contextmanager
def saying_how_to_go_on(folder: Path, log: RunLog) -> Iterator[None]:
    """For the work of a search in `folder`: an interruption tells how to go on, a failing machine what is left.

    Raises:
        UserError: for failures that `supernet.explain` knows, and for a folder that is gone; one line.
        KeyboardInterrupt: as it came.
    """
    try:
        with interrupts_unwrapped():
            yield
    except KeyboardInterrupt:
        with suppress(OSError):
            log.say(f"interrupted; {saved(folder)}")
        raise
    except Exception as error:
        if isinstance(error, OSError) and not folder.is_dir():
            raise UserError(f"the folder {folder} is gone: it was moved or deleted during the search") from error
        line = explain(error)
        if line is None:
            raise
        raise UserError(f"{line}; {saved(folder)}") from error


def saved(folder: Path) -> str:
    """How to go on with the search in `folder`."""
    if not any((folder / name).is_file() for name in (TRIALS, STATE)):
        return "nothing was saved yet: start the search again"
    return f"what was scored and learned is saved. To go on: {resume_command(folder)}"
