"""A training run and a search, killed again and again at random, against runs that nobody killed.

`python -m benchmarks.soak [--kills 100] [--seed 0] [--json file]`: half of the kills hit a training run, half of them a
search. Most are SIGKILL, some SIGTERM, SIGUSR1 and Ctrl-C. Each is aimed at a phase (imports, start, a step, an
evaluation, the writing of a checkpoint or a trial, the export, the final report), comes a random time after that was
entered, and is counted where it hit. After each one the same command goes on, with `resume=auto` where something is
saved.

In the end weights, optimizer, records, scores, trials, front and exported files must equal those of undisturbed runs
bit for bit; no kill may have cost more than the work since the last checkpoint (of a search: since the last trial); and
no process may have printed a traceback, or more than one line, on stderr, or left with another exit code than
documented. Else the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.soak_compare import search_differences, training_differences
from benchmarks.soak_marks import DONE, ENTRIES, FIRST, PHASE, PHASES, open_marks
from supernet.runs import write_json

REPOSITORY = Path(__file__).resolve().parent.parent
SPACE = """
_target_: supernet.models.mbconv.space
name: soak
resolution: [6, 8]
stem: {width: [8], kernel: 3, stride: 1}
stages:
  - {width: [8, 16], depth: [1, 2], kernel: [3, 5], expand: [1, 2], stride: 2, act: hswish, se: true}
  - {width: [16, 24], depth: [1, 2], kernel: [3, 5], expand: [1, 2], stride: 1, act: hswish, se: true}
