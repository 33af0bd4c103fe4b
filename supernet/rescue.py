"""What a run says when it cannot go on: why, in one line, and how to continue from what is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from supernet.checkpoint import kept_files
from supernet.errors import UserError
from supernet.explain import explain
from supernet.interrupt import interrupts_unwrapped
from supernet.log import RunLog
from supernet.runs import CHECKPOINT


@contextmanager
def ending_in_one_line(folder: Path, log: RunLog, stopped: str, gone: str, left: Callable[[], str]) -> Iterator[None]:
    """For work that writes to `folder`: an interruption tells how to go on, a failing machine what is left.

    Args:
        stopped: the word for an interruption.
        gone: what is said where the folder is not there any more.
        left: says what is kept, and how to go on from it.

    Raises:
        UserError: for failures that `supernet.explain` knows, and for a folder that is gone; one line.
        KeyboardInterrupt: as it came.
    """
    try:
        with interrupts_unwrapped():
            yield
    except KeyboardInterrupt:
        with suppress(OSError):
            log.say(f"{stopped}; {left()}")
        raise
    except Exception as error:
        if isinstance(error, OSError) and not folder.is_dir():
            raise UserError(gone) from error
        line = explain(error)
        if line is None:
            raise
        raise UserError(f"{line}; {left()}") from error


@contextmanager
def saying_what_is_kept(folder: Path, log: RunLog) -> Iterator[None]:
    """`ending_in_one_line` for a training run in `folder`; mistakes found before its first checkpoint say so, too."""
    gone = f"the run folder {folder} is gone: it was moved or deleted during training"
    with ending_in_one_line(folder, log, "stopped", gone, lambda: kept(folder)):
        try:
            yield
        except UserError as error:
            if kept_files(folder / CHECKPOINT):
                raise
            raise UserError(f"{error}; {kept(folder)}") from error


def kept(folder: Path) -> str:
    """How to go on from the last checkpoint of the run in `folder`."""
    if not kept_files(folder / CHECKPOINT):
        return "no checkpoint was written yet: start the run again"
    return f"all until the last checkpoint is kept, continue with: python train.py resume={folder}"
