"""The published supernets against the numbers that their original codes compute: complete, minutes.

    python -m benchmarks.parity --golden <folder> --data <folder> [--only alphanet,ofa,autoformer] [--threads 2]
                                [--json <file>]

`--golden` holds one folder for each original code, with what it computed from weights that follow from the names of
its tensors; `--data` the published lists of Once-for-All's subnets. Prints a table, the same as Markdown, and exits
with 1 where a difference is above its tolerance.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.parity import alphanet, autoformer, ofa, roundtrip
from benchmarks.parity.report import Report
from supernet.runs import environment, write_json

CODES = {"alphanet": alphanet.compare, "ofa": ofa.compare, "autoformer": autoformer.compare}


def main() -> int:
    """The exit code: 0 where everything agrees."""
    options = _options()
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE"}  # for search.py
    torch.set_num_threads(options.threads)
    console, begin = Console(highlight=False, width=160), time.perf_counter()
    report = Report(console)
    for code in options.only:
        CODES[code](options.golden, options.data, report)
        roundtrip.compare(code, options.golden, report)
    report.show()
    seconds = time.perf_counter() - begin
    console.print(f"{seconds:.0f} s, {options.threads} threads")
    if options.json:
        write_json(options.json, {"environment": environment(), "seconds": seconds, **report.as_json()})
    return 0 if report.passed else 1


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser("python -m benchmarks.parity", description=__doc__.splitlines()[0])
    parser.add_argument("--golden", type=_folder, required=True, help="folders alphanet, ofa and autoformer")
    parser.add_argument("--data", type=_folder, required=True, help="folder of the published lists of subnets")
    parser.add_argument("--only", type=_codes, default=list(CODES), help=f"some of {','.join(CODES)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file for the table, with machine and versions")
    return parser.parse_args()


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return Path(text)


def _codes(text: str) -> list[str]:
    if unknown := set(text.split(",")) - set(CODES):
        raise argparse.ArgumentTypeError(f"{sorted(unknown)}: choose from {list(CODES)}")
    return text.split(",")


if __name__ == "__main__":
    sys.exit(main())
