"""The most probable subnet inside a budget, against the list of all subnets."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from nets import space_of
from numpy.typing import NDArray
from tiny import tiny_space
from tiny_cells import toy
from tiny_vit import tiny_vit

from search.constraint import Budget, Constraint
from search.gradient import decode as decoding
from search.gradient import knapsack
from search.gradient.decode import decode, log_likelihood
from supernet.cost import Additive, Factor, Measure, Peak, macs_of, memory_of, params_of, size_of
from supernet.errors import UserError
from supernet.space import Arch, Gene, Space, Window
from supernet.sweep import extremes
from supernet.window import enumerate_archs

Vectors = list[NDArray[np.float64]]


@lru_cache(maxsize=1)
def spaces() -> dict[str, Space]:
    return {
        "stage": tiny_space(),
        "block": tiny_space(choose="block", resolution=(8,), head={"width": [16]}),
        "vit": tiny_vit(),
        "cell": toy(),
        "chain": chain_space(),
    }


def chain_space() -> Space:
    """Genes that count depending on genes that count depending on others, of words and of numbers; no layers."""
    genes = [
        Gene("depth", None, (0, 1, 2)),
        Gene("inner", 0, (0, 1, 2), parent=0, above=0),
        Gene("inner", 1, (0, 1, 2), parent=0, above=1),
        Gene("op", 0, ("a", "b"), parent=1, above=0),
        Gene("op", 1, ("a", "b", "c"), parent=2, above=1),
        Gene("kernel", None, (3, 5), parent=3, among=("b",)),
    ]
    return Space("chain", genes, [], lambda plan: None, {})  # type: ignore[arg-type, return-value]


class Listed:
    """Every subnet of a space, which genes count in it, and its costs."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.archs = list(enumerate_archs(space))
        self.codes = np.array([space.encode(arch) for arch in self.archs])
        self.counts = np.array([[space.counts(gene, codes) for gene in space.genes] for codes in self.codes.tolist()])

    def scores(self, log_probs: Vectors) -> NDArray[np.float64]:
        """The definition: what the genes that count lose against their best options."""
        total = np.zeros(len(self.archs))
        for i, vector in enumerate(log_probs):
            loss = np.maximum(vector - vector.max(), -1e3)
            total += np.where(self.counts[:, i], loss[self.codes[:, i]], 0)
        return total

    def best(self, budget: Budget, log_probs: Vectors) -> float:
        inside = budget.violations(self.codes) == 0
        return float(self.scores(log_probs)[inside].max())

    def score(self, arch: Arch, log_probs: Vectors) -> float:
        return float(self.scores(log_probs)[self.archs.index(arch)])


@lru_cache(maxsize=16)
def listed(name: str) -> Listed:
    return Listed(spaces()[name])


def random_vectors(space: Space, rng: np.random.Generator, zeros: float = 0.0) -> Vectors:
    vectors = [np.log(rng.dirichlet(np.full(len(gene.options), 0.7))) for gene in space.genes]
    for vector in vectors:
        vector[rng.random(len(vector)) < zeros] = -math.inf
    return [vector if vector.max() > -math.inf else np.zeros(len(vector)) for vector in vectors]


def random_sum(space: Space, rng: np.random.Generator) -> Additive:
    """Real-valued costs, such as latencies, some of them negative: of every gene, if it counts, beside another one."""
    factors = []
    for gene in space.genes:
        reads = {space.genes.index(gene), int(rng.integers(2))}
        while gene.parent is not None:
            reads.add(gene.parent)
            gene = space.genes[gene.parent]
        order = tuple(sorted(reads))
        table = rng.normal(1, 1, size=[len(space.genes[i].options) for i in order])
        for codes in np.ndindex(table.shape):
            row = [0] * len(space.genes)
            for i, code in zip(order, codes, strict=True):
                row[i] = code
            table[codes] *= all(space.counts(space.genes[i], row) for i in order)
        factors.append(Factor(order, table))
    return Additive(space, factors, offset=0.5)


def measures_of(space: Space, rng: np.random.Generator) -> dict[str, Measure]:
    """All that budgets know; the space without layers has random costs in their place."""
    if space.units:
        known: dict[str, Measure] = {"macs": macs_of(space), "params": params_of(space), "size_mb": size_of(space)}
        return {**known, "memory_mb": memory_of(space)}
    whole = [Factor(f.reads, np.rint(9 * f.table).astype(np.int64)) for f in random_sum(space, rng).factors]
    peak = Peak(space, random_sum(space, rng).factors)
    half = Additive(space, whole[::-1], offset=3, unit=2)
    return {"macs": Additive(space, whole), "params": random_sum(space, rng), "size_mb": half, "memory_mb": peak}


