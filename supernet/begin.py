"""How `train.py` and `search.py` begin: before anything large is imported, signals have a meaning."""

from __future__ import annotations

import sys
from typing import Any

from supernet.interrupt import deferred, exit_code, notices_interrupt


def begin(config_name: str, run: Any) -> None:
    """`supernet.cli.entry`, whose own imports take a moment, in which Ctrl-C must not print a traceback."""
    try:
        with notices_interrupt():
            with deferred():
                from supernet.cli import entry
            entry(config_name, run)
    except KeyboardInterrupt as stop:
        sys.exit(exit_code(stop))
