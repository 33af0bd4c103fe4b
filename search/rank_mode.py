"""`python search.py mode=rank`: how well inherited accuracy ranks subnets whose true accuracy is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from search.evaluator import SupernetEvaluator
from search.figures import scatter
from search.history import History
from search.job import Job, open_job
from search.ranking import against_truth, agreement, summarise
from search.truth import read_truth
from supernet.errors import UserError
from supernet.log import RunLog
from supernet.runs import RESULTS, environment, new_run, write_json
from supernet.space import Arch

LABELS = {"kendall": "Kendall's τ-b", "spearman": "Spearman's ρ", "weighted_kendall": "weighted τ"}


def rank(config: Mapping[str, Any], checkpoints: Sequence[str | None], truth: Path, split: str = "search") -> float:
    """Score the subnets of `truth` with the weights of each checkpoint, and compare. Returns the mean Kendall's tau-b.

    Writes `results.json`, `report.md`, `scatter.png` and the scores to a new folder beside the first checkpoint's
    searches. With several checkpoints (seeds, orders, epochs) it also says how far their rankings agree (S-tau).

    Args:
        config: of a search, as for `search.job.open_job`; its `checkpoint` is replaced.
        truth: see `search.truth.read_truth`.
        split: the images that the subnets are scored on.

    Raises:
        UserError: for wrong settings, missing files, subnets of another space, or checkpoints of different spaces.
    """
    if not checkpoints:
        raise UserError("checkpoint=[]: name at least one training run")
    jobs = [open_job({**config, "checkpoint": checkpoint}) for checkpoint in checkpoints]
    space = jobs[0].budget.space
    for job in jobs[1:]:
        if job.budget.space.config != space.config:
            raise UserError(
                f"{job.run.source} and {jobs[0].run.source} are of different spaces: rank them on their own"
            )
    known = read_truth(truth, space)
    folder = new_run(jobs[0].root, "rank")
    write_json(folder / "config.json", {**config, "checkpoint": [str(job.run.source) for job in jobs]})
    write_json(folder / "environment.json", environment())
    with RunLog(folder) as log:
        log.say(f"{len(known)} subnets of {truth}, {len(jobs)} checkpoint{'s' * (len(jobs) > 1)}; folder: {folder}")
        scores = [_score(job, list(known), folder / f"scores-{i}.jsonl", split, log) for i, job in enumerate(jobs)]
        results = compare(scores, known, [str(job.run.source) for job in jobs], jobs[0].settings.seed)
        write_json(folder / RESULTS, {"kind": "rank", "truth": str(truth), "split": split, **results})
        true = [sum(values) / len(values) for values in known.values()]
        labels = (f"top-1 with inherited weights, {split} split, %", "true accuracy")
        scatter(folder / "scatter.png", scores[0], true, labels, f"{len(known)} subnets of {space.name}")
        text = report(results, str(truth), split)
        (folder / "report.md").write_text(text, encoding="utf-8")
        for line in text.splitlines():
            if line.startswith("- "):
                log.say(line.removeprefix("- "))
        log.say(f"report:  {folder / 'report.md'}")
    mean: float = results["gt_tau"]["mean"]
    return mean


def compare(
    scores: Sequence[Sequence[float]], known: Mapping[Arch, Sequence[float]], names: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Everything the report says: of each checkpoint by itself, of all together, and of the truth's own seeds."""
    true = [sum(values) / len(values) for values in known.values()]
    ks = (1, 5, 10, max(1, len(true) // 10))
    seeds = min(map(len, known.values()))
    runs = [[values[i] for values in known.values()] for i in range(seeds)]
    return {
        "subnets": len(true),
        "checkpoints": {
            f"{i}: {name}": summarise(s, true, ks, seed=seed)
            for i, (name, s) in enumerate(zip(names, scores, strict=True))
        },
        "gt_tau": against_truth(scores, true),
        "s_tau": agreement(scores) if len(scores) > 1 else None,
        "truth_s_tau": agreement(runs) if seeds > 1 else None,
    }


def report(results: Mapping[str, Any], truth: str, split: str) -> str:
    """`report.md`, from what `compare` returns."""
    lines = [f"# Ranking of {results['subnets']:,} subnets of `{truth}`", "", f"Scored on the {split} split.", ""]
    for name, found in results["checkpoints"].items():
        lines += [f"## Checkpoint {name}", "", *_correlations(found), "", *_choices(found), ""]
        tied = found["ties"]
        lines += [f"Ties: {tied['predicted']} predictions and {tied['true']} truths share their value.", ""]
        lines += [f"- {line}" for line in _verdict(found)] + [""]
    mean, spread = results["gt_tau"]["mean"], results["gt_tau"]["std"]
    lines += ["## Together", "", f"- τ-b to the truth: {mean:.3f} (standard deviation over checkpoints {spread:.3f})"]
    for key, label in (
        ("s_tau", "the rankings of the checkpoints agree with each other (S-τ)"),
        ("truth_s_tau", "the truth's own seeds agree with each other"),
    ):
        if results[key]:
            tau = results[key]
            lines.append(f"- {label}: τ-b {tau['mean']:.3f} (highest {tau['max']:.3f}, lowest {tau['min']:.3f})")
    return "\n".join([*lines, "", "![true against inherited accuracy](scatter.png)"]) + "\n"


def _correlations(found: Mapping[str, Any]) -> list[str]:
    lines = ["| 95% interval in brackets | all subnets | top decile by truth |", "| --- | --- | --- |"]
    for key, label in LABELS.items():
        parts = [found[part] for part in ("all", "top_decile")]
        cells = ["fewer than 3 subnets" if part is None else _cell(part[key]) for part in parts]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def _choices(found: Mapping[str, Any]) -> list[str]:
    lines = ["| K | P@K | best rank | BR@K | WR@K | regret@K | best of all among them |", f"|{' --- |' * 7}"]
    for row in found["top_k"]:
        shares = f"{row['best_rank_share']:.3f} | {row['worst_rank_share']:.3f} | {row['regret']:.2f}"
        hit = "yes" if row["hit"] else "no"
        lines.append(f"| {row['k']} | {row['precision']:.2f} | {row['best_rank']} | {shares} | {hit} |")
    return lines


def _verdict(found: Mapping[str, Any]) -> list[str]:
    tau = found["all"]["kendall"]["value"]
    lines = [f"τ-b over all {found['subnets']} subnets: {tau:.3f}"]
    decile = found["top_decile"]
    if decile is not None and decile["kendall"]["value"] <= 0:
        lines.append(
            "within the top decile the scores do not rank: they can give a shortlist, not the best subnet; "
            "train the finalists on their own before choosing"
        )
    return lines


def _cell(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['value']:.3f} ({low:.3f} to {high:.3f})"


def _score(job: Job, archs: Sequence[Arch], path: Path, split: str, log: RunLog) -> list[float]:
    evaluator = SupernetEvaluator(job.run.net, job.images, job.calibration_images, job.budget.costs, split)
    history = History(path, job.budget.space, {**job.setup(), "split": split})
    with log.progress(len(archs), str(job.run.source)) as progress:
        for arch in archs:
            history.append(evaluator([arch])[0])
            progress.advance(1)
    return [history.trials[arch].metrics["top1"] for arch in archs]
