"""What the cells that gradient-based searches of `toy_cell` chose are worth when they are trained alone.

    python -m benchmarks.gradient_toy <search folder> ... [--truth <table>] [--out <folder>]

For every finished search: the stand-alone top-1 of the chosen cell, and of the cell that each epoch decoded, in the
published table (TangleNAS, Fashion-MNIST). Prints a row for each seed, mean and spread for each method, and writes
`gradient_toy.json` and `.png`. A method is the algorithm, with its way to select where that is not decoding.

The table may hold a part of the space only. A cell that is not in it is printed as such, with a prediction from the
rows that are: ridge regression on the operation of every edge and on every pair of edges. It is for orientation, and
never enters the means of published figures; how good it is on rows that it has not seen is printed too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks import arms
from benchmarks.gradient_plot import plot
from benchmarks.ground_truth import SETTINGS
from benchmarks.statistics import shown, spread
from benchmarks.truth import Truth, read_truth
from search.gradient.trace import TRACE
from search.ranking import kendall
from supernet.build import make_space
from supernet.errors import UserError
from supernet.log import read_rows
from supernet.runs import RESULTS, read_json, write_json
from supernet.space import Arch, Space
from supernet.window import enumerate_archs

SPACE = "toy_cell"
FOLDS = 10
PENALTIES = np.logspace(-1, 3, 9)
# Of all 4,096 published rows, percent; and what a search is wanted to reach: mean over seeds, and the worst seed.
WHOLE = {"mean": 90.02, "95th percentile": 91.21, "best": 91.63}
WANTED_MEAN, WANTED_LEAST = 91.0, 90.6


@dataclass(frozen=True)
class Search:
    """A finished search: the cell that it chose, and those that its epochs decoded, the first epoch first."""

    method: str
    seed: int
    chosen: Arch
    decoded: tuple[Arch, ...]
    inherited: float | None
    seconds: float


@dataclass(frozen=True)
class Value:
    """What is known of a cell, percent: its published top-1, else a prediction. `percentile`: the share of the
    published rows that are no better; of a prediction, of the predictions of the whole space."""

    top1: float
    published: bool
    percentile: float


class Oracle:
    """Published accuracies of cells, and predictions of those that were not published.

    Raises:
        UserError: if there are too few rows to predict from.
    """

    def __init__(self, truth: Truth, space: Space) -> None:
        if len(truth.archs) < 2 * FOLDS:
            raise UserError(f"{len(truth.archs)} rows of space {space.name!r}: predictions need {2 * FOLDS} at least")
        self.space = space
        self.known = dict(zip(truth.archs, truth.top1.tolist(), strict=True))
        inputs, self._top1 = features(space, truth.archs), truth.top1
        self.quality = cross_validated(inputs, self._top1)
        self._model = fitted(inputs, self._top1)
        self._predicted = self._model.predict(features(space, tuple(enumerate_archs(space))))

    def __call__(self, arch: Arch) -> Value:
        if arch in self.known:
            top1 = self.known[arch]
            return Value(top1, True, 100 * float((self._top1 <= top1).mean()))
        top1 = float(self._model.predict(features(self.space, [arch]))[0])
        return Value(top1, False, 100 * float((self._predicted <= top1).mean()))


def features(space: Space, archs: Sequence[Arch]) -> NDArray[np.float64]:
    """Indicators of the option of every gene, and of every pair of genes [N, F]."""
    codes = np.array([space.encode(arch) for arch in archs])
    free = [i for i, gene in enumerate(space.genes) if len(gene.options) > 1]
    single = {i: np.eye(len(space.genes[i].options))[codes[:, i]] for i in free}
    pairs = [(single[i][:, :, None] * single[j][:, None, :]).reshape(len(codes), -1) for i, j in combinations(free, 2)]
    return np.concatenate([*single.values(), *pairs], axis=1)


def fitted(inputs: NDArray[np.float64], top1: NDArray[np.float64]) -> Any:
    """Ridge regression; the penalty by its closed-form leave-one-out error."""
    from sklearn.linear_model import RidgeCV

    return RidgeCV(alphas=PENALTIES).fit(inputs, top1)


def cross_validated(inputs: NDArray[np.float64], top1: NDArray[np.float64]) -> dict[str, float]:
    """On rows left out in turn: root mean square error, and that of the mean (points); Kendall's tau-b."""
    folds = np.random.default_rng(0).permutation(len(top1)) % FOLDS
    predicted = np.empty(len(top1))
    for fold in range(FOLDS):
        rest = folds != fold
        predicted[~rest] = fitted(inputs[rest], top1[rest]).predict(inputs[~rest])
    error = float(np.sqrt(np.mean((predicted - top1) ** 2)))
    return {"rows": len(top1), "error": error, "error_of_mean": float(top1.std()), "tau": kendall(predicted, top1)}


