"""Choosing again from a finished search, under another budget, without scoring anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from search.algorithm import Trial, best_of
from search.constraint import Budget
from search.history import is_complete
from search.summary import checks
from supernet.errors import UserError
from supernet.runs import read_json
from supernet.space import Arch, Space


@dataclass(frozen=True)
class Selection:
    """What was chosen.

    Attributes:
        feasible: the complete trials inside the budget, in their order.
        finalists: the best of these, best first by the split that decided.
        split: "val" where all finalists were scored on the validation split, else "search": scores on different
            images are not compared with each other.
    """

    winner: Trial
    finalists: list[Trial]
    feasible: list[Trial]
    split: Literal["val", "search"]


def reselect(trials: Sequence[Trial], budget: Budget, validated: Mapping[Arch, float], finalists: int) -> Selection:
    """The best subnet of earlier trials inside a budget.

    The best `finalists` by the search split are taken; among them the validation split decides if it is known of all
    of them (`validated`, percent), else the search split. Among equals the one with fewer MACs is chosen.

    Raises:
        UserError: if no trial is inside; says which one is nearest, and by how much it is outside.
    """
    whole = [trial for trial in trials if is_complete(trial)]
    excess = budget.excess([trial.arch for trial in whole])
    feasible = [trial for trial, outside in zip(whole, excess, strict=True) if not outside]
    if not feasible:
        if not whole:
            raise UserError("that search holds no trials to choose from")
        nearest = whole[int(excess.argmin())]
        broken = ", ".join(text for text, ok in checks(budget.costs(nearest.arch), budget.windows) if not ok)
        raise UserError(
            f"none of the {len(whole):,} subnets of that search is inside the budget ({budget.describe()}); the "
            f"nearest, number {trials.index(nearest)}, breaks {broken}: search anew, without from="
        )
    best = best_of(feasible, finalists)
    if not all(trial.arch in validated for trial in best):
        return Selection(best[0], best, feasible, "search")
    ranked = sorted(best, key=lambda trial: (-validated[trial.arch], trial.metrics["macs"]))
    return Selection(ranked[0], ranked, feasible, "val")


def validated_in(folder: Path, space: Space) -> dict[Arch, float]:
    """Top-1 (percent) on the validation split of the subnets that a search has scored there, from its `front.json`.

    Empty for an interrupted search. Raises UserError for a damaged file.
    """
    path = folder / "front.json"
    if not path.is_file():
        return {}
    content = read_json(path)
    try:
        rows = [*content["rows"], content["chosen"], *content.get("finalists", [])]
        return {space.from_json(row["arch"]): row["top1_val"] for row in rows if row["top1_val"] is not None}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged, or of another space ({error})") from None
