"""The search loop: ask, score, append, tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from search.algorithm import Algorithm, Indifferent, Trial, best_of
from search.evaluator import Evaluator, stopping
from search.history import History, is_complete
from supernet.errors import UserError
from supernet.log import RunLog
from supernet.space import Arch


def run_trials(
    algorithm: Algorithm,
    evaluator: Evaluator,
    history: History,
    evaluations: int,
    log: RunLog,
    label: str,
    *,
    known: Mapping[Arch, tuple[Trial, str]] | None = None,
    at_once: int = 1,
    keep: int | None = None,
) -> list[Trial]:
    """Score `evaluations` subnets, those in `history` not again; fewer where the budget holds no more.

    Args:
        known: trials of earlier searches, with these searches' names, see `search.history.known_trials`.
        at_once: subnets that the evaluator gets in one call. What it returns is on the disk before the next call.
        keep: the pass over a subnet's images ends once it can neither be among the best `keep` of the trials told
            before nor make a difference to the algorithm (see `search.evaluator.Stopping`); None: all are seen.

    Raises:
        UserError: if the algorithm finds no subnet at all; with `keep`, if it looks at every score.
        ValueError: if the evaluator cannot stop early, with `keep`.
    """
    if keep is not None and not isinstance(algorithm, Indifferent):
        raise UserError(f"stop_early=true: {label} learns from the scores of bad subnets too; drop it")
    trials: list[Trial] = []
    best: list[Trial] = []
    exhausted = False
    with log.progress(evaluations, label) as progress:
        while len(trials) < evaluations and not exhausted:
            archs = algorithm.ask(min(algorithm.batch, evaluations - len(trials)))
            scores = evaluator
            if keep is not None and isinstance(algorithm, Indifferent):
                # A function of the trials told before, so it depends on neither interruptions nor processes.
                scores = stopping(evaluator, min(_threshold(trials, keep), algorithm.indifferent_below))
            told: list[Trial] = []
            for trial in _answers(archs, scores, history, known or {}, at_once):
                told.append(trial)
                best = best_of([*best, trial], 1)
                progress.advance(1, best=f"{best[0].metrics['top1']:.2f}%")
            algorithm.tell(told)
            trials += told
            exhausted = not told
    if not trials:
        raise UserError(f"{label}: no subnet found inside the budget: widen constraint.macs or .params")
    if exhausted:
        log.say(f"{label}: no further subnet inside the budget was found, stopping after {len(trials)}")
    return trials


def _answers(
    archs: Sequence[Arch],
    evaluator: Evaluator,
    history: History,
    known: Mapping[Arch, tuple[Trial, str]],
    at_once: int,
) -> Iterator[Trial]:
    """The trials of `archs`, in order; new ones are appended to the history."""
    new = iter([arch for arch in archs if arch not in history.trials and arch not in known])
    scored: dict[Arch, Trial] = {}
    for arch in archs:
        if arch in history.trials:
            yield history.trials[arch]
            continue
        if arch in known:
            trial, source = known[arch]
            history.append(trial, source)
        else:
            if arch not in scored:
                group = list(islice(new, at_once))
                scored.update(zip(group, evaluator(group), strict=True))
            trial = scored[arch]
            history.append(trial)
        yield trial


def _threshold(trials: Sequence[Trial], keep: int) -> float:
    """The top-1 of the `keep`-th best complete trial; while there are fewer, nothing is below it."""
    best = best_of(filter(is_complete, trials), keep)
    return best[-1].metrics["top1"] if len(best) == keep else float("-inf")
