"""Which training method makes a supernet rank subnets as their stand-alone accuracies do.

    python -m benchmarks.ground_truth --truth <table> [--space toy_cell] [--methods spos4,fair,...] [--seeds 3]
                                      [--steps 8000] [--rows 300] [--images 10000] [--threads 1]
                                      [--only train|score|report] [--set key=value ...]

For every seed and method: trains a supernet, scores the same random rows of the published table with inherited weights
(calibrated on 512 training images, first `--images` of the test split), and compares the rankings. Equal work for
every method: as many subnet passes a step, and as many steps; `spos1`, one pass a step as published, has as many times
the steps instead. Finished parts are not repeated and unfinished ones are resumed, so the command can be stopped and
started again at any time; two processes can share the work. Writes `ground_truth_<space>.json` and `.png`.

The published accuracies were measured on the test images, so scores are taken there too. Nothing is selected by them
here: no method, setting or checkpoint. `--steps` is rounded to whole epochs.

The ceiling is what noise-free knowledge of the accuracies would reach on this table, simulated. Where a table has one
seed a network, the noise of a stand-alone training is not known: it is assumed (`--noise`, points of top-1).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import arms
from benchmarks.ground_truth_plot import plot
from benchmarks.statistics import interval, paired, shown, shown_interval, spread
from benchmarks.truth import TOP, Truth, ceilings, figures, read_truth, seed_agreement
from search.ranking import agreement
from supernet.errors import UserError
from supernet.horizon import Horizon
from supernet.runs import RESULTS, read_json, write_json
from supernet.space import Space

CALIBRATION_IMAGES = 512
LEARNING = (  # TangleNAS' rates of a search, without regularisation; evaluated only at the end
    *("train.batch_size=64", "train.label_smoothing=0", "train.dropout=0", "train.zero_gamma=none"),
    *("train.init=torch", "train.eval_every=1000000", "train.eval_random=0", "train.test=false"),
    *("train.save_every=250", "train.log_every=100", f"train.calibration_images={CALIBRATION_IMAGES}"),
    *("optim.lr=0.025", "optim.nesterov=false", "optim.weight_decay=5e-4"),
    *("schedule=cosine", "schedule.warmup_epochs=0", "schedule.final=0.04"),
)
# PA&DA's own program; `path`, `data` and `pada` are this project's versions: rms of a choice's own slice, a table
# for each gene, moving averages, a warm-up epoch, and images that an epoch left out keep their scores.
AS_PUBLISHED = (
    *("path_sampler.indicator=total", "path_sampler.share=key", "path_sampler.ema=halved", "path_sampler.restart=true"),
    *("path_sampler.unscored=zero", "path_sampler.warmup_epochs=0", "path_sampler.tau_max=1"),
    "data_sampler.forget_unseen=true",
)
FASHION = ("data=fashion_mnist", "data.resolution=[28]")
CIFAR = ("data=cifar10", "data.resolution=[32]")
PLAIN = ("data.augment.shift=0", "data.augment.flip=false", "data.augment.erase=0")


@dataclass(frozen=True)
class Setting:
    """How supernets of a space are trained: Hydra overrides, passes a step, and the usual name of the table."""

    overrides: tuple[str, ...]
    passes: int
    table: str


SETTINGS = {
    "toy_cell": Setting((*FASHION, *PLAIN), 4, "tanglenas_toy_cell_fashion_mnist.json"),
    "conv_macro": Setting(CIFAR, 3, "tanglenas_conv_macro_cifar10.json"),
    "nb_macro": Setting(CIFAR, 3, "nas_bench_macro_cifar10.json"),  # 3 operations a layer, so that FairNAS fits
    "nb_macro_separate": Setting(CIFAR, 3, "nas_bench_macro_cifar10.json"),
}


@dataclass(frozen=True)
class Method:
    """Hydra overrides, and its epochs as a multiple of the others'."""

    overrides: tuple[str, ...]
    epochs: int = 1


def methods(passes: int) -> dict[str, Method]:
    """Every method with so many passes a step; the first is the baseline."""
    uniform = ("sampler=uniform", f"sampler.num_random={passes}")
    sandwich = ("sampler=sandwich", f"sampler.num_random={passes - 2}")
    path, data = "path_sampler=importance", "data_sampler=importance"
    unbiased = ("path_sampler.mode=unbiased", "data_sampler.mode=unbiased")
    return {
        f"spos{passes}": Method(uniform),
        "spos1": Method(("sampler=uniform", "sampler.num_random=1"), epochs=passes),
        "fair": Method((*uniform, "path_sampler=fair")),
        "path": Method((*uniform, path)),
        "data": Method((*uniform, data)),
        "pada": Method((*uniform, path, data)),
        "pada_unbiased": Method((*uniform, path, data, *unbiased)),
        "pada_published": Method((*uniform, path, data, *AS_PUBLISHED)),
        "sandwich": Method((*sandwich, "distill=soft_ce")),
        "sandwich_alpha": Method((*sandwich, "distill=alpha")),
    }


