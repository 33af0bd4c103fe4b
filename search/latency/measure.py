"""End-to-end and layer times of many subnets of a space, on this device, guarded against drift.

Subnets are measured in groups that take turns, together with one reference network, the same in every group. A group
in which the reference is more than 3% off its median over all groups is measured again, at most twice; if that does
not help, its times are scaled by the reference and the records say so.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from search.constraint import encoded
from search.latency.timing import Ready, Setting, conditions, interleaved, layer_times, summary
from supernet.cost import macs_of
from supernet.errors import UserError
from supernet.runs import plain, write_atomic
from supernet.space import Arch, Space

if TYPE_CHECKING:
    import numpy as np

FIT, TEST = "fit", "test"
GROUP = 8  # subnets that take turns
ROUNDS = 3  # bursts of each
LAYER_CALLS = 4  # further calls in which the layers are timed
DRIFT = 0.03  # of the reference's time
REPEATS = 2  # of a group that drifted
POOL = 4096  # random subnets from which those to measure are taken


@dataclass(frozen=True)
class Sample:
    """One measured subnet. `ms` is corrected for drift; `iqr` and `raw` are as they came.

    `layers` holds the milliseconds of its units by name (fit subnets only), `reference` those of the reference network
    meanwhile, `drift` how far this was off its median, after `repeats` repetitions.
    """

    arch: Arch
    split: str
    ms: float
    iqr: float = 0.0
    raw: tuple[float, ...] = ()
    layers: Mapping[str, float] | None = None
    reference: float = 0.0
    repeats: int = 0
    drift: float = 0.0


def choose_subnets(space: Space, fit: int, test: int, seed: int) -> list[tuple[Arch, str]]:
    """Distinct subnets to measure with their split, in an order that keeps the shares of the splits at any point.

    Test subnets are uniform draws, one from each of `test` equally likely intervals of MACs. Half of the fit subnets
    are too; the others are spread evenly over the MACs themselves, ends of the space included.
    """
    import numpy as np

    rng = np.random.default_rng(np.random.SeedSequence([seed, 8]))
    pool = list(dict.fromkeys([space.smallest(), space.largest(), *space.sample(rng, n=POOL)]))
    macs = macs_of(space).batch(encoded(space, pool))
    by_macs = np.argsort(macs, kind="stable")
    taken: dict[int, str] = {}

    def take(position: int, split: str) -> None:
        """The nearest in MACs that is still free."""
        free = [i for i in by_macs.tolist() if i not in taken]
        if free:
            taken[min(free, key=lambda i: abs(int(macs[i]) - int(macs[position])))] = split

    even = max(fit // 2, 2)
    for goal in np.linspace(macs.min(), macs.max(), even):
        take(int(np.abs(macs - goal).argmin()), FIT)
    for split, count in ((TEST, test), (FIT, fit - even)):
        for part in np.array_split(by_macs, max(count, 1))[:count]:
            if len(part):
                take(int(rng.choice(part)), split)
    order = {split: rng.permutation([i for i, s in taken.items() if s == split]).tolist() for split in (FIT, TEST)}
    places = [(((n + 0.5) / len(order[split])), i, split) for split in order for n, i in enumerate(order[split])]
    return [(pool[i], split) for _, i, split in sorted(places)]


def reference_of(archs: Sequence[Arch], space: Space) -> Arch:
    """The subnet of median MACs."""
    return sorted(archs, key=lambda arch: space.plan(arch).macs)[len(archs) // 2]


def _parsed(line: str) -> Any:
    with suppress(ValueError, RecursionError):
        return json.loads(line)
    return None


def _is_row(row: Mapping[str, Any], space: Space) -> bool:
    """Whether it is what `Measurement` writes."""
    arch, layers, raw = row.get("arch"), row.get("layers"), row.get("raw")
    if not isinstance(arch, dict) or not isinstance(raw, list) or not raw or not isinstance(layers, dict | None):
        return False
    times = [*raw, row.get("reference"), *(layers or {}).values()]
    try:
        space.from_json(arch)
    except ValueError:
        return False
    positive = all(type(ms) in (int, float) and 0 <= ms < math.inf for ms in times)
    return positive and row["reference"] > 0 and row.get("split") in (FIT, TEST) and type(row.get("repeats")) is int


class Measurement:
    """Measured subnets as they come, each appended at once to a file of one JSON object a line.

    An existing file is gone on with, if it is of the same space and conditions.
    """

    def __init__(self, path: Path, space: Space, setting: Setting, seed: int) -> None:
        """Raises UserError if the file holds other measurements, or is damaged."""
        self.path, self.space, self.setting, self.seed = path, space, setting, seed
        self.rows: list[dict[str, Any]] = []
        facts = {"space": space.name, "description": plain(space.config), "seed": seed, **setting.record()}
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        for number, line in enumerate(lines, 1):
            found = _parsed(line)
            if not isinstance(found, dict) or (number > 1 and not _is_row(found, space)):
                raise UserError(
                    f"{path}, line {number}: damaged, or of another space; "
                    + ("start anew, without resume=" if number == 1 else "delete it and all lines after it to go on")
                )
            if number > 1:
                self.rows.append(found)
            elif changed := sorted(key for key in facts if found.get(key) != facts[key]):
                raise UserError(f"{path} was measured with other {', '.join(changed)}: start anew, without resume=")
        text = "".join(json.dumps(row) + "\n" for row in [facts, *self.rows])
        write_atomic(path, lambda file: file.write(text.encode()))  # a killed writer may have left half a line

    def run(
        self, subnets: Sequence[tuple[Arch, str]], seconds: float, report: Callable[[int, float], None]
    ) -> list[Sample]:
        """Measure what is not in the file yet, until `seconds` have passed; returns all samples.

        `report` is called after every group with the number of subnets and the reference's time, ms.
        """
        import numpy as np

        done = {self.space.from_json(row["arch"]) for row in self.rows}
        waiting = [entry for entry in subnets if entry[0] not in done]
        start = time.perf_counter()
        with conditions(self.setting):
            reference = self._ready(reference_of([arch for arch, _ in subnets], self.space))
            reference.warm_up(20, seconds=1.0)  # clocks rise, kernels get loaded
            for number, group in enumerate(_groups(waiting)):
                if time.perf_counter() - start > seconds:
                    break
                rng = np.random.default_rng(np.random.SeedSequence([self.seed, len(done), number]))
                rows = self._group(group, reference, rng)
                self._append(rows)
                report(len(rows), rows[0]["reference"])
        return self.samples()

    def samples(self) -> list[Sample]:
        """Everything measured, times of groups that drifted corrected."""
        import numpy as np

        if not self.rows:
            return []
        usual = float(np.median([row["reference"] for row in self.rows]))
        result = []
        for row in self.rows:
            drift = row["reference"] / usual - 1
            timing = summary(row["raw"])
            scale = 1 / (1 + drift) if abs(drift) > DRIFT else 1.0
            layers = {name: ms * scale for name, ms in row["layers"].items()} if row.get("layers") else None
            result.append(
                Sample(
                    arch=self.space.from_json(row["arch"]),
                    split=row["split"],
                    ms=timing.median * scale,
                    iqr=timing.iqr,
                    raw=timing.raw,
                    layers=layers,
                    reference=row["reference"],
                    repeats=row["repeats"],
                    drift=drift,
                )
            )
        return result

    def _ready(self, arch: Arch) -> Ready:
        """A subnet with random weights: those change nothing about the time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = self.space.module(self.space.plan(arch))
        channels, side = int(self.space.description["in_channels"]), self.space.resolution(arch)
        return Ready(network, (channels, side, side), self.setting)

    def _group(
        self, group: Sequence[tuple[Arch, str]], reference: Ready, rng: np.random.Generator
    ) -> list[dict[str, Any]]:
        """Rows of one group, from the try in which the reference was nearest to its median so far."""
        import numpy as np

        subjects = [self._ready(arch) for arch, _ in group]
        for subject in subjects:
            subject.warm_up(2)
        past = [row["reference"] for row in self.rows]
        best: tuple[float, list[list[float]]] | None = None
        repeats = -1
        while repeats < REPEATS:
            repeats += 1
            times = interleaved([*subjects, reference], ROUNDS, rng)
            drift = float(np.median(times[-1]) / np.median(past) - 1) if past else 0.0
            if best is None or abs(drift) < best[0]:
                best = abs(drift), times
            if abs(drift) <= DRIFT:
                break
        assert best is not None
        rows = []
        for (arch, split), subject, raw in zip(group, subjects, best[1], strict=False):
            names = [name for name, _ in self.space.plan(arch).layers]
            rows.append(
                {
                    "arch": arch.to_json(),
                    "split": split,
                    "raw": [round(ms, 5) for ms in raw],
                    "layers": layer_times(subject, names, LAYER_CALLS) if split == FIT else None,
                    "reference": float(np.median(best[1][-1])),
                    "repeats": repeats,
                }
            )
        return rows

    def _append(self, rows: Sequence[dict[str, Any]]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        self.rows += rows


def _groups(subnets: Sequence[tuple[Arch, str]]) -> Iterator[Sequence[tuple[Arch, str]]]:
    for first in range(0, len(subnets), GROUP):
        yield subnets[first : first + GROUP]
