"""The search loop: ask, score, append, tell."""

from __future__ import annotations

from search.algorithm import Algorithm, Trial, best_of
from search.evaluator import Evaluator
from search.history import History
from supernet.errors import UserError
from supernet.log import RunLog


def run_trials(
    algorithm: Algorithm, evaluator: Evaluator, history: History, evaluations: int, log: RunLog, label: str
) -> list[Trial]:
    """Score `evaluations` subnets, those in `history` not again; fewer where the budget holds no more.

    Raises:
        UserError: if the algorithm finds no subnet at all.
    """
    trials: list[Trial] = []
    best: list[Trial] = []
    exhausted = False
    with log.progress(evaluations, label) as progress:
        while len(trials) < evaluations and not exhausted:
            wanted = min(algorithm.batch, evaluations - len(trials))
            told: list[Trial] = []
            for arch in algorithm.ask(wanted):
                trial = history.trials.get(arch)
                if trial is None:
                    trial = evaluator([arch])[0]
                    history.append(trial)
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
