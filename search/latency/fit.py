"""From measured subnets to a `LatencyModel`: several additive models are fitted, cross-validation picks one.

- `macs`: an intercept and a slope.
- `layers`: ridge regression on counts, MACs, weights and traffic of the kinds of layers (`features.layer_columns`).
- `genes`: ridge regression on units and their options (`features.gene_columns`).
- `layers+genes`: both.
- `table`: the sum of measured layer times, times a slope, plus an intercept; layers that were not measured are
  predicted from those that were.
- `table+layers`: the table, and ridge regression of what it leaves on `layers`.

All minimise relative errors, since a budget of 10 ms needs the precision of 10 ms.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from search.constraint import encoded
from search.latency.features import Columns, gene_columns, key_of, layer_columns, macs_column, summed, work_of
from search.latency.measure import Sample
from search.latency.model import figures
from supernet.cost import Additive, Factor
from supernet.errors import UserError
from supernet.space import Space

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PENALTIES = (1e-9, 1e-4, 1e-2, 0.1, 1.0, 10.0, 100.0)
FOLDS = 5
LEAST = 10  # samples that a fit needs


class Fitted(NamedTuple):
    """A fitted candidate: what cross-validation says of it, %, and the model."""

    kind: str
    penalty: float
    mape: float
    additive: Additive


@dataclass(frozen=True)
class _Design:
    """Columns [N, C] of the samples, how weights [C] become factors, and whether column 0 goes unpenalised."""

    matrix: NDArray[np.float64]
    factors: Callable[[NDArray[np.float64]], list[Factor]]
    free: int = 0


def fit_models(space: Space, samples: Sequence[Sample], seed: int = 0) -> list[Fitted]:
    """Every candidate fitted on all `samples`, the best in cross-validation first.

    Raises:
        UserError: with fewer than 10 samples.
    """
    import numpy as np

    if len(samples) < LEAST:
        raise UserError(
            f"only {len(samples)} subnets to fit on: a latency model needs at least {LEAST}; give more time"
        )
    genes = encoded(space, [sample.arch for sample in samples])
    ms = np.array([sample.ms for sample in samples])
    folds = np.array_split(np.random.default_rng(np.random.SeedSequence([seed, 9])).permutation(len(ms)), FOLDS)
    fixed = _designs(space, genes)
    has_layers = bool(space.units) and all(sample.layers for sample in samples)
    errors: dict[tuple[str, float], list[float]] = defaultdict(list)
    for fold in folds:
        train = np.setdiff1d(np.arange(len(ms)), fold)
        designs = {**fixed, **(_table_designs(space, [samples[i] for i in train], genes) if has_layers else {})}
        for kind, design in designs.items():
            for penalty, weights, offset in _ridge(design.matrix[train], ms[train], design.free, _penalties(kind)):
                predicted = design.matrix[fold] @ weights + offset
                errors[kind, penalty] += np.abs(predicted / ms[fold] - 1).tolist()
    designs = {**fixed, **(_table_designs(space, samples, genes) if has_layers else {})}
    fitted = []
    for kind, design in designs.items():
        mape, penalty = min((float(np.mean(errors[kind, p])), p) for p in _penalties(kind))
        ((_, weights, offset),) = _ridge(design.matrix, ms, design.free, [penalty])
        fitted.append(Fitted(kind, penalty, 100 * mape, Additive(space, design.factors(weights), offset)))
    return sorted(fitted, key=lambda candidate: candidate.mape)


def held_out(fitted: Fitted, samples: Sequence[Sample]) -> dict[str, float]:
    """`figures` on samples that the fit has not seen."""
    import numpy as np

    genes = encoded(fitted.additive.space, [sample.arch for sample in samples])
    return figures(fitted.additive.batch(genes), np.array([sample.ms for sample in samples]))


def layer_table(space: Space, samples: Sequence[Sample]) -> dict[str, list[float]]:
    """All measured milliseconds of every distinct layer, see `features.key_of`."""
    table: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        plan = space.plan(sample.arch)
        for name, ms in (sample.layers or {}).items():
            table[key_of(plan[name])].append(ms)
    return dict(table)


def _penalties(kind: str) -> Sequence[float]:
    return PENALTIES if kind not in ("macs", "table") else PENALTIES[:1]


def _designs(space: Space, genes: NDArray[np.integer]) -> dict[str, _Design]:
    import numpy as np

    options = gene_columns(space)
    by_genes = _Design(options.matrix(genes), options.factors)
    if not space.units:
        return {"genes": by_genes}
    layers, macs = layer_columns(space), macs_column(space)
    by_layers = _Design(summed(layers, genes), _shared(layers))
    count = by_layers.matrix.shape[1]
    both = np.concatenate([by_layers.matrix, by_genes.matrix], axis=1)
    return {
        "macs": _Design(summed(macs, genes), _shared(macs)),
        "layers": by_layers,
        "genes": by_genes,
        "layers+genes": _Design(both, lambda w: [*by_layers.factors(w[:count]), *by_genes.factors(w[count:])]),
    }


def _table_designs(space: Space, samples: Sequence[Sample], genes: NDArray[np.integer]) -> dict[str, _Design]:
    """`table` and `table+layers`, the table made of `samples` alone."""
    import numpy as np

    layers = layer_columns(space)
    factors = _table_factors(space, samples)
    sums: Any = sum(f.table[tuple(genes[:, i] for i in f.reads)] for f in factors)
    table = np.asarray(sums)[:, None]
    count = layers.tables[0][1].shape[-1]

    def scaled(weights: NDArray[np.float64]) -> list[Factor]:
        return [Factor(f.reads, f.table * weights[0]) for f in factors]

    def corrected(weights: NDArray[np.float64]) -> list[Factor]:
        return [*scaled(weights), *_shared(layers)(weights[1 : count + 1])]

    both = np.concatenate([table, summed(layers, genes)], axis=1)
    return {"table": _Design(table, scaled, 1), "table+layers": _Design(both, corrected, 1)}


def _shared(columns: Columns) -> Callable[[NDArray[np.float64]], list[Factor]]:
    """Factors of columns that every unit has, with the same weights in each."""
    return lambda weights: [Factor(reads, table @ weights) for reads, table in columns.tables]


def _table_factors(space: Space, samples: Sequence[Sample]) -> list[Factor]:
    """Milliseconds of every unit: the median of what was measured, or a prediction."""
    import numpy as np

    measured = {key: float(np.median(times)) for key, times in layer_table(space, samples).items()}
    specs = {key_of(spec): spec for i in range(len(space.units)) for _, spec in space.specs(i) if spec is not None}
    missing = [key for key in specs if key not in measured]
    known = dict(measured)
    if missing:
        predict = _layer_regression([specs[key] for key in measured], list(measured.values()))
        known |= dict(zip(missing, predict([specs[key] for key in missing]).tolist(), strict=True))
    factors = []
    for position, unit in enumerate(space.units):
        table = np.zeros([len(space.genes[i].options) for i in unit.reads])
        for codes, spec in space.specs(position):
            if spec is not None:
                table[codes] = known[key_of(spec)]
        factors.append(Factor(unit.reads, table))
    return factors


def _layer_regression(specs: Sequence[Any], ms: Sequence[float]) -> Callable[[Sequence[Any]], NDArray[np.float64]]:
    """Milliseconds of a layer from its work: a trees' regression of the logarithm, which knows no negative times."""
    import numpy as np
    from sklearn.ensemble import ExtraTreesRegressor

    works = [work_of(spec) for spec in specs]
    names = sorted({name for work in works for name in work})

    def rows(of: Sequence[Any]) -> NDArray[np.float64]:
        table = [work_of(spec) for spec in of]
        return np.log1p([[1e3 * work.get(name, 0.0) for name in names] for work in table])

    trees = ExtraTreesRegressor(100, min_samples_leaf=2, random_state=0).fit(rows(specs), np.log(ms))
    return lambda of: np.exp(trees.predict(rows(of)))