@dataclass(frozen=True)
class Study:
    """A comparison: the space, its table, and everything that all methods share.

    Attributes:
        truth: the rows that are scored.
        epochs: of a method that is not given more.
        root: where the trainings lie.
        images: of the test split, for a score.
        overrides: Hydra's, for every method.
    """

    space: Space
    truth: Truth
    methods: Mapping[str, Method]
    epochs: int
    steps_per_epoch: int
    root: Path
    images: int
    overrides: tuple[str, ...]

    def config(self, name: str, seed: int) -> dict[str, Any]:
        """The whole configuration of one training."""
        method = self.methods[name]
        own = (f"train.epochs={self.epochs * method.epochs}", f"seed={seed}", f"name={name}-{seed}")
        return arms.composed((*self.overrides, *method.overrides, *own))

    def folder(self, name: str, seed: int) -> Path:
        """Of one training and its scores."""
        return self.root / str(self.epochs * self.steps_per_epoch) / f"{name}-{seed}"

    def scores(self, name: str, seed: int) -> Path:
        """The file of its scores."""
        return self.folder(name, seed) / f"scores-{self.images}.jsonl"


def run(study: Study, names: Sequence[str], seeds: int, only: str, device: str, console: Console) -> None:
    """Train and score, seed by seed, so that what is cut off has all methods for the first seeds."""
    jobs = [(seed, name) for seed in range(seeds) for name in names]
    configs = {job: study.config(job[1], job[0]) for job in jobs}  # refuses what is wrong before hours of training
    for (seed, name), config in configs.items():
        root = study.folder(name, seed)
        try:
            with arms.hold(root):
                folder = arms.finished(root) if only == "score" else arms.train_once({**config, "device": device}, root)
                if folder is not None and only != "train":
                    arms.scores(
                        *(folder, study.truth.archs, study.scores(name, seed), study.images),
                        *(CALIBRATION_IMAGES, device),
                    )
        except UserError as error:  # the others go on
            console.print(f"{name}, seed {seed}: {error}", style="yellow", soft_wrap=True)


def predictions(study: Study, name: str) -> dict[int, list[float]]:
    """Scores of all rows by seed, of the trainings that are finished."""
    folders = sorted((study.root / str(study.epochs * study.steps_per_epoch)).glob(f"{name}-*"))
    seeds = sorted(int(end) for folder in folders if (end := folder.name.removeprefix(f"{name}-")).isdigit())
    done = [seed for seed in seeds if arms.finished(study.folder(name, seed))]
    scores = {seed: arms.known_scores(study.scores(name, seed), study.truth.archs) for seed in done}
    return {seed: found for seed, found in scores.items() if found is not None}


def method_facts(study: Study, name: str) -> dict[str, Any] | None:
    """Figures of every seed of one method, and their means; None where nothing is finished."""
    predicted = predictions(study, name)
    if not predicted:
        return None
    epochs = study.epochs * study.methods[name].epochs
    config, true = study.config(name, 0), study.truth.top1
    total = arms.passes(config, study.space, Horizon(study.steps_per_epoch, epochs * study.steps_per_epoch))
    seeds = {}
    for seed, scores in predicted.items():
        folder = arms.finished(study.folder(name, seed))
        assert folder is not None
        results = read_json(folder / RESULTS)
        found = {**figures(np.array(scores), true), "mean_top1": float(np.mean(scores)), "seconds": results["seconds"]}
        seeds[seed] = {**found, "steps": results["steps"]}
    columns = [key for key in next(iter(seeds.values())) if key != "steps"]
    return {
        "overrides": list(study.methods[name].overrides),
        "epochs": epochs,
        "passes": total,
        "seeds": seeds,
        **{column: spread([row[column] for row in seeds.values()]) for column in columns},
        "agreement_of_seeds": agreement(list(predicted.values())) if len(predicted) > 1 else None,
    }


def references(study: Study) -> dict[str, dict[str, float]]:
    """How well sizes rank the same rows: what a score has to beat."""
    plans = [study.space.plan(arch) for arch in study.truth.archs]
    sizes = {"params": [plan.params for plan in plans], "macs": [plan.macs for plan in plans]}
    return {name: figures(np.array(values, dtype=np.float64), study.truth.top1) for name, values in sizes.items()}


