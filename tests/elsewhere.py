"""The same computation in another process, with another hash seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def computed_elsewhere(module: str, expression: str) -> Any:
    """The JSON of `expression`, in which `t` is the test module of that name."""
    tests = Path(__file__).parent
    paths = "import json, sys; sys.path[:0] = json.loads(sys.argv[1])"
    code = f"{paths}; import {module} as t; print(json.dumps({expression}))"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([str(tests), str(tests.parent)])],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "123", "OMP_NUM_THREADS": "1"},
        check=True,
    )
    return json.loads(done.stdout)