head: {width: [16]}
"""
SAVE_EVERY, STEPS_PER_EPOCH = 3, 4
TRAIN = (
    *("space=soak", "data.size=8", "data.resolution=[6,8]", "train.batch_size=256", "train.eval_random=1"),
    *("train.calibration_images=64", "train.log_every=1", f"train.save_every={SAVE_EVERY}", "train.ema_decay=0.9"),
    *("train.mixup=0.2", "train.channels_last=true", "train.collapse=off", "device=cpu"),
)
SEARCH = (
    *("algorithm.population=20", "finalists=4", "constraint.macs=0.95", "cache=false", "reuse_mb=0"),
    *("eval_batch=null", "device=cpu"),
)
SIGNALS = {signal.SIGKILL: 0.76, signal.SIGTERM: 0.08, signal.SIGUSR1: 0.08, signal.SIGINT: 0.08}
# Under `python -m` Python itself ends by SIGINT, which shells report as 130 too, where a Ctrl-C came while text was
# being executed, as in the making of a dataclass.
CODES = {
    signal.SIGKILL: (-signal.SIGKILL,),
    signal.SIGTERM: (75,),
    signal.SIGUSR1: (75,),
    signal.SIGINT: (130, -signal.SIGINT),
}
PATIENCE_S = 300.0  # after which a program is taken to hang
IMPORTS = "imports"  # before there are marks
# Of each phase: how often it is aimed at, which entry into it at most, and seconds after that at most.
Aims = dict[str, tuple[float, int, float]]
EARLY: dict[str, Aims] = {
    "train": {
        **{IMPORTS: (0.1, 0, 1.0), "start": (0.15, 1, 0.8), "step": (0.3, 9, 0.03)},
        **{"checkpoint": (0.3, 4, 0.006), "evaluate": (0.15, 1, 0.1)},
    },
    "search": {
        IMPORTS: (0.1, 0, 1.0),
        "start": (0.15, 1, 0.8),
        "evaluate": (0.4, 8, 0.03),
        "history": (0.35, 8, 0.003),
    },
}
LATE: dict[str, Aims] = {  # what a resumed run does again at its end
    "train": {"start": (0.2, 1, 0.8), "report": (0.8, 1, 0.6)},
    "search": {
        "start": (0.1, 1, 0.8),
        "finalists": (0.2, 1, 0.05),
        "export": (0.35, 1, 0.15),
        "report": (0.35, 1, 0.6),
    },
}


@dataclass(frozen=True)
class Program:
    """What is disturbed: its command, the folder of its runs, the file that it goes on from, and how much it does."""

    kind: str
    words: list[str]
    root: Path
    saved: str
    total: int
    margin: int  # so near to the end the aims are the late ones
    may_lose: int  # steps or trials done again after a kill, at most
    differences: Callable[[Path, Path], list[str]]

    def unfinished(self) -> Path | None:
        """What `resume=auto` goes on with."""
        folders = [path.parent for path in self.root.glob(f"*/{self.saved}")]
        return next((folder for folder in folders if not (folder / "results.json").exists()), None)


@dataclass
class Tally:
    """What happened."""

    kills: Counter[str] = field(default_factory=Counter)  # by the phase that was hit
    signals: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    lost: list[int] = field(default_factory=list)  # steps or trials done again after each kill
    seconds: list[float] = field(default_factory=list)  # of work since the last saved state, at each kill
    problems: list[str] = field(default_factory=list)
    equal: bool = True

    def record(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "kills": dict(self.kills),
            "signals": dict(self.signals),
            "starts": self.starts,
            "lost_mean": float(np.mean(self.lost or [0])),
            "lost_max": max(self.lost, default=0),
            "seconds_lost_mean": float(np.mean(self.seconds or [0.0])),
            "seconds_lost_max": max(self.seconds, default=0.0),
            "equal": self.equal,
            "problems": self.problems,
        }


class Process:
    """One start of a program, watched through its marks."""

    def __init__(self, program: Program, folder: Path) -> None:
        self.program, self.err = program, folder / "stderr"
        self.marks: NDArray[np.int64] = open_marks(folder / "marks", new=True)
        self.resumes = program.unfinished() is not None
        words = [*program.words, *(["resume=auto"] if self.resumes else [])]
        command = [sys.executable, "-m", "benchmarks.soak_marks", str(folder / "marks"), program.kind, *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        with self.err.open("wb") as err:
            self.popen = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=err, cwd=REPOSITORY, env=environment
            )
        self.problems: list[str] = []  # seen while it ran
        self.began = 0.0  # when the first step was begun, or the first trial appended

    @property
    def phase(self) -> str:
        return PHASES[int(self.marks[PHASE])] if self.marks[ENTRIES:].any() else IMPORTS

    def attack(self, rng: np.random.Generator, aims: Aims) -> tuple[signal.Signals, str, float] | None:
        """Send a signal at a random moment. Returns it, the phase that it hit, and the seconds of work that were not
        saved; None if the process was at its end before, or hangs, which ends it."""
        names, shares = list(aims), np.array([share for share, _, _ in aims.values()])
        aim = names[int(rng.choice(len(names), p=shares / shares.sum()))]
        number = list(SIGNALS)[int(rng.choice(len(SIGNALS), p=list(SIGNALS.values())))]
        _, entries, delay = aims[aim]
        entry, delay = int(rng.integers(1, entries + 1)) if entries else 0, float(rng.uniform(0, delay))
        latest = time.monotonic() + PATIENCE_S
        while self.popen.poll() is None and aim != IMPORTS and self.marks[ENTRIES + PHASES.index(aim)] < entry:
            if time.monotonic() > latest:
                self._give_up(f"{aim} to be entered {entry} times")
                return None
            self._watch()
            time.sleep(0.0002)
        until = time.perf_counter() + delay
        while time.perf_counter() < until:
            self._watch()
            if delay > 0.01:
                time.sleep(0.001)
        phase = self.phase
        if self.popen.poll() is not None or phase == "end":
            return None
        if phase == IMPORTS:
            number = signal.SIGKILL  # what else comes then is Python's affair
        unsaved = self._unsaved()
        self.popen.send_signal(number)
        return number, phase, unsaved

    def _give_up(self, awaited: str) -> None:
        """Kill a process that hangs."""
        self.problems.append(f"hangs in {self.phase}: {PATIENCE_S:g} s of waiting for {awaited}")
        self.popen.kill()

    def _watch(self) -> None:
        if not self.began and self.marks[FIRST] >= 0:
            self.began = time.time()

    def _unsaved(self) -> float:
        """Seconds of work since the last saved state."""
        folder = self.program.unfinished()
        if not self.began or folder is None:
            return time.time() - self.began if self.began else 0.0
        return max(0.0, time.time() - max(self.began, (folder / self.program.saved).stat().st_mtime))

    def end(self, number: signal.Signals | None) -> tuple[int, list[str]]:
        """Wait for it. Returns the exit code, and what is wrong with how it ended."""
        try:
            code = self.popen.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._give_up("its end")
            code = self.popen.wait()
        lines, problems = self.err.read_text(errors="replace").splitlines(), list(self.problems)
        if code != 0 and (number is None or code not in CODES[number]):
            problems.append(f"exit code {code} after {number.name if number else 'nothing'}")
        if any("Traceback" in line for line in lines) or len(lines) > (0 if number in (None, signal.SIGKILL) else 1):
            problems.append(f"stderr: {lines[:1] + lines[-3:]}")
        return code, problems


def disturb(program: Program, whole: Path, kills: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Kill the program so many times, then let it finish, and compare; begin anew where it ends before."""
    tally, left, done, last = Tally(), kills, 0, None
    while not tally.problems:
        near = done >= program.total - program.margin
        process = Process(program, folder)
        tally.starts += 1
        hit = process.attack(rng, (LATE if near else EARLY)[program.kind]) if left else None
        code, problems = process.end(hit[0] if hit else None)
        tally.problems += problems
        first = int(process.marks[FIRST])
        if first >= 0 and last is not None:
            tally.lost.append(max(0, done - first))
            if tally.lost[-1] > (program.may_lose if last == signal.SIGKILL else 0):
                tally.problems.append(f"{tally.lost[-1]} done again after {last.name}")
            last = None
        if first >= 0:
            done = max(first, int(process.marks[DONE]))
        if code == 0:
            print(f"{program.kind}: finished", flush=True)
            if hit and hit[1] != "report":  # there it may have been a moment too late
                tally.problems.append(f"{hit[0].name} in {hit[1]} was ignored")
            found = finished(program, whole)
            tally.problems += program.differences(found, whole)
            tally.equal &= not tally.problems
            if not left:
                return tally
            found.rename(folder / f"{program.kind}-{tally.starts}")
            done, last = 0, None
        elif hit is not None:
            left -= 1
            if first >= 0 or last is None:  # else nothing was done since the kill before, and that one decides
                last = hit[0]
            tally.kills[hit[1]] += 1
            tally.signals[hit[0].name] += 1
            tally.seconds.append(hit[2])
            print(f"{program.kind}: {kills - left}/{kills} {hit[0].name} in {hit[1]}, {done} done", flush=True)
    tally.equal = False
    print(f"{program.kind}: {'; '.join(tally.problems)}", flush=True)
    return tally