def summary(study: Study, noises: tuple[float, ...]) -> dict[str, Any]:
    """Everything that is known by now, for the file of results."""
    facts = {name: found for name in study.methods if (found := method_facts(study, name)) is not None}
    baseline = facts.get(next(iter(study.methods)))
    if baseline is not None:
        taus = {name: {seed: row["tau"] for seed, row in each["seeds"].items()} for name, each in facts.items()}
        for name in list(facts)[1:]:
            facts[name]["tau_over_baseline"] = paired(taus[name], taus[next(iter(study.methods))])
    true = study.truth.top1
    return {
        "environment": arms.machine(),
        "space": study.space.name,
        "steps": study.epochs * study.steps_per_epoch,
        "overrides": list(study.overrides),
        "rows": len(true),
        "images": study.images,
        "truth": {"top1": interval(true.tolist()), "agreement_of_seeds": seed_agreement(study.truth)},
        "ceiling": ceilings(study.truth, noises, study.images),
        "references": references(study),
        "methods": facts,
    }


def table(found: Mapping[str, Any]) -> Table:
    """The summary to read."""
    title = f"{found['space']}: {found['rows']} rows, {found['steps']:,} steps"
    columns = ("tau", "over the first", "tau, top decile", f"top-{TOP} precision", "best true rank", "mean top-1 %")
    drawn = Table("method", "seeds", *columns, "minutes", "passes", title=title)
    for name, row in found["methods"].items():
        minutes = spread([seed["seconds"] / 60 for seed in row["seeds"].values()])
        over = shown_interval(row["tau_over_baseline"], 3) if "tau_over_baseline" in row else ""
        ranks = (shown(row["tau_top_decile"]), shown(row["top10_precision"], 2), shown(row["top10_best_rank"], 1))
        ends = (shown(row["mean_top1"], 2), shown(minutes, 1), f"{row['passes']:,}")
        drawn.add_row(name, str(len(row["seeds"])), shown(row["tau"]), over, *ranks, *ends)
    drawn.add_section()
    for name, row in found["references"].items():
        drawn.add_row(name, "", f"{row['tau']:.3f}", "", f"{row['tau_top_decile']:.3f}", *_choice(row))
    for row in found["ceiling"]:
        name = f"ceiling, noise {row['noise']:.2f}" + (", other images" if row["other_images"] else "")
        drawn.add_row(name, "", f"{row['tau']:.3f}", "", f"{row['tau_top_decile']:.3f}", *_choice(row))
    return drawn


def _choice(row: Mapping[str, float]) -> tuple[str, str]:
    return f"{row['top10_precision']:.2f}", f"{row['top10_best_rank']:.1f}"


def make_study(options: argparse.Namespace) -> Study:
    """What the options ask for.

    Raises:
        UserError: if the space, a method or the table is unknown.
    """
    if options.space not in SETTINGS:
        raise UserError(f"--space {options.space}: has no settings here; choose from {', '.join(SETTINGS)}")
    setting = SETTINGS[options.space]
    overrides = (f"space={options.space}", *LEARNING, *setting.overrides, *options.set)
    data, space = arms.open_data({**arms.composed(overrides), "device": "cpu"})
    known = methods(setting.passes)
    for name in options.methods:
        if name not in known:
            raise UserError(f"--methods {name}: unknown; choose from {', '.join(known)}")
    truth = read_truth(options.truth or Path("data") / setting.table, space).subset(options.rows)
    steps_per_epoch = data.steps_per_epoch()
    epochs = max(1, round(options.steps / steps_per_epoch))
    root = options.runs / "ground_truth" / options.space
    images = min(options.images, data.sizes["test"])
    return Study(space, truth, known, epochs, steps_per_epoch, root, images, overrides)


def main() -> None:
    options = _options()
    arms.use_threads(options.threads)
    console = Console(highlight=False, width=None if Console().is_terminal else 170)
    try:
        study = make_study(options)
    except UserError as error:
        sys.exit(str(error))
    if options.only != "report":
        run(study, options.methods or list(study.methods), options.seeds, options.only, options.device, console)
    found = summary(study, tuple(options.noise))
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / f"ground_truth_{study.space.name}.json", found)
    first = {name: next(iter(known.values())) for name in study.methods if (known := predictions(study, name))}
    plot(options.out / f"ground_truth_{study.space.name}.png", found, study.truth.top1, first)
    console.print(table(found))


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser("python -m benchmarks.ground_truth", description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="toy_cell", help=", ".join(SETTINGS))
    parser.add_argument("--truth", type=Path, help="the published table; default: data/<its usual name>")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=[], help="default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8000, help="optimizer steps, rounded to whole epochs")
    parser.add_argument("--rows", type=int, default=300, help="rows of the table, drawn at random with seed 0")
    parser.add_argument("--images", type=int, default=10000, help="test images for a score")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.1, 0.15, 0.25], help="points, for the ceiling")
    parser.add_argument("--only", choices=("all", "train", "score", "report"), default="all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=Path, default=Path("benchmarks/runs"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--set", nargs="+", default=[], help="Hydra overrides for all, such as data.root=<folder>")
    return parser.parse_args()


if __name__ == "__main__":
    main()
