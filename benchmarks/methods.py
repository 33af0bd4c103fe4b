"""Training methods compared on the accuracy of inherited subnets: losses, phases, path and data samplers.

    python -m benchmarks.methods [--data digits|fashion_mnist] [--epochs 25] [--seeds 3] [--arms kl,alpha,...]
                                 [--threads 1] [--report] [--set key=value ...]

All arms train `mbv3_tiny` with the sandwich rule (largest, 2 random, smallest), the same rates, clipping and epochs,
and differ in one thing from `kl`, the soft cross-entropy of BigNAS. DepS makes one pass a step at first, so that it has
its own epochs: `deps60` as many as 60% of the baseline's subnet passes allow (about the same number of epochs),
`deps100` as many as all of them allow. Scored: 30 fixed random subnets, the smallest and the largest, each calibrated,
on the test split. Intervals are Student's over seeds (95%), those of differences over pairs with the same seed.
Finished parts are not repeated and unfinished ones are resumed. Writes `methods_<data>.json` and `.png`.
"""

from __future__ import annotations

import argparse
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import arms
from benchmarks.statistics import interval, paired, shown, shown_interval
from supernet.errors import UserError
from supernet.horizon import Horizon
from supernet.runs import RESULTS, read_json, write_json
from supernet.space import Arch, Space

SUBNETS, SUBNET_SEED = 30, 30
CALIBRATION_IMAGES = 1024
SHARED = (
    *("space=mbv3_tiny", "sampler=sandwich", "sampler.num_random=2", "train.clip_value=1.0", "train.test=false"),
    *("train.eval_every=1000000", "train.eval_random=0", "train.save_every=200", "train.log_every=50"),
    f"train.calibration_images={CALIBRATION_IMAGES}",
)
DATA = {"digits": ("data=digits",), "fashion_mnist": ("recipe=fashion_mnist",)}


@dataclass(frozen=True)
class Method:
    """Hydra overrides; `share` of the baseline's passes where the epochs are chosen by them."""

    overrides: tuple[str, ...]
    share: float | None = None


METHODS = {
    "kl": Method(("distill=soft_ce",)),
    "alpha": Method(("distill=alpha",)),
    "deps60": Method(("phases=deps",), share=0.6),
    "deps100": Method(("phases=deps",), share=1.0),
    "attentive": Method(("path_sampler=attentive", "path_sampler.mode=bestup")),
    "worst_up": Method(("path_sampler=attentive", "path_sampler.mode=worstup")),
    "path": Method(("path_sampler=importance",)),
    "data": Method(("data_sampler=importance",)),
}
BASELINE = "kl"
COLUMNS = ("mean", "smallest", "largest")


@dataclass(frozen=True)
class Study:
    """What all arms share.

    Attributes:
        epochs: of the baseline.
        root: where the trainings lie.
        overrides: Hydra's, for every arm.
        methods: by name; `kl` is the baseline.
    """

    space: Space
    steps_per_epoch: int
    epochs: int
    root: Path
    overrides: tuple[str, ...]
    methods: Mapping[str, Method]

    @cached_property
    def subnets(self) -> list[Arch]:
        """Those that are scored: random ones, the smallest, the largest."""
        random = self.space.sample(np.random.default_rng(SUBNET_SEED), n=SUBNETS)
        return [*random, self.space.smallest(), self.space.largest()]

    def passes(self, name: str) -> Callable[[int], int]:
        """How many a whole training makes, as a function of its epochs."""
        config = arms.composed((*self.overrides, *self.methods[name].overrides))
        steps = self.steps_per_epoch
        return lambda epochs: arms.passes(config, self.space, Horizon(steps, epochs * steps))

    def epochs_of(self, name: str) -> int:
        """The baseline's, or those whose passes come nearest to the method's share of the baseline's."""
        share = self.methods[name].share
        if share is None:
            return self.epochs
        wanted, passes = share * self.passes(BASELINE)(self.epochs), self.passes(name)
        candidates = range(1, 8 * self.epochs + 1)
        above = bisect_left(candidates, wanted, key=passes)
        return min(candidates[max(0, above - 1) : above + 1], key=lambda epochs: abs(passes(epochs) - wanted))

    def config(self, name: str, epochs: int, seed: int) -> dict[str, Any]:
        """The whole configuration of one training."""
        own = (f"train.epochs={epochs}", f"seed={seed}", f"name={name}-{seed}")
        return arms.composed((*self.overrides, *self.methods[name].overrides, *own))

    def folder(self, name: str, seed: int) -> Path:
        """Of one training and its scores."""
        return self.root / str(self.epochs) / f"{name}-{seed}"


def run(study: Study, names: Sequence[str], seeds: int, device: str, console: Console) -> None:
    """Train and score, seed by seed, so that what is cut off has all arms for the first seeds."""
    epochs = {name: study.epochs_of(name) for name in names}
    jobs = [(seed, name) for seed in range(seeds) for name in names]
    configs = {job: study.config(job[1], epochs[job[1]], job[0]) for job in jobs}
    for (seed, name), config in configs.items():
        root = study.folder(name, seed)
        try:
            with arms.hold(root):
                folder = arms.train_once({**config, "device": device}, root)
                arms.scores(folder, study.subnets, root / "scores.jsonl", None, CALIBRATION_IMAGES, device)
        except UserError as error:  # the others go on
            console.print(f"{name}, seed {seed}: {error}", style="yellow", soft_wrap=True)