def finished(program: Program, whole: Path) -> Path:
    """The finished run that is not `whole`."""
    (found,) = {path.parent for path in program.root.glob("*/results.json")} - {whole}
    return found


def undisturbed(program: Program, folder: Path) -> Path:
    """A run from its start to its end. Raises RuntimeError where it fails."""
    process = Process(program, folder)
    code, problems = process.end(None)
    if code or problems:
        raise RuntimeError(f"the undisturbed {program.kind} run failed: {problems}")
    (found,) = (path.parent for path in program.root.glob("*/results.json"))
    return found


def table(tallies: dict[str, Tally]) -> str:
    """Markdown."""
    phases = [phase for phase in (IMPORTS, *PHASES) if any(tally.kills[phase] for tally in tallies.values())]
    rows = [["kills while in", *tallies]]
    rows += [[phase, *(str(tally.kills[phase] or "-") for tally in tallies.values())] for phase in phases]
    for name in (number.name for number in SIGNALS):
        rows.append([f"of all, {name}", *(str(tally.signals[name]) for tally in tallies.values())])
    found = [tally.record() for tally in tallies.values()]
    rows.append(["all kills", *(str(tally.kills.total()) for tally in tallies.values())])
    rows.append(["starts", *(str(tally.starts) for tally in tallies.values())])
    rows.append(["done again per kill, mean (max)", *(f"{f['lost_mean']:.1f} ({f['lost_max']})" for f in found)])
    seconds = (f"{f['seconds_lost_mean']:.2f} ({f['seconds_lost_max']:.2f}) s" for f in found)
    rows.append(["work not saved per kill, mean (max)", *seconds])
    rows.append(["equal to the undisturbed run", *("yes" if tally.equal else "NO" for tally in tallies.values())])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]])


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells make what runs in the background ignore it
    rng, half = np.random.default_rng(given.seed), max(1, given.kills // 2)
    epochs, evaluations = max(8, round(0.7 * half)), min(150, max(25, 2 * half))
    tallies, began = {}, time.time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "configs" / "space").mkdir(parents=True)
        (folder / "configs" / "space" / "soak.yaml").write_text(SPACE)
        words = ["-cd", str(folder / "configs"), f"runs_dir={folder / 'runs'}", f"train.epochs={epochs}", *TRAIN]
        root, steps = folder / "runs" / "train", STEPS_PER_EPOCH * epochs
        train = Program("train", words, root, "checkpoint.pt", steps, 25, SAVE_EVERY, training_differences)
        whole = undisturbed(train, folder)
        tallies["train"] = disturb(train, whole, given.kills - half, rng, folder)
        words = [f"checkpoint={whole}", f"runs_dir={folder / 'runs'}", f"evaluations={evaluations}", *SEARCH]
        search = Program("search", words, whole / "search", "trials.jsonl", evaluations, 10, 0, search_differences)
        searched = undisturbed(search, folder)
        if (trials := len((searched / "trials.jsonl").read_text().splitlines()) - 1) != evaluations:
            raise RuntimeError(f"the space holds {trials} subnets only")
        tallies["search"] = disturb(search, searched, half, rng, folder)
    minutes = (time.time() - began) / 60
    print(f"\nseed {given.seed}, {steps} steps, {evaluations} evaluations, {minutes:.1f} minutes\n\n{table(tallies)}")
    problems = [f"{kind}: {problem}" for kind, tally in tallies.items() for problem in tally.problems]
    print("\n".join(problems), file=sys.stderr if problems else sys.stdout)
    if given.json:
        facts = {"seed": given.seed, "steps": steps, "evaluations": evaluations, "minutes": minutes}
        write_json(given.json, {**facts, **{kind: tally.record() for kind, tally in tallies.items()}})
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