def _ridge(
    matrix: NDArray[np.float64], ms: NDArray[np.float64], free: int, penalties: Sequence[float]
) -> list[tuple[float, NDArray[np.float64], float]]:
    """(penalty, weights [C], intercept) that minimise the mean squared relative error plus the penalty.

    Columns are standardised; the intercept and the first `free` columns go unpenalised (almost: 1e-6 of the others).
    """
    import numpy as np
    from scipy import linalg

    weight = (ms.mean() / ms) ** 2
    weight /= weight.sum()
    mean, centre = weight @ matrix, weight @ ms
    spread = np.sqrt(weight @ (matrix - mean) ** 2)
    spread = np.where(spread > 1e-9 * np.maximum(np.abs(mean), 1e-9), spread, np.inf)  # constant: weight 0
    boost = np.where(np.arange(matrix.shape[1]) < free, 1e3, 1.0)
    scaled = (matrix - mean) / spread * boost * np.sqrt(weight)[:, None]
    u, s, vt = linalg.svd(scaled, full_matrices=False, lapack_driver="gesvd")  # gesdd may fail to converge
    target = u.T @ ((ms - centre) * np.sqrt(weight))
    found = []
    for penalty in penalties:
        ridge = penalty * 1e-3 * max(matrix.shape[1], 1)
        gain = np.where(s > 1e-12 * s.max(initial=0.0), s / (s**2 + ridge), 0.0)
        weights = (vt.T @ (gain * target)) * boost / spread
        found.append((penalty, weights, float(centre - mean @ weights)))
    return found