def read_search(folder: Path, space: Space) -> Search:
    """A finished gradient-based search.

    Raises:
        UserError: if it is not finished, not gradient-based, or of another space.
    """
    for name in (RESULTS, TRACE):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing, so this is no finished gradient-based search")
    results = read_json(folder / RESULTS)
    try:
        winner, algorithm = results["winner"], results["algorithm"]
        chosen = space.from_json(winner["arch"])
        decoded = tuple(space.from_json(record["decoded"]) for record in read_rows(folder / TRACE))
        select = algorithm["select"]["_target_"].rpartition(".")[2].lower()
        method = algorithm["name"] if select == "decoded" else f"{algorithm['name']}, {select}"
        test = winner["metrics"].get("test", {}).get("top1")
        return Search(method, results["seed"], chosen, decoded, test, float(results["learned_seconds"]))
    except (UserError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{folder} is no gradient-based search of {space.name} ({reason})") from None


def seed_facts(search: Search, oracle: Oracle) -> dict[str, Any]:
    """Figures of one search."""
    path = [oracle(arch) for arch in search.decoded]
    return {
        "seed": search.seed,
        "arch": search.chosen.to_json(),
        **vars(oracle(search.chosen)),
        "inherited_test_top1": search.inherited,
        "seconds": search.seconds,
        "epochs": {"top1": [value.top1 for value in path], "published": [value.published for value in path]},
    }


def summary(searches: Sequence[Search], oracle: Oracle) -> dict[str, Any]:
    """Every method with its seeds."""
    methods: dict[str, Any] = {}
    for search in sorted(searches, key=lambda search: (search.method, search.seed)):
        methods.setdefault(search.method, {"seeds": []})["seeds"].append(seed_facts(search, oracle))
    for facts in methods.values():
        published = [row["top1"] for row in facts["seeds"] if row["published"]]
        facts["published"] = {**spread(published), "least": min(published, default=float("nan"))}
        facts["with_predictions"] = spread([row["top1"] for row in facts["seeds"]])
        facts["verdict"] = verdict(facts["seeds"])
    return {"space": oracle.space.name, "whole": WHOLE, "prediction": oracle.quality, "methods": methods}


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Whether the wanted accuracy is reached, as far as the table can tell."""
    wanted = f"mean {WANTED_MEAN:.1f}, no seed below {WANTED_LEAST:.1f}"
    published = [row["top1"] for row in rows if row["published"]]
    if published and min(published) < WANTED_LEAST:
        return f"missed ({wanted})"
    if missing := len(rows) - len(published):
        return f"open, {missing} of {len(rows)} not given ({wanted})"
    return f"{'reached' if np.mean(published) >= WANTED_MEAN else 'missed'} ({wanted})"


def table(method: str, facts: Mapping[str, Any]) -> Table:
    """The seeds of one method, to read."""
    columns = ("alone, published %", "predicted %", "percentile", "inherited, test %", "minutes")
    drawn = Table("seed", "normal", "reduce", *columns, title=method, show_lines=True)
    for row in facts["seeds"]:
        cells = ["\n".join(row["arch"][kind]) for kind in ("normal", "reduce")]
        both = (f"{row['top1']:.2f}", "") if row["published"] else ("not given", f"{row['top1']:.2f}")
        mark = "" if row["published"] else " (predicted)"
        inherited = "-" if row["inherited_test_top1"] is None else f"{row['inherited_test_top1']:.2f}"
        ends = (f"{row['percentile']:.1f}{mark}", inherited, f"{row['seconds'] / 60:.1f}")
        drawn.add_row(str(row["seed"]), *cells, *both, *ends)
    return drawn


def say(found: Mapping[str, Any], console: Console) -> None:
    """Print everything."""
    for method, facts in found["methods"].items():
        console.print(table(method, facts))
        given, seeds = int(facts["published"]["n"]), len(facts["seeds"])
        console.print(f"published ({given} of {seeds} seeds): {shown(facts['published'], 2)}; {facts['verdict']}")
        if given < seeds:
            console.print(f"with predictions in place of what is not given: {shown(facts['with_predictions'], 2)}")
    quality, whole = found["prediction"], ", ".join(f"{name} {value}" for name, value in found["whole"].items())
    console.print(
        f"predictions, on rows left out: error {quality['error']:.2f} points (the mean's: "
        f"{quality['error_of_mean']:.2f}), tau {quality['tau']:.3f}, from {quality['rows']:,} rows; the space: {whole}",
        soft_wrap=True,
    )


def main() -> None:
    options = _options()
    console = Console(highlight=False, width=None if Console().is_terminal else 150)
    try:
        config = arms.composed((f"space={SPACE}",))["space"]
        space = make_space({**config, "resolution": [28]}, 10, 1)
        oracle = Oracle(read_truth(options.truth or Path("data") / SETTINGS[SPACE].table, space), space)
        searches = [read_search(folder, space) for folder in options.runs]
    except UserError as error:
        sys.exit(str(error))
    found = summary(searches, oracle)
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "gradient_toy.json", {"environment": arms.machine(), **found})
    plot(options.out / "gradient_toy.png", found)
    say(found, console)


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser("python -m benchmarks.gradient_toy", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished searches")
    parser.add_argument("--truth", type=Path, help="the published table; default: data/<its usual name>")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
