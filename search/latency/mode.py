"""`python search.py mode=latency`: measure a space on this device, or read tables of others, and fit a model."""

from __future__ import annotations

import csv
import json
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from search.constraint import encoded
from search.latency.features import SIDE, key_of
from search.latency.fit import LEAST, fit_models, held_out, layer_table
from search.latency.formats import read_block_tables, read_csv
from search.latency.measure import DRIFT, FIT, TEST, Measurement, Sample, choose_subnets
from search.latency.model import LatencyModel
from search.latency.timing import Setting
from supernet.build import build, make_space, open_run, pick_device
from supernet.construct import construct
from supernet.errors import UserError
from supernet.log import RunLog
from supernet.runs import RESULTS, environment, latest, lock, new_run, newest_finished, plain, typed, write_json
from supernet.space import Space

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODEL = "latency.json"
MEASUREMENTS = "measurements.jsonl"
SHARE = 5  # of the rows of a CSV, one in so many is held out
FIGURES = ("mape", "rmse_ms", "within_5", "within_10", "kendall_tau", "spearman_rho")


@dataclass(frozen=True)
class LatencySettings:
    """The entries of `configs/search.yaml` that mode=latency reads."""

    checkpoint: str | None = None
    family: str | None = None
    space: str | Mapping[str, Any] | None = None
    runs_dir: str = "runs"
    resume: str | None = None
    seed: int = 0
    device: str = "auto"
    dry_run: bool = False
    batch: int = 1
    dtype: str = "float32"
    threads: int | None = None
    memory_format: str = "contiguous"
    minutes: float = 5.0
    subnets: int = 200
    held_out: int = 100
    source: str | None = None

    def __post_init__(self) -> None:
        for name in ("minutes", "subnets", "held_out"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name}={getattr(self, name)}: must be positive")

    @staticmethod
    def of(config: Mapping[str, Any]) -> LatencySettings:
        """Those of a whole search configuration; the other entries have no part in this mode."""
        known = set(LatencySettings.__dataclass_fields__) - {"space"}
        own = {key: value for key, value in config.items() if key in known}
        target = {"_target_": "search.latency.mode.LatencySettings", **own}
        settings: LatencySettings = construct(target, "", space=config.get("space"))  # a description, not yet a space
        return settings

    def open_space(self) -> Space:
        """The space by name, or that of the checkpoint, or that of the newest training run."""
        if isinstance(self.space, str):
            return build(self.space).space
        overrides = dict(self.space or {})
        if "_target_" in overrides:  # space=<name> on the command line
            return make_space(overrides, num_classes=1000, in_channels=3)
        source = Path(self.checkpoint) if self.checkpoint else newest_finished(Path(self.runs_dir) / "train")
        return open_run(source, torch.device("cpu"), self.family, overrides).net.space

    def setting(self) -> Setting:
        device = pick_device(self.device)
        threads = None if device.type == "cuda" else self.threads or torch.get_num_threads()
        return Setting(str(device), self.batch, self.dtype, threads, self.memory_format)


def main(config: Mapping[str, Any]) -> float:
    """Make a latency model; returns its held-out MAPE in percent (of a table: 0, nothing was held out).

    Raises:
        UserError: for wrong settings and sources.
        KeyboardInterrupt: after Ctrl-C; what was measured is on the disk.
    """
    settings = LatencySettings.of(config)
    space = settings.open_space()
    root = Path(settings.runs_dir) / "latency"
    if settings.source is not None:
        if settings.dry_run:
            print(f"space {space.name}: latencies would be read from {settings.source}")
            return 0.0
        folder = new_run(root, f"{space.name}-{Path(settings.source).stem}")
        with lock(folder), RunLog(folder) as log:
            return _import(settings, space, folder, log)
    setting = settings.setting()
    if settings.dry_run:
        _describe_plan(settings, space, setting)
        return 0.0
    folder = _resumed(settings, root) or new_run(root, f"{space.name}-{torch.device(setting.device).type}")
    with lock(folder), RunLog(folder) as log:
        try:
            return _measure(settings, space, setting, folder, log)
        except KeyboardInterrupt:
            words = [word for word in typed()[1:] if not word.startswith("resume=")]
            command = ["python", "search.py", *words, f"resume={folder}"]
            log.say(f"interrupted; what was measured is saved. To go on: {shlex.join(command)}")
            raise


