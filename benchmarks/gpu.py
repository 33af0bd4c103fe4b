"""Every check of this project that needs a GPU, in one command of at most ten minutes.

    python -m benchmarks.gpu [--minutes 10] [--device cuda] [--quick] [--only numerics,syncs] [--json gpu.json]

- numerics: subnets, sandwich steps and mixtures of five spaces in fp32 (no TF32) against fp64 on the CPU; extraction;
  what bf16 costs.
- syncs: a training step of every method never waits for the device.
- determinism: the same seed twice.
- training: a short run on digits, interrupted and resumed, against one that was not; and a search in it.
- speed: sandwich steps of `alphanet` at 224 px by batch size; bf16 channels_last against fp32 NCHW; the share of time
  outside kernels.
- elastic: forward and backward of 10 random subnets inside the supernet against extracted ones.
- memory: the peak of a sandwich step against the largest subnet's own.
- evaluation: candidates scored a minute, each calibrated on 4,096 and evaluated on 10,000 images at 224 px.
- latency: a short measurement, a model of it, its errors.
- compile: steps with train.compile in turns with eager ones.

Every section runs in a process of its own with a share of the time, and is left out, with a line, where none is left:
what fails, hangs or runs out of memory does not touch the others. Targets of speed and memory count on a GPU at full
size only; `--quick` is for trying all of it in a minute or two, with `--device cpu` too. Needs no network and no files.
Prints a table and writes JSON; exits with 1 where a check fails.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.gpu_report import Check, Clock, Report, Setting, one_line, read_checks
from supernet.build import pick_device
from supernet.errors import UserError
from supernet.memory import keep_freed_memory
from supernet.runs import environment, read_json, write_json

SECTIONS: Mapping[str, tuple[str, float]] = {  # where it is, and its share of the time, seconds of 600
    "numerics": ("benchmarks.gpu_numerics:run", 70),
    "syncs": ("benchmarks.gpu_training:syncs", 35),
    "determinism": ("benchmarks.gpu_training:determinism", 25),
    "training": ("benchmarks.gpu_training:training", 60),
    "speed": ("benchmarks.gpu_speed:speed", 110),
    "elastic": ("benchmarks.gpu_speed:elastic", 35),
    "memory": ("benchmarks.gpu_speed:memory", 30),
    "evaluation": ("benchmarks.gpu_scoring:evaluation", 50),
    "latency": ("benchmarks.gpu_scoring:latency", 60),
    "compile": ("benchmarks.gpu_speed:compile_", 125),
}
START_UP = 10.0  # seconds until a section's process can begin; a section with less time is left out
GRACE, LEAST = 1.5, 60.0  # a section that takes so many times its share, and at least so many seconds, is ended
MINUTES, QUICK_MINUTES = 10.0, 8.0  # the latter for a busy machine; a minute or two on two idle cores


def run_section(name: str, setting: Setting, seconds: float) -> None:
    """Run a section here; its checks are in `<folder>/<name>.json` as they come.

    An error of the section becomes a check that failed.
    """
    report = Report(name, setting.folder / f"{name}.json")
    report.save()
    module, _, function = SECTIONS[name][0].partition(":")
    try:
        getattr(importlib.import_module(module), function)(setting, report, Clock(seconds))
    except (Exception, SystemExit) as error:
        import traceback

        traceback.print_exc()
        report.add(name, one_line(error), "no error", False)


def run_apart(name: str, setting: Setting, seconds: float, most: float) -> list[Check]:
    """Run a section in a process of its own, ended after `most` seconds; what it has found by then."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--section", name, "--seconds", f"{seconds:.1f}"]
    command += [
        "--device",
        str(setting.device),
        "--folder",
        str(setting.folder),
        *(["--quick"] if setting.quick else []),
    ]
    file, log = setting.folder / f"{name}.json", setting.folder / f"{name}.log"
    with log.open("w", encoding="utf-8") as output:
        try:
            code = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=most, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return [*read_checks(file), Check(name, name, f"ended after {most:.0f} s", "in time", False)]
    found = read_checks(file)
    if code or not found:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return [*found, Check(name, name, f"exit {code}: {lines[-1][:160] if lines else 'no output'}", "runs", False)]
    return found


def run_all(names: Sequence[str], setting: Setting, minutes: float, console: Console) -> list[Check]:
    """The sections one after another; time that one leaves goes to those after it."""
    end, found = time.perf_counter() + 60 * minutes, []
    for position, name in enumerate(names):
        left = end - time.perf_counter()
        share = left * SECTIONS[name][1] / sum(SECTIONS[other][1] for other in names[position:])
        if share < START_UP:
            found.append(Check(name, name, "left out: no time"))
            continue
        console.print(f"{name}: up to {share:.0f} s ...")
        begin = time.perf_counter()
        found += run_apart(name, setting, share - START_UP / 2, min(max(GRACE * share, LEAST), left))
        console.print(f"{name}: {time.perf_counter() - begin:.0f} s")
    return found


def table(checks: Sequence[Check], title: str) -> Table:
    """All checks with their verdicts."""
    drawn = Table("section", "what", "found", "target", "", title=title)
    for check in checks:
        verdict = {True: "[green]ok", False: "[red]FAILED", None: ""}[check.passed]
        drawn.add_row(check.section, check.name, check.value, check.target, verdict)
    return drawn


def main() -> int:
    """The exit code: 0 where no check failed."""
    options = _options()
    device = pick_device(options.device)
    if device.type == "cpu":
        keep_freed_memory()
    if options.section:
        run_section(options.section, Setting(device, options.quick, options.folder), options.seconds)
        return 0
    names = options.only.split(",") if options.only else list(SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        raise UserError(f"--only {unknown[0]}: choose of {', '.join(SECTIONS)}")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it products are not deterministic
    console = Console(highlight=False, width=None if Console().is_terminal else 160)
    minutes = options.minutes or (QUICK_MINUTES if options.quick else MINUTES)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        setting = Setting(device, options.quick, folder)
        checks = run_all(names, setting, minutes, console)
        facts = {name: read_json(file)["facts"] for name in names if (file := folder / f"{name}.json").is_file()}
    console.print(table(checks, f"{_device_name(setting)}{', quick' if options.quick else ''}"))
    failed = [check for check in checks if check.passed is False]
    passed = sum(check.passed is True for check in checks)
    console.print(f"{passed} checks passed, {len(failed)} failed, {len(checks) - passed - len(failed)} figures without")
    if options.json:
        rows = [asdict(check) for check in checks]
        write_json(
            options.json,
            {"environment": environment(), "device": _device_name(setting), "checks": rows, "facts": facts},
        )
    return 1 if failed else 0


def _device_name(setting: Setting) -> str:
    import torch

    return torch.cuda.get_device_name(setting.device) if setting.cuda else str(environment()["cpu"])


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, help=f"for all of it; {MINUTES:g}, with --quick {QUICK_MINUTES:g}")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--only", default="", help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--json", type=Path, help="file for the figures, with machine and versions")
    parser.add_argument("--folder", type=Path, help="keep logs and runs there")
    parser.add_argument("--section", choices=tuple(SECTIONS), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
