"""How much sharing a ranking bears: stability and truth of rankings by groups of subnets.

    python -m benchmarks.sharing [key=value ...] [--truth FILE] [--archs FILE] [--subnets 64] [--groups 1 2 4 8]
                                 [--by similarity random] [--shared stem stages.0] [--seeds 3] [--last 64] [--shuffle]
                                 [--split test] [--threads 1] [--out FOLDER]

The diagnosis of "Deeper Insights into Weight Sharing in Neural Architecture Search" (Zhang et al., 2020) on any space:
a list of subnets is divided into groups, each group has a supernet of its own, and every optimizer step trains the next
subnet of the list, over and over, so that all get equal updates whatever the number of groups. All subnets are scored,
calibrated, after each of the last mini-batches (--last). Reported, by number of groups and rule:

    S-tau          mean Kendall tau-b between the last rankings of every two seeds
    GT-tau         Mean-k and Std-k over the last k mini-batches, mean over seeds; needs --truth
    T1, T3         true rank of the best among the 1 and 3 subnets that score highest, mean over seeds; needs --truth
    last trained   mean rank, by score, of the subnet that the last mini-batch trained

The subnets: of --archs (a JSON list); else a fixed random --subnets of the truth's rows; else of the space.
--truth: the space's published table (see benchmarks/truth.py), or rows as for the search's rank mode.
--shared: modules that all groups have in common (prefix sharing).
--shuffle: every seed trains the subnets in an order of its own.
key=value: as for train.py. Space, data, optim, schedule, epochs, batch size, initial weights, label smoothing,
    clipping, calibration and the number of images of a score (train.eval_images) are taken from there. The paper's
    recipe: optim.lr=0.025 optim.weight_decay=0.001 optim.nesterov=false schedule.warmup_epochs=0 schedule.final=0.04
    train.batch_size=256 train.epochs=200 train.init=torch train.zero_gamma=none train.label_smoothing=0

Finished trainings are not repeated: the command can be started again after an interruption, also with more seeds or
groups. Results: `sharing.json`, `.md` and `.png` in --out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import truth as published
from search.ranking import against_truth, agreement, kendall, top_k
from search.truth import read_truth
from supernet.build import make_data, make_space, pick_device
from supernet.construct import construct
from supernet.data import Batch, Data
from supernet.distill import HardLabels, at_least_fp32
from supernet.errors import UserError
from supernet.evaluate import calibrated_subnet, evaluate
from supernet.optim import parameter_groups, zero_gradients
from supernet.runs import config_dir, plain, read_json, write_json
from supernet.samplers.base import Slot
from supernet.settings import TrainSettings
from supernet.sharing.grouped import GroupedSupernet
from supernet.sharing.groups import Groups
from supernet.sharing.make import read_archs
from supernet.sharing.members import Resting, initialise_members
from supernet.space import Arch, Space
from supernet.step import accumulate, update

Rows = dict[Arch, float]


@dataclass(frozen=True)
class Cell:
    """One training: how many groups, by which rule, from which seed."""

    groups: int
    by: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.groups}-{self.by}-{self.seed}"


@dataclass(frozen=True)
class Study:
    """What all trainings have in common; `split` is that of the scores."""

    config: Mapping[str, Any]
    archs: Sequence[Arch]
    shared: tuple[str, ...] = ()
    last: int = 64
    shuffle: bool = False
    split: str = "test"

    def order(self, seed: int) -> list[Arch]:
        """The subnets as they take turns in training; sorted by code, or in an order of the seed's own."""
        if not self.shuffle:
            return list(self.archs)
        return [self.archs[i] for i in np.random.default_rng((seed, len(self.archs))).permutation(len(self.archs))]

    def record(self) -> dict[str, Any]:
        """What decides the results, to be compared before trainings are put together."""
        config = {key: self.config[key] for key in ("space", "data", "optim", "schedule", "train")}
        config["data"] = {key: value for key, value in config["data"].items() if key not in ("seed", "root")}
        facts = {"config": config, "archs": [arch.to_json() for arch in self.archs]}
        own = {"shared": self.shared, "last": self.last, "shuffle": self.shuffle, "split": self.split}
        found: dict[str, Any] = plain({**facts, **own})
        return found