def _measure(settings: LatencySettings, space: Space, setting: Setting, folder: Path, log: RunLog) -> float:
    write_json(folder / "environment.json", environment())
    measurement = Measurement(folder / MEASUREMENTS, space, setting, settings.seed)
    chosen = choose_subnets(space, settings.subnets, settings.held_out, settings.seed)
    record = setting.record()
    facts = [f"{key} {record[key]}" for key in ("batch", "dtype", "threads", "memory_format") if record[key]]
    log.say(f"space {space.name} on {record['device_name']}: {', '.join(facts)}")
    log.say(f"measuring {len(chosen)} subnets, {settings.held_out} held out, for up to {settings.minutes:g} minutes")
    log.say(f"folder: {folder}")
    busy = _load(setting)
    if busy > 0.5:
        log.warn(f"the machine is busy (load {busy:.1f} on {os.cpu_count()} CPUs): times will be noisy")
    start, before = time.perf_counter(), len(measurement.rows)
    with log.progress(len(chosen), "subnets", done=before) as progress:
        samples = measurement.run(
            chosen, 60 * settings.minutes, lambda n, ms: progress.advance(n, reference=f"{ms:.2f} ms")
        )
    seconds = time.perf_counter() - start
    if len(samples) < len(chosen):
        log.say(f"{len(samples)} of {len(chosen)} subnets were measured in the time given")
    if sum(sample.split == FIT for sample in samples) < LEAST:
        raise UserError(
            f"minutes={settings.minutes:g}: too short, {len(samples)} subnets were measured; a fit needs {LEAST} and "
            f"more to test on; go on with resume={folder}"
        )
    drifted = sum(abs(sample.drift) > DRIFT for sample in samples)
    repeated = sum(sample.repeats > 0 for sample in samples)
    if repeated:
        log.warn(
            f"the machine's speed drifted by more than {DRIFT:.0%}: {repeated} subnets were measured again, "
            f"{drifted} of them scaled by the reference network"
        )
    layers = _layer_facts(space, samples)
    log.say(f"layers: {layers['measured']} of {layers['distinct']} distinct ones timed inside the subnets")
    facts_of = {"conditions": record, "seconds": round(seconds, 1), "drifted": drifted, "repeated": repeated}
    return _finish(space, samples, {**facts_of, "layers": layers}, settings, folder, log)


def _import(settings: LatencySettings, space: Space, folder: Path, log: RunLog) -> float:
    source = Path(str(settings.source))
    if not source.exists():
        raise UserError(f"source={source}: no such file or folder")
    if source.suffix.lower() == ".csv":
        import numpy as np

        samples = read_csv(source, space)
        order = np.random.default_rng(settings.seed).permutation(len(samples)).tolist()
        kept = [Sample(samples[i].arch, FIT if n % SHARE else TEST, samples[i].ms) for n, i in enumerate(order)]
        return _finish(space, kept, {"conditions": None, "source": source.name}, settings, folder, log)
    restricted, additive = read_block_tables(source, space)
    model = LatencyModel(restricted, additive, {"kind": "block table", "conditions": None, "source": source.name})
    model.save(folder / MODEL)
    ends = {name: model.predict(arch) for name, arch in _ends(restricted)}
    facts = {"smallest_ms": ends["smallest"], "largest_ms": ends["largest"]}
    write_json(folder / RESULTS, {"kind": "latency", "space": space.name, **model.info, **facts})
    sides = next(gene.options for gene in restricted.genes if gene.key == SIDE)
    log.say(f"resolutions: {', '.join(map(str, sides))}; {ends['smallest']:.3f} to {ends['largest']:.3f} ms")
    _say_use(folder, log)
    return 0.0


