"""Selection by perturbation under budgets: at every decision, against the list of all subnets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_mixture import Fake, separable, space_of, state, uniform
from numpy.typing import NDArray

from search.constraint import Budget
from search.gradient.select.decoded import Decoded
from search.gradient.select.perturb import Perturb, may_count
from supernet.cost import Additive, Measure, Peak
from supernet.errors import UserError
from supernet.lookup import Factor
from supernet.space import Gene, Space


def random_space(rng: np.random.Generator) -> Space:
    """2 to 4 genes, some with a gene below them that counts above some option."""
    genes: list[Gene] = []
    for i in range(int(rng.integers(2, 5))):
        genes.append(Gene(f"choice_{i}", None, tuple(range(int(rng.integers(1, 5))))))
        if rng.random() < 0.5:
            parent = len(genes) - 1
            genes.append(
                Gene(f"below_{i}", None, tuple(range(int(rng.integers(2, 4)))), parent, float(rng.integers(0, 3)))
            )
    return space_of(*genes)


def random_factors(space: Space, rng: np.random.Generator) -> list[Factor]:
    """Costs of every gene, 0 where it does not count, and of pairs of genes that always do."""
    roots = [i for i, gene in enumerate(space.genes) if gene.parent is None]
    factors = []
    for i, gene in enumerate(space.genes):
        reads = (i,) if gene.parent is None else (gene.parent, i)
        table = rng.integers(1, 20, [len(space.genes[j].options) for j in reads])
        if gene.parent is not None:
            table *= np.array([[float(option) > gene.above] for option in space.genes[gene.parent].options])
        factors.append(Factor(reads, table))
    for reads in pairwise(roots):
        factors.append(Factor(reads, rng.integers(0, 20, [len(space.genes[j].options) for j in reads])))
    return factors


@dataclass(frozen=True)
class Opaque:
    """A measure of which nothing is known but its values."""

    measure: Measure

    def batch(self, genes: NDArray[np.integer]) -> NDArray[Any]:
        return self.measure.batch(genes)


def random_budget(space: Space, rng: np.random.Generator, rows: NDArray[np.int64], kind: int) -> Budget | None:
    """A budget that some row, but not every one, is inside."""
    cost, other = (Additive(space, random_factors(space, rng)) for _ in range(2))
    peak = Peak(space, random_factors(space, rng))
    low, high = np.quantile(cost.batch(rows), [0.3, 0.6]).tolist()
    names: dict[int, dict[str, tuple[Measure, float, float]]] = {
        0: {"macs": (cost, -math.inf, np.quantile(cost.batch(rows), rng.random() / 3).item())},
        1: {"macs": (cost, low, high)},
        2: {"macs": (cost, -math.inf, high), "params": (other, -math.inf, float(np.median(other.batch(rows))))},
        3: {"macs": (cost, -math.inf, high), "memory_mb": (peak, -math.inf, float(np.median(peak.batch(rows))))},
        4: {"latency_ms": (Opaque(cost), low, high)},
    }
    chosen = names[kind]
    budget = Budget(space, {n: (a, b) for n, (_, a, b) in chosen.items()}, {n: m for n, (m, _, _) in chosen.items()})
    inside = budget.violations(rows) == 0
    return budget if inside.any() and not inside.all() else None


def test_only_options_that_leave_a_subnet_inside_the_budget_are_considered(tmp_path: Path) -> None:
    """Against the list of all subnets, at every decision of 150 random problems of five kinds."""
    rng = np.random.default_rng(0)
    solved = forced = 0
    while solved < 150:
        space = random_space(rng)
        rows = np.array(list(product(*(range(len(gene.options)) for gene in space.genes))))
        budget = random_budget(space, rng, rows, solved % 5)
        if budget is None:
            continue
        inside = rows[budget.violations(rows) == 0]
        values = [rng.uniform(0, 1, len(gene.options)).tolist() for gene in space.genes]
        fake = Fake([torch.from_numpy(rng.standard_normal(len(v))) for v in values], separable(values), drift=0.3)
        arch = Perturb(interval=1).select(state(budget, fake, tmp_path, seed=solved))
        assert budget.feasible(arch)
        check_decisions(space, fake, inside)
        codes = space.encode(arch)
        scored = {call.gene for call in fake.calls}
        chosen = [i for i, gene in enumerate(space.genes) if len(gene.options) > 1 and space.counts(gene, codes)]
        forced += len(set(chosen) - scored)
        solved += 1
    assert forced > 50  # the budgets bind


def check_decisions(space: Space, fake: Fake, inside: NDArray[np.int64]) -> None:
    """Every decision was made among exactly the options with which a row of `inside` agrees."""
    decisions = [partial for partial, _ in fake.saved if partial["pending"]]
    before = [0 if len(gene.options) == 1 else -1 for gene in space.genes]
    for partial in decisions:
        after = partial["codes"]
        (gene,) = [
            i
            for i, (old, new) in enumerate(zip(before, after, strict=True))
            if old != new and may_count(space, i, {j: code for j, code in enumerate(before) if code >= 0})
        ]
        known = [j for j, code in enumerate(after) if code >= 0 and j != gene]
        # Genes that do not count any more are noted as 0; rows agree whatever they have there.
        agree = np.all(inside[:, known] == np.array(after)[known], axis=1)
        left = sorted(set(inside[agree][:, gene].tolist()))
        assert after[gene] in left
        assert partial["way"] in inside.tolist()
        assert all(way == code for way, code in zip(partial["way"], after, strict=True) if code >= 0)
        assert sorted(call.option for call in fake.calls if call.gene == gene) == (left if len(left) > 1 else [])
        before = after


def test_an_impossible_budget_is_a_users_mistake(tmp_path: Path) -> None:
    space = space_of("abc", "ab")
    cost = Additive(space, [Factor((0,), np.array([2, 3, 4])), Factor((1,), np.array([5, 6]))])
    fake = Fake(uniform(space), separable([[0.0] * 3, [0.0] * 2]))
    budget = Budget(space, {"macs": (-math.inf, 6.0)}, {"macs": cost, "params": cost})
    for select in (Perturb(), Decoded()):
        with pytest.raises(UserError, match="out of reach"):
            select.select(state(budget, fake, tmp_path))