def train(study: Study, cell: Cell, space: Space, data: Data, device: torch.device) -> dict[str, Any]:
    """One training; returns the scores [last, subnets] after the last mini-batches, and what was trained last."""
    settings: TrainSettings = construct(study.config["train"], "train")
    rule = Groups(space, cell.seed, cell.groups, cell.by, study.archs)  # type: ignore[arg-type]
    net = GroupedSupernet(space, rule, study.shared)
    initialise_members(net, cell.seed, settings.init, settings.zero_gamma)
    net.to(device).train()
    if settings.channels_last:
        net.to(memory_format=torch.channels_last)
    decay = study.config["optim"].get("weight_decay", 0.0)
    optimizer = construct(study.config["optim"], "optim", params=parameter_groups(net, decay))
    zero_gradients(net)
    resting, schedule = Resting(net), construct(study.config["schedule"], "schedule")
    order, per_epoch = study.order(cell.seed), data.steps_per_epoch()
    total = settings.epochs * per_epoch
    start, scores, trained = time.perf_counter(), list[list[float]](), list[int]()
    for step, batch in enumerate(_batches(data, total)):
        slots = [Slot(order[step % len(order)], "random")]
        accumulate(net, *_laid_out(batch, settings), slots, _loss(settings), HardLabels(), autocast=settings.amp)  # type: ignore[arg-type]
        with resting(slots):
            rate = study.config["optim"]["lr"] * schedule(step, per_epoch, total)
            update(optimizer, rate, settings.clip_value, settings.clip_norm)
        if step >= total - study.last:
            before = scores[-1] if scores and not study.shared else None
            scores.append(_scores(study, net, slots[0].arch, before, data, settings))
            trained.append(study.archs.index(slots[0].arch))
    return {"scores": scores, "trained": trained, "steps": total, "seconds": time.perf_counter() - start}


