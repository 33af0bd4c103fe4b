"""What a training run says when it cannot go on: why, in one line, and how to continue from what is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from supernet.checkpoint import kept_files
from supernet.errors import UserError
from supernet.explain import explain
from supernet.interrupt import interrupts_unwrapped
from supernet.log import RunLog
from supernet.runs import CHECKPOINT


@contextmanager
def saying_what_is_kept(folder: Path, log: RunLog) -> Iterator[None]:
    """For the work of a run in `folder`: an interruption tells how to go on, a failing machine what is left.

    Raises:
        UserError: for failures that `supernet.explain` knows, and for a run folder that is gone; one line.
        KeyboardInterrupt: as it came.
    """
    try:
        with interrupts_unwrapped():
            yield
    except KeyboardInterrupt:
        with suppress(OSError):
            log.say(f"stopped; {kept(folder)}")
        raise
    except UserError as error:
        if kept_files(folder / CHECKPOINT):
            raise
        raise UserError(f"{error}; {kept(folder)}") from error
    except Exception as error:
        gone = isinstance(error, OSError) and not folder.is_dir()
        line = f"the run folder {folder} is gone: it was moved or deleted during training" if gone else explain(error)
        if line is None:
            raise
        raise UserError(line if gone else f"{line}; {kept(folder)}") from error


def kept(folder: Path) -> str:
    """How to go on from the last checkpoint of the run in `folder`."""
    if not kept_files(folder / CHECKPOINT):
        return "no checkpoint was written yet: start the run again"
    return f"all until the last checkpoint is kept, continue with: python train.py resume={folder}"