def random_window(values: NDArray[Any], rng: np.random.Generator, both: bool) -> Window:
    """Ends at costs of subnets, so that ties with the bound occur."""
    low, high = np.sort(rng.choice(values, size=2)).tolist()
    return (low if both else -math.inf, high)


@pytest.mark.parametrize("both", [False, True], ids=["bound", "window"])
@pytest.mark.parametrize("measure", ["macs", "params", "size_mb"])
@pytest.mark.parametrize("name", ["stage", "block", "vit", "cell", "chain"])
def test_one_window_is_solved_exactly(name: str, measure: str, both: bool) -> None:
    """Of all families, for whole numbers and for others: 30 x 10 random problems."""
    space, known, rng = spaces()[name], listed(name), np.random.default_rng([len(name), both])
    measures = measures_of(space, rng)
    for problem in range(10):
        vectors = random_vectors(space, rng, zeros=0.2 * (problem % 2))
        values = measures[measure].batch(known.codes)
        budget = Budget(space, {measure: random_window(values, rng, both)}, measures)
        arch = decode(budget, vectors)
        assert budget.feasible(arch)
        assert known.score(arch, vectors) == pytest.approx(known.best(budget, vectors), abs=1e-9)


@pytest.mark.parametrize("bins", [20, 500])
@pytest.mark.parametrize("name", ["stage", "block", "vit", "cell", "chain"])
def test_rounded_costs_are_rounded_up(name: str, bins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside, however coarse the bins are, and not below what a budget tighter by one bin a factor allows."""
    space, known, rng = spaces()[name], listed(name), np.random.default_rng(5)
    monkeypatch.setattr(knapsack, "ROUNDED", bins)
    hits = 0
    for _ in range(20):
        vectors, measure = random_vectors(space, rng), random_sum(space, rng)
        scores, costs = known.scores(vectors), measure.batch(known.codes)
        high = float(rng.uniform(np.quantile(costs, 0.1), costs.max()))
        found = knapsack.best_row(space, log_likelihood(space, vectors).factors, measure, (-math.inf, high))
        assert found is not None
        assert found.width > 0
        sure = costs <= high - found.width * len(space.genes)
        if found.row is None:
            assert not sure.any()
            continue
        hits += 1
        assert measure.batch(found.row[None])[0] <= high + 1e-9
        score = known.score(space.decode(found.row.tolist()), vectors)
        assert score <= scores[costs <= high].max() + 1e-9
        assert score >= scores[sure].max(initial=-math.inf) - 1e-9
    assert hits >= 10


@pytest.mark.parametrize("name", ["stage", "block", "vit", "cell", "chain"])
@pytest.mark.parametrize("high", [1e9, math.inf])
def test_rounding_leaves_nothing_out_where_there_is_no_upper_bound(
    name: str, high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most expensive subnet is found where nothing forbids it, also with a lower bound."""
    space, known, rng = spaces()[name], listed(name), np.random.default_rng(9)
    monkeypatch.setattr(knapsack, "ROUNDED", 50)
    for low in (-math.inf, 0.0):
        measure = random_sum(space, rng)
        costs = measure.batch(known.codes)
        window = (low if low else float(np.quantile(costs, 0.5)), high)
        nothing = [Factor((i,), np.zeros(len(gene.options))) for i, gene in enumerate(space.genes)]
        found = knapsack.best_row(space, [*measure.factors, *nothing], measure, window)
        assert found is not None
        assert found.width > 0
        assert found.row is not None
        assert measure.batch(found.row[None])[0] == pytest.approx(costs.max())


@pytest.mark.parametrize("bins", [40, 2**14])
def test_rounded_costs_keep_lower_ends_too(bins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    space, known, rng = spaces()["stage"], listed("stage"), np.random.default_rng(6)
    monkeypatch.setattr(knapsack, "ROUNDED", bins)
    hits = 0
    for _ in range(40):
        vectors, measure = random_vectors(space, rng), random_sum(space, rng)
        low, high = random_window(measure.batch(known.codes), rng, True)
        found = knapsack.best_row(space, log_likelihood(space, vectors).factors, measure, (low, high))
        assert found is not None
        if found.row is not None:
            hits += 1
            assert low - 1e-9 <= measure.batch(found.row[None])[0] <= high + 1e-9
    assert hits >= 10


@pytest.mark.parametrize("listing", [True, False], ids=["listed", "priced"])
@pytest.mark.parametrize("name", ["stage", "block", "cell", "chain"])
def test_several_windows(name: str, listing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow windows around a random subnet: exact where listed, and else for nine in ten problems at least."""
    space, known, rng = spaces()[name], listed(name), np.random.default_rng(3)
    if not listing:
        monkeypatch.setattr(decoding, "LISTED", 0)
    exact = []
    for problem in range(10):
        vectors, measures = random_vectors(space, rng), measures_of(space, rng)
        aim = known.codes[rng.integers(len(known.codes))][None]
        windows = {}
        for measure in ("macs", "params", *(["memory_mb"] if problem % 2 else [])):
            value = float(measures[measure].batch(aim)[0])
            margin = 0.05 * abs(value)
            windows[measure] = (value - margin if problem % 3 else -math.inf, value + margin)
        budget = Budget(space, windows, measures)
        arch = decode(budget, vectors)
        assert budget.feasible(arch)
        exact.append(known.score(arch, vectors) >= known.best(budget, vectors) - 1e-9)
    assert sum(exact) >= (10 if listing else 9)


@pytest.mark.parametrize("name", ["stage", "block", "vit", "chain"])
def test_a_bound_on_a_maximum_is_solved_exactly(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone and beside a bound on a sum: by the knapsack, with nothing else to help it."""
    space, known, rng = spaces()[name], listed(name), np.random.default_rng(4)
    monkeypatch.setattr(decoding, "LISTED", 0)
    monkeypatch.delattr(decoding, "nearly")
    for problem in range(20):
        vectors, measures = random_vectors(space, rng), measures_of(space, rng)
        aim = known.codes[rng.integers(len(known.codes))][None]
        bounded = ("memory_mb", "macs")[: 1 + problem % 2]
        windows = {measure: (-math.inf, float(measures[measure].batch(aim)[0])) for measure in bounded}
        budget = Budget(space, windows, measures)
        arch = decode(budget, vectors)
        assert budget.feasible(arch)
        assert known.score(arch, vectors) == pytest.approx(known.best(budget, vectors), abs=1e-9)


def test_a_measure_of_which_nothing_is_known() -> None:
    """Neither a sum nor a maximum, in a space too large to list: inside, and better than random subnets inside."""

    class Product:
        def batch(self, genes: NDArray[np.integer]) -> NDArray[Any]:
            return macs_of(space).batch(genes) * 1e-6 * params_of(space).batch(genes)

    space, rng = space_of("mbv3_tiny"), np.random.default_rng(0)
    rows = rng.integers(0, [len(gene.options) for gene in space.genes], size=(2000, len(space.genes)))
    bound = float(np.quantile(Product().batch(rows), 0.1))
    budget = Budget(space, {"energy": (-math.inf, bound)}, {"energy": Product()})
    vectors = random_vectors(space, rng)
    likelihood = log_likelihood(space, vectors)
    arch = decode(budget, vectors)
    assert budget.feasible(arch)
    inside = rows[budget.violations(rows) == 0]
    assert likelihood.batch(np.array([space.encode(arch)]))[0] > likelihood.batch(inside).max()


@pytest.mark.parametrize("name", ["ofa_mbv3", "alphanet", "autoformer_tiny"])
def test_large_spaces(name: str) -> None:
    """Inside one bound and inside three, and near the best that one bound could give with a little more room."""
    space, rng = space_of(name), np.random.default_rng(1)
    measure = macs_of(space)
    least, most = extremes(space, measure)
    for share in (0.05, 0.2):
        vectors = random_vectors(space, rng)
        likelihood = log_likelihood(space, vectors)
        bound = least + share * (most - least)
        arch = decode(Constraint(macs=bound).on(space), vectors)
        assert space.plan(arch).macs <= bound
        found = knapsack.best_row(space, likelihood.factors, measure, (-math.inf, bound))
        assert found is not None
        bins = len(measure.factors) + len(space.genes)
        looser = knapsack.best_row(space, likelihood.factors, measure, (-math.inf, bound + bins * found.width))
        assert looser is not None
        upper = likelihood.batch(np.array(looser.row)[None])[0]
        score = likelihood.batch(np.array([space.encode(arch)]))[0]
        assert score <= upper + 1e-9
        assert score >= upper - 0.5
        (aim,) = space.sample(rng, 1, macs=(0.9 * bound, bound))
        costs = Budget(space, {}, measures_of(space, rng)).costs(aim)
        limits = {"params": costs["params"], "memory_mb": costs["memory_mb"]}
        three = Constraint(macs=[0.9 * bound, bound], **limits).on(space)
        assert three.feasible(decode(three, vectors))


def test_no_budget_is_the_best_option_of_every_gene() -> None:
    for name, space in spaces().items():
        vectors = random_vectors(space, np.random.default_rng(len(name)))
        budget = Budget(space, {}, measures_of(space, np.random.default_rng(0)))
        assert decode(budget, vectors) == space.decode([int(vector.argmax()) for vector in vectors])


def test_depth_is_not_punished_for_having_more_genes() -> None:
    """Deep is more probable; the probabilities of its blocks' kernels are all 1/2, whose product is small."""
    space = chain_space()
    vectors = [np.log(np.full(len(gene.options), 1 / len(gene.options))) for gene in space.genes]
    vectors[0] = np.log([0.3, 0.3, 0.4])
    budget = Budget(space, {}, {})
    assert decode(budget, vectors)["depth"] == 2
    cost = Additive(space, [Factor((1,), np.array([0, 1, 1]))])
    assert decode(Budget(space, {"macs": (1.0, 1.0)}, {"macs": cost}), vectors)["depth"] == 2


def test_of_equals_the_first() -> None:
    space = tiny_space()
    vectors = [np.zeros(len(gene.options)) for gene in space.genes]
    assert decode(Budget(space, {}, {}), vectors) == space.smallest()
    low = macs_of(space).batch(np.array([space.encode(space.smallest())]))[0].item()
    budget = Constraint(macs=[low + 1, 10 * low]).on(space)
    first = decode(budget, vectors)
    assert first != space.smallest()
    assert all(decode(budget, vectors) == first for _ in range(3))


def test_impossible_options_are_taken_where_nothing_else_is_inside() -> None:
    space = tiny_space()
    largest = space.encode(space.largest())
    vectors = [np.full(len(gene.options), -math.inf) for gene in space.genes]
    for vector, code in zip(vectors, largest, strict=True):
        vector[code] = 0.0
    budget = Constraint(macs=float(space.plan(space.smallest()).macs)).on(space)
    assert decode(budget, vectors) == space.smallest()
    assert decode(Budget(space, {}, {}), vectors) == space.largest()
    nothing = [np.full(len(gene.options), -math.inf) for gene in space.genes]
    assert decode(budget, nothing) == space.smallest()


def test_tensors_of_any_kind_and_any_constant() -> None:
    space = tiny_space()
    vectors = random_vectors(space, np.random.default_rng(0))
    budget = Constraint(macs=0.5).on(space)
    arch = decode(budget, vectors)
    assert decode(budget, [vector + 3.0 for vector in vectors]) == arch
    for dtype in (torch.float64, torch.float32):
        assert decode(budget, [torch.tensor(v, dtype=dtype, requires_grad=True) for v in vectors]) == arch
    assert budget.feasible(decode(budget, [torch.tensor(v, dtype=torch.bfloat16) for v in vectors]))


@pytest.mark.parametrize(
    "constraint", [{"macs": 10.0}, {"macs": 10.0, "params": 1.0}, {"memory_mb": 1e-6}, {"params": [3000.1, 3000.2]}]
)
@pytest.mark.parametrize("name", ["stage", "vit"])
def test_budgets_that_no_subnet_meets(name: str, constraint: dict[str, Any]) -> None:
    space = spaces()[name]
    with pytest.raises(UserError, match=r"out of reach|no subnet"):
        decode(Constraint(**constraint).on(space), random_vectors(space, np.random.default_rng(0)))


def test_windows_that_exclude_each_other() -> None:
    space, known = spaces()["stage"], listed("stage")
    macs, params = macs_of(space).batch(known.codes), params_of(space).batch(known.codes)
    # Fewest parameters, but more MACs than any subnet of so few has.
    high = float(macs[params == params.min()].max())
    budget = Constraint(macs=[high + 1, float(macs.max())], params=float(params.min())).on(space)
    with pytest.raises(UserError, match="no subnet"):
        decode(budget, random_vectors(space, np.random.default_rng(0)))


def test_mistakes_in_the_vectors() -> None:
    space = tiny_space()
    vectors = random_vectors(space, np.random.default_rng(0))
    budget = Budget(space, {}, {})
    with pytest.raises(ValueError, match="has 11 genes, got 1 vectors"):
        decode(budget, vectors[:1])
    with pytest.raises(ValueError, match=r"resolution: expected 2 log probabilities, got \[3\]"):
        decode(budget, [np.zeros(3), *vectors[1:]])
    with pytest.raises(ValueError, match="resolution: log probabilities are not numbers"):
        decode(budget, [np.array([0.0, math.nan]), *vectors[1:]])
