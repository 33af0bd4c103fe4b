"""How long a command takes to answer: `python train.py --help`, and the default run until its first training step.

    python -m benchmarks.startup [--repeats 5] [--threads 2] [--device auto] [--json <file>]

Every start is a new interpreter. The first training step is done when the run's folder holds its first record; the run
is then ended. Prints the first start, which may have to read files from the disk, and the medians: by the clock, and of
the processor, which others on the machine change less. Exits with 1 where a median by the clock is above its target.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from supernet.log import METRICS
from supernet.runs import environment, write_json

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {"help": 3.0, "first step": 10.0}  # seconds by the clock
PATIENCE = 300.0  # seconds after which a start counts as failed
POLL = 0.005  # seconds between looks at the run's folder

Seconds = tuple[float, float]  # by the clock, of the processor


def run_help(settings: Sequence[str], env: Mapping[str, str]) -> Seconds:
    """`python train.py --help`, to its end."""
    return _timed(["--help"], env, lambda process: process.poll() is not None)


def run_first_step(settings: Sequence[str], env: Mapping[str, str]) -> Seconds:
    """`python train.py`, until the first training step is recorded."""
    with TemporaryDirectory() as folder:

        def stepped(_: subprocess.Popen[bytes]) -> bool:
            return any(path.stat().st_size for path in Path(folder).glob(f"train/*/{METRICS}"))

        return _timed([f"runs_dir={folder}", "train.log_every=1", *settings], env, stepped)


def _timed(
    arguments: Sequence[str], env: Mapping[str, str], done: Callable[[subprocess.Popen[bytes]], bool]
) -> Seconds:
    before, begin = os.times(), time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=ROOT,
        env=dict(env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        while not done(process):
            if process.poll() not in (None, 0):
                assert process.stderr is not None
                raise RuntimeError(process.stderr.read().decode())
            if time.perf_counter() - begin > PATIENCE:
                raise TimeoutError(f"train.py {' '.join(arguments)}: nothing after {PATIENCE:g} s")
            time.sleep(POLL)
        seconds = time.perf_counter() - begin
    finally:
        if process.returncode is None:
            process.kill()
        process.wait()
    now = os.times()
    used = now.children_user - before.children_user + now.children_system - before.children_system
    return seconds, used


def main() -> int:
    """The exit code: 0 where both targets are met."""
    options = _options()
    env = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    settings = [f"device={options.device}"]
    ways = {"help": run_help, "first step": run_first_step}
    found: dict[str, list[Seconds]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, way in ways.items():
            found[name].append(way(settings, env))
    table = Table("start", "first, s", "median, s", "median of the processor, s", "target, s", title="python train.py")
    rows: list[dict[str, Any]] = []
    for name, each in found.items():
        wall, used = (median(values) for values in zip(*each, strict=True))
        rows.append({"start": name, "first": each[0][0], "seconds": wall, "processor": used, "target": TARGETS[name]})
        table.add_row(name, f"{each[0][0]:.2f}", f"{wall:.2f}", f"{used:.2f}", f"{TARGETS[name]:g}")
    Console(highlight=False).print(table)
    if options.json:
        write_json(options.json, {"environment": environment(), "repeats": options.repeats, "rows": rows})
    return 0 if all(row["seconds"] <= row["target"] for row in rows) else 1


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser("python -m benchmarks.startup", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="file for the figures, with machine and versions")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
