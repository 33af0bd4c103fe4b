"""`report.md`: what a search did and found, in plain English."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from search.algorithm import Trial
from search.constraint import Budget, range_of
from search.history import is_complete
from search.limits import LABELS, shown
from search.pareto import OBJECTIVES, front
from supernet.space import Arch, Window


@dataclass(frozen=True)
class Findings:
    """All that the report is made of.

    Attributes:
        checkpoint: where the supernet came from.
        algorithm: its name, for people.
        validated: top-1 (percent) of the finalists on the validation split.
        metrics: the chosen subnet's metrics by split: {"val": {"top1": ..}, "test": {"top1": ..}}.
        baseline: trials of a random search of the same budget.
        reused: how many scores were taken from earlier searches.
        measured: costs of the chosen subnet that were measured at the end, by the names of the budget's measures.
        images: images by split.
        files: figures and tables in the same folder, with what they show.
        commands: commands to run next, with what they do.
    """

    checkpoint: str
    algorithm: str
    budget: Budget
    trials: Sequence[Trial]
    chosen: Trial
    validated: Mapping[Arch, float]
    metrics: Mapping[str, Mapping[str, float]]
    calibration_images: int
    images: Mapping[str, int]
    baseline: Sequence[Trial] = ()
    reused: int = 0
    objectives: Sequence[str] = OBJECTIVES
    measured: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    commands: Mapping[str, str] = field(default_factory=dict)


def checks(costs: Mapping[str, float], windows: Mapping[str, Window]) -> list[tuple[str, bool]]:
    """Each bound of a budget with the exact cost beside it, "MACs 283.0M <= 300.0M", and whether it holds."""
    found = []
    for name, (low, high) in windows.items():
        cost = costs[name]
        texts = {value: shown(name, value) for value in (low, cost, high)}
        if len(set(texts.values())) < len(texts):  # too close to tell apart when rounded
            texts = {value: f"{value:,.12g}" for value in texts}
        text = f"{LABELS.get(name, name)} {texts[cost]}"
        if math.isfinite(low):
            text = f"{texts[low]} <= {text}"
        if math.isfinite(high):
            text = f"{text} <= {texts[high]}"
        found.append((text, low <= cost <= high))
    return found


def markdown(found: Findings) -> str:
    """The report."""
    parts = [_head(found), _winner(found), _finalists(found), _compared(found), _links(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(found: Findings) -> str:
    space = found.budget.space
    stopped = sum(not is_complete(trial) for trial in found.trials)
    text = (
        f"{found.algorithm.capitalize()} scored {len(found.trials):,} of the {_count(space.size())} subnets of space "
        f"`{space.name}`, with inherited weights, on {found.images.get('search', 0):,} images held out of training "
        f"(batch-norm statistics of {found.calibration_images:,} training images)."
    )
    if found.reused:
        text += f" {found.reused:,} of these scores were taken from earlier searches of the same supernet."
    if stopped:
        text += f" {stopped:,} subnets that could not be among the best any more were not scored to the end."
    lines = [
        f"# Search of `{found.checkpoint}`",
        "",
        text,
        "",
        f"Budget: {found.budget.describe()}. What the space reaches:",
        "",
        *_table(
            ["cost", "least", "most"],
            [[LABELS.get(n, n), shown(n, low), shown(n, high)] for n, (low, high) in range_of(found.budget).items()],
        ),
    ]
    return "\n".join(lines)


def _winner(found: Findings) -> str:
    costs = found.budget.costs(found.chosen.arch)
    scores = {"search": {"top1": found.chosen.metrics["top1"]}, **found.metrics}
    lines = ["## The chosen subnet", ""]
    lines += _table(["split", "top-1, %"], [[split, f"{score['top1']:.2f}"] for split, score in scores.items()])
    rows = []
    for name, cost in costs.items():
        measured = shown(name, found.measured[name]) if name in found.measured else "-"
        rows.append([LABELS.get(name, name), shown(name, cost), measured])
    lines += ["", *_table(["cost", "predicted or counted", "measured at the end"], rows), ""]
    lines += [f"- {text}: {'ok' if holds else '**violated**'}" for text, holds in checks(costs, found.budget.windows)]
    over = {name: window for name, window in found.budget.windows.items() if name in found.measured}
    for text, holds in checks(found.measured, over):
        lines.append(f"- measured: {text}: {'ok' if holds else '**violated**'}")
    return "\n".join([*lines, "", "```json", json.dumps(found.chosen.arch.to_json()), "```"])


def _finalists(found: Findings) -> str:
    """Best on the validation split first."""
    trials = {trial.arch: trial for trial in found.trials if trial.arch in found.validated}
    ranked = sorted(trials.values(), key=lambda trial: -found.validated[trial.arch])
    names = list(found.budget.costs(found.chosen.arch))
    rows = [
        [
            ("chosen" if trial.arch == found.chosen.arch else str(place)),
            f"{trial.metrics['top1']:.2f}",
            f"{found.validated[trial.arch]:.2f}",
            *(shown(name, trial.metrics[name]) if name in trial.metrics else "-" for name in names),
        ]
        for place, trial in enumerate(ranked, start=1)
    ]
    if not rows:
        return ""
    text = (
        f"The best {len(rows)} of the search were scored again on {found.images.get('val', 0):,} other images, and the "
        "best of these was chosen: the best score of many is flattering, one on fresh images is not."
    )
    header = ["", "top-1 search, %", "top-1 val, %", *(LABELS.get(name, name) for name in names)]
    return "\n".join(["## Finalists", "", text, "", *_table(header, rows)])


def _compared(found: Findings) -> str:
    if not found.baseline:
        return ""
    rows = []
    for label, trials in ((found.algorithm, found.trials), ("random search", found.baseline)):
        best = max(trial.metrics["top1"] for trial in trials if is_complete(trial))
        rows.append([label, str(len(trials)), f"{best:.2f}", str(len(front(trials, found.objectives)))])
    header = ["", "evaluations", "best top-1 search, %", "subnets on the front"]
    return "\n".join(["## Beside random search", "", *_table(header, rows)])


def _links(found: Findings) -> str:
    lines = []
    if found.files:
        lines += ["## Files", "", *(f"- [{file}]({file}): {what}" for file, what in found.files.items())]
        lines += ["", *(f"![{what}]({file})" for file, what in found.files.items() if file.endswith(".png"))]
    if found.commands:
        lines += ["", "## Commands", ""]
        lines += [line for what, command in found.commands.items() for line in (f"{what}:", "```", command, "```")]
    return "\n".join(lines).strip()


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def _count(size: int) -> str:
    return f"{size:,}" if size < 10**7 else f"{size:.3g}"