def _batches(data: Data, total: int) -> Iterator[Batch]:
    per_epoch = data.steps_per_epoch()
    for epoch in range(-(-total // per_epoch)):
        yield from data.train(epoch)


def _laid_out(batch: Batch, settings: TrainSettings) -> tuple[Tensor, Tensor]:
    images = batch.images.contiguous(memory_format=torch.channels_last) if settings.channels_last else batch.images
    return images, batch.targets


def _loss(settings: TrainSettings) -> Any:
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        smoothing = settings.label_smoothing
        return F.cross_entropy(at_least_fp32(logits), targets, label_smoothing=smoothing, reduction="none")

    return loss


def _scores(
    study: Study,
    net: GroupedSupernet,
    trained: Arch,
    before: Sequence[float] | None,
    data: Data,
    settings: TrainSettings,
) -> list[float]:
    """Top-1 of all subnets, percent; those whose supernet has not moved keep the score `before`."""
    found = []
    for number, arch in enumerate(study.archs):
        if before is not None and net.member(arch) is not net.member(trained):
            found.append(before[number])
            continue
        subnet = calibrated_subnet(net, arch, data, settings.calibration_images)  # type: ignore[arg-type]
        batches = data.evaluation(study.split, net.space.resolution(arch), settings.eval_images)
        found.append(evaluate(subnet, batches).top1)
    return found


def run(study: Study, cells: Sequence[Cell], folder: Path) -> dict[Cell, dict[str, Any]]:
    """Every training that `folder` does not hold yet, then all of them.

    Raises:
        UserError: if the folder holds trainings of another study.
    """
    device = pick_device(study.config["device"])
    folder.mkdir(parents=True, exist_ok=True)
    results, data, seed = {}, None, -1
    for cell in cells:
        path = folder / f"{cell.name}.json"
        if not path.is_file():
            if data is None or cell.seed != seed:
                seed, section = cell.seed, {"seed": cell.seed}
                data = make_data(study.config, device, section)
            space = make_space(study.config["space"], data.info.num_classes, data.info.channels)
            write_json(path, {"study": study.record(), **train(study, cell, space, data, device)})
        results[cell] = read_json(path)
        if results[cell]["study"] != study.record():
            raise UserError(f"{path} is of another study: give another folder with --out, or remove it")
        print(f"{cell.name}: mean score {np.mean(results[cell]['scores'][-1]):.2f}", flush=True)
    return results


def summary(results: Mapping[Cell, Mapping[str, Any]], true: Sequence[float] | None) -> list[dict[str, Any]]:
    """A row for each number of groups and rule; figures that there is nothing for are left out."""
    rows = []
    for groups, by in dict.fromkeys((cell.groups, cell.by) for cell in results):
        seeds = [result for cell, result in results.items() if (cell.groups, cell.by) == (groups, by)]
        final = [result["scores"][-1] for result in seeds]
        row: dict[str, Any] = {"groups": groups, "by": by, "seeds": len(seeds), "mean_score": float(np.mean(final))}
        row["last_trained_rank"] = float(np.mean([_last_rank(result) for result in seeds]))
        row["seconds"] = float(np.mean([result["seconds"] for result in seeds]))
        if len(seeds) > 1:
            row["s_tau"] = agreement(final)
        if true is not None:
            each = [against_truth(result["scores"], true) for result in seeds]
            row["gt_tau_mean"] = [value["mean"] for value in each]
            row["gt_tau_std"] = [value["std"] for value in each]
            row["gt_tau_last"] = [kendall(scores, true) for scores in final]
            for k in (1, 3):
                row[f"top{k}_rank"] = float(np.mean([top_k(scores, true, k).best_rank for scores in final]))
        rows.append(row)
    return rows


def _last_rank(result: Mapping[str, Any]) -> float:
    """Mean rank, by score, of the subnet that was trained last; ties count half."""
    ranks = []
    for scores, trained in zip(np.array(result["scores"]), result["trained"], strict=True):
        mine = scores[trained]
        ranks.append(1 + (scores > mine).sum() + 0.5 * ((scores == mine).sum() - 1))
    return float(np.mean(ranks))


def read_accuracies(path: Path, space: Space) -> Rows:
    """Mean true accuracy of every subnet of a truth file: a published table of the space, or as for the rank mode.

    Raises:
        UserError: if it cannot be read.
    """
    if space.name in published.READERS:
        truth = published.read_truth(path, space)
        return {arch: float(value) for arch, value in zip(truth.archs, truth.top1, strict=True)}
    return {arch: float(np.mean(values)) for arch, values in read_truth(path, space).items()}


def chosen(space: Space, count: int, listed: Path | None, truth: Rows | None) -> list[Arch]:
    """The subnets of a study in the order of their codes, see the top of this file."""
    rng = np.random.default_rng(0)
    if listed is not None:
        archs = read_archs(space, str(listed))
    elif truth is not None:
        archs = list(truth)
    else:
        archs = space.sample(rng, 100 * count)
    archs = list(dict.fromkeys(archs))
    if listed is None and len(archs) > count:
        archs = [archs[i] for i in rng.choice(len(archs), count, replace=False)]
    if truth is not None and (missing := [arch for arch in archs if arch not in truth]):
        raise UserError(f"--archs: the truth says nothing about {missing[0].to_json()}")
    return sorted(archs, key=space.encode)


def plot(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """S-tau and GT-tau (mean over the last mini-batches, bars: Std-k) against the number of groups."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for by in dict.fromkeys(row["by"] for row in rows):
        mine = [row for row in rows if row["by"] == by]
        stable = [row for row in mine if "s_tau" in row]
        true = [row for row in mine if "gt_tau_mean" in row]
        panels[0].plot([r["groups"] for r in stable], [r["s_tau"]["mean"] for r in stable], "o-", label=by)
        means, bars = ([float(np.mean(r[key])) for r in true] for key in ("gt_tau_mean", "gt_tau_std"))
        panels[1].errorbar([r["groups"] for r in true], means, bars, fmt="o-", capsize=3, label=by)
    for axes, title in zip(panels, ("S-tau between seeds", "GT-tau, last mini-batches"), strict=True):
        axes.set_xscale("log", base=2)
        axes.set(title=title, xlabel="groups", ylabel="Kendall tau-b")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| groups | rule | seeds | S-tau | GT-tau Mean-k | GT-tau Std-k | T1 | T3 | last trained | mean score % |"]
    lines.append("|---" * 10 + "|")
    for row in rows:
        s_tau = f"{row['s_tau']['mean']:.3f}" if "s_tau" in row else "-"
        true = ["-"] * 4
        if "gt_tau_mean" in row:
            true = [f"{np.mean(row[key]):.3f}" for key in ("gt_tau_mean", "gt_tau_std")]
            true += [f"{row[key]:.1f}" for key in ("top1_rank", "top3_rank")]
        cells = [row["groups"], row["by"], row["seeds"], s_tau, *true]
        lines.append(f"| {' | '.join(map(str, cells))} | {row['last_trained_rank']:.1f} | {row['mean_score']:.2f} |")
    return "\n".join(lines)


def cells_of(groups: Sequence[int], rules: Sequence[str], seeds: int, subnets: int) -> list[Cell]:
    """Every training, seed by seed; where there is one way to divide, only the first rule is taken."""
    cells = [
        Cell(count, rule, seed)
        for seed in range(seeds)
        for count in groups
        for rule in (rules if 1 < count < subnets else rules[:1])
    ]
    return list(dict.fromkeys(cells))


def main(argv: Sequence[str] | None = None) -> None:
    """Train, summarise, and write `sharing.json`, `.md` and `.png`."""
    options = _options(argv)
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("train", options.settings), resolve=True)
    torch.set_num_threads(options.threads)
    info = make_data(config, torch.device("cpu")).info
    space = make_space(config["space"], info.num_classes, info.channels)
    truth = None if options.truth is None else read_accuracies(options.truth, space)
    archs = chosen(space, options.subnets, options.archs, truth)
    study = Study(config, archs, tuple(options.shared), options.last, options.shuffle, options.split)
    folder = options.out / "sharing" / space.name
    results = run(study, cells_of(options.groups, options.by, options.seeds, len(archs)), folder)
    rows = summary(results, None if truth is None else [truth[arch] for arch in archs])
    write_json(options.out / "sharing.json", {"study": study.record(), "rows": rows})
    (options.out / "sharing.md").write_text(table(rows) + "\n")
    plot(options.out / "sharing.png", rows)
    print(table(rows))


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.sharing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--archs", type=Path)
    parser.add_argument("--subnets", type=int, default=64)
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--by", nargs="+", choices=["similarity", "random"], default=["similarity", "random"])
    parser.add_argument("--shared", nargs="+", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--last", type=int, default=64, help="mini-batches after which all are scored")
    parser.add_argument("--shuffle", action="store_true")
    parser.add_argument("--split", choices=["val", "search", "test"], default="test")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("settings", nargs="*", help="key=value, as for train.py")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    main()