def _finish(
    space: Space,
    samples: Sequence[Sample],
    about: Mapping[str, Any],
    settings: LatencySettings,
    folder: Path,
    log: RunLog,
) -> float:
    """Fit, test, save, show."""
    fit, test = ([s for s in samples if s.split == split] for split in (FIT, TEST))
    models = fit_models(space, fit, settings.seed)
    best = models[0]
    rows = [(model, held_out(model, test) if len(test) > 1 else {}) for model in models]
    report = rows[0][1]
    info = {
        "kind": best.kind,
        "penalty": best.penalty,
        "cross_validation_mape": best.mape,
        "fit_subnets": len(fit),
        "held_out": report,
        **about,
    }
    model = LatencyModel(space, best.additive, info)
    model.save(folder / MODEL)
    candidates = [
        {"kind": m.kind, "penalty": m.penalty, "cross_validation_mape": m.mape, "held_out": f} for m, f in rows
    ]
    write_json(folder / RESULTS, plain({"kind": "latency", "space": space.name, **info, "candidates": candidates}))
    predicted = model.batch(encoded(space, [sample.arch for sample in samples]))
    _write_csv(folder / "measurements.csv", samples, predicted)
    _plot(folder / "latency.png", samples, predicted, info, space)
    table = [[m.kind, f"{m.mape:.2f}", *(f"{f[key]:.3g}" if f else "-" for key in FIGURES)] for m, f in rows]
    columns = ["model", "CV MAPE %", "MAPE %", "RMSE ms", "within 5%", "within 10%", "Kendall τ", "Spearman ρ"]
    log.table(f"fitted on {len(fit)} subnets, tested on {len(test)} others; the first is saved", columns, table)
    _say_use(folder, log)
    return float(report.get("mape", 0.0))


def _say_use(folder: Path, log: RunLog) -> None:
    log.say(f"model:   {folder / MODEL}")
    log.say(f"use it:  python search.py constraint.latency_ms=<ms> latency={folder / MODEL}")


def _describe_plan(settings: LatencySettings, space: Space, setting: Setting) -> None:
    count = settings.subnets + settings.held_out
    print(f"space {space.name}: {space.size():.3g} subnets")
    print("\n".join(f"{key}: {value}" for key, value in setting.record().items()))
    print(f"would measure up to {count} subnets in at most {settings.minutes:g} minutes")


def _resumed(settings: LatencySettings, root: Path) -> Path | None:
    if settings.resume is None:
        return None
    folder = latest(root, MEASUREMENTS) if settings.resume == "auto" else Path(settings.resume)
    if folder is None or not (folder / MEASUREMENTS).is_file():
        raise UserError(f"resume={settings.resume}: no measurements there; look in {root}")
    return folder


def _layer_facts(space: Space, samples: Sequence[Sample]) -> dict[str, Any]:
    measured = layer_table(space, samples)
    distinct = {key_of(spec) for i in range(len(space.units)) for _, spec in space.specs(i) if spec is not None}
    return {"distinct": len(distinct), "measured": len(measured), "times": sum(map(len, measured.values()))}


def _load(setting: Setting) -> float:
    """How many CPUs were wanted in the last minute; 0 where that is unknown or does not matter."""
    if setting.cuda or not hasattr(os, "getloadavg"):
        return 0.0
    return os.getloadavg()[0]


def _ends(space: Space) -> list[tuple[str, Any]]:
    return [("smallest", space.smallest()), ("largest", space.largest())]


def _write_csv(path: Path, samples: Sequence[Sample], predicted: NDArray[np.float64]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["split", "ms", "iqr", "predicted_ms", "drift", "repeats", "arch"])
        for sample, ms in zip(samples, predicted.tolist(), strict=True):
            numbers = [sample.ms, sample.iqr, ms, sample.drift]
            arch = json.dumps(sample.arch.to_json())
            writer.writerow([sample.split, *(f"{value:.5f}" for value in numbers), sample.repeats, arch])


def _plot(
    path: Path, samples: Sequence[Sample], predicted: NDArray[np.float64], info: Mapping[str, Any], space: Space
) -> None:
    """Measured against predicted latency."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5.2), layout="constrained")
    axes = figure.add_subplot()
    for split, color, label in ((FIT, "tab:gray", "fitted on"), (TEST, "tab:blue", "held out")):
        points = [(s.ms, ms) for s, ms in zip(samples, predicted.tolist(), strict=True) if s.split == split]
        if points:
            measured, modelled = zip(*points, strict=True)
            axes.scatter(measured, modelled, s=14, alpha=0.7, color=color, linewidths=0, label=label)
    ends = [min(s.ms for s in samples), max(s.ms for s in samples)]
    axes.plot(ends, ends, color="tab:red", linewidth=1)
    figures = info["held_out"]
    facts = f": MAPE {figures['mape']:.2f}%, Kendall τ {figures['kendall_tau']:.3f}" if figures else ""
    name = (info["conditions"] or {}).get("device_name") or info.get("source")
    axes.set(xlabel="measured, ms", ylabel="predicted, ms", title=f"{space.name} on {name}{facts}")
    axes.title.set_fontsize(9)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=130)