def seeds_of(study: Study, name: str) -> dict[int, dict[str, float]]:
    """Figures of every finished training of an arm, by seed."""
    found = {}
    for root in sorted(study.root.glob(f"{study.epochs}/{name}-*")):
        end, folder = root.name.removeprefix(f"{name}-"), arms.finished(root)
        scores = arms.known_scores(root / "scores.jsonl", study.subnets) if folder else None
        if end.isdigit() and folder and scores:
            results = read_json(folder / RESULTS)
            top1 = {"mean": float(np.mean(scores[:-2])), "smallest": scores[-2], "largest": scores[-1]}
            found[int(end)] = {**top1, "steps": results["steps"], "minutes": results["seconds"] / 60}
    return found


def summary(study: Study) -> dict[str, Any]:
    """Everything that is known by now, for the file of results."""
    known = {name: seeds for name in study.methods if (seeds := seeds_of(study, name))}
    facts: dict[str, Any] = {}
    for name, seeds in known.items():
        steps = next(iter(seeds.values()))["steps"]
        epochs = round(steps / study.steps_per_epoch)
        columns = {key: {seed: row[key] for seed, row in seeds.items()} for key in (*COLUMNS, "minutes")}
        base = {key: {seed: row[key] for seed, row in known.get(BASELINE, {}).items()} for key in COLUMNS}
        facts[name] = {
            "overrides": list(study.methods[name].overrides),
            "epochs": epochs,
            "passes": study.passes(name)(epochs),
            "seeds": seeds,
            **{key: interval(list(values.values())) for key, values in columns.items()},
            "over_baseline": {key: paired(columns[key], base[key]) for key in COLUMNS},
        }
    return {
        "environment": arms.machine(),
        "space": study.space.name,
        "overrides": list(study.overrides),
        "subnets": SUBNETS,
        "baseline": BASELINE,
        "baseline_passes": study.passes(BASELINE)(study.epochs),
        "methods": facts,
    }


def table(found: Mapping[str, Any]) -> Table:
    """The summary to read."""
    title = f"{found['space']}: test top-1 %, mean ± sd over seeds; differences to {BASELINE} with 95% intervals"
    drawn = Table("arm", "seeds", "epochs", "passes", *COLUMNS, *(f"Δ {name}" for name in COLUMNS), "min", title=title)
    for name, row in found["methods"].items():
        share = f"{row['passes'] / found['baseline_passes']:.0%}"
        values = [shown(row[key], 2) for key in COLUMNS]
        over = [shown_interval(row["over_baseline"][key]) if name != BASELINE else "" for key in COLUMNS]
        counts = (str(len(row["seeds"])), str(row["epochs"]), share)
        drawn.add_row(name, *counts, *values, *over, shown(row["minutes"], 1))
    return drawn


def plot(path: Path, found: Mapping[str, Any]) -> None:
    """Differences to the baseline with their intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    facts = {name: row for name, row in found["methods"].items() if name != BASELINE}
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = np.arange(len(facts))
    for number, key in enumerate(COLUMNS):
        over = [row["over_baseline"][key] for row in facts.values()]
        half = np.nan_to_num([each["high"] - each["mean"] for each in over])
        label = f"mean of {found['subnets']} subnets" if key == "mean" else key
        means = [each["mean"] for each in over]
        axes.errorbar(places + 0.2 * (number - 1), means, yerr=half, fmt="o", capsize=4, label=label)
    axes.axhline(0, color="black", linewidth=0.8)
    labels = [f"{name}\n{row['passes'] / found['baseline_passes']:.0%} of the passes" for name, row in facts.items()]
    axes.set_xticks(places, labels, fontsize="small")
    axes.set(ylabel=f"test top-1, points over {BASELINE}", title=f"{found['space']}, 95% intervals over seeds")
    axes.legend(fontsize="small")
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=120)


def make_study(data: str, epochs: int, runs: Path, more: Sequence[str]) -> Study:
    """The comparison on one dataset."""
    overrides = (*DATA[data], *SHARED, *more)
    images, space = arms.open_data({**arms.composed(overrides), "device": "cpu"})
    return Study(space, images.steps_per_epoch(), epochs, runs / "methods" / data, overrides, METHODS)


def main() -> None:
    options = _options()
    arms.use_threads(options.threads)
    console = Console(highlight=False, width=None if Console().is_terminal else 170)
    study = make_study(options.data, options.epochs, options.runs, options.set)
    if not options.report:
        run(study, options.arms or list(METHODS), options.seeds, options.device, console)
    found = summary(study)
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / f"methods_{options.data}.json", found)
    plot(options.out / f"methods_{options.data}.png", found)
    console.print(table(found))


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in METHODS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]}: choose from {', '.join(METHODS)}")
    return names


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser("python -m benchmarks.methods", description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=tuple(DATA), default="digits")
    parser.add_argument("--epochs", type=int, default=25, help="of the baseline")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", type=_names, default=[], help="default: all")
    parser.add_argument("--report", action="store_true", help="only summarise what is finished")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=Path, default=Path("benchmarks/runs"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--set", nargs="+", default=[], help="Hydra overrides for all arms")
    return parser.parse_args()


if __name__ == "__main__":
    main()
