"""Selection by perturbation: what it removes, what it freezes, and that it can be interrupted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_mixture import Fake, KilledError, free, separable, space_of, state, uniform
from nets import CONFIGS
from omegaconf import OmegaConf
from tiny_cells import bench
from torch import Tensor

from search.constraint import Budget
from search.gradient.select.decoded import Decoded
from search.gradient.select.perturb import Perturb, may_count
from supernet.construct import construct
from supernet.cost import Additive
from supernet.errors import UserError
from supernet.evaluate import Metrics
from supernet.lookup import Factor
from supernet.space import Arch, Gene

# What is chosen --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["top1", "loss"])
def test_a_planted_useful_option_is_found_where_magnitude_misleads(criterion: Any, tmp_path: Path) -> None:
    """y = sum over edges and options of p c x: c is 1 for one option of each edge, which has a small alpha."""
    useful = [2, 0, 1, 2]
    space = space_of(*(("a", "b", "c") for _ in useful))
    logits = [torch.tensor([0.0, 0.0, 0.0], dtype=torch.float64) for _ in useful]
    for vector, option in zip(logits, useful, strict=True):
        vector[(option + 1) % 3] = 2.0  # a useless option that the search preferred
    x = torch.randn(400, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = (x.sum(1) > 0).long()

    def score(probs: Sequence[Tensor]) -> Metrics:
        y = sum(p[k] * x[:, edge] for edge, (p, k) in enumerate(zip(probs, useful, strict=True)))
        scores = torch.stack([-torch.as_tensor(y), torch.as_tensor(y)], 1)
        right = (scores.argmax(1) == targets).double().mean()
        return Metrics(100 * right.item(), F.cross_entropy(scores, targets).item(), len(x))

    fake = Fake(logits, score)
    by_magnitude = Decoded().select(state(free(space), fake, tmp_path))
    assert space.encode(by_magnitude) == tuple((k + 1) % 3 for k in useful)
    assert not fake.calls
    found = Perturb(interval=0, criterion=criterion).select(state(free(space), fake, tmp_path))
    assert space.encode(found) == tuple(useful)


def test_of_a_separable_table_of_cells_the_best_is_found_in_any_order(tmp_path: Path) -> None:
    """The accuracy of a mixture is the mean over all 15,625 cells, by their (unnormalised) probabilities."""
    space = bench()
    values = np.random.default_rng(0).uniform(5, 15, (6, 5))
    table = torch.from_numpy(sum(np.expand_dims(v, tuple(j for j in range(6) if j != i)) for i, v in enumerate(values)))

    def score(probs: Sequence[Tensor]) -> Metrics:
        mean = torch.einsum("abcdef,a,b,c,d,e,f->", table, *probs[1:])
        return Metrics(mean.item(), 1.0, 1)

    best = (0, *values.argmax(1).tolist())
    orders = set()
    for seed in range(4):
        fake = Fake(uniform(space), score)
        arch = Perturb(interval=0).select(state(free(space), fake, tmp_path, seed))
        assert space.encode(arch) == best
        assert len(fake.calls) == 6 * 5
        orders.add(tuple(dict.fromkeys(call.gene for call in fake.calls)))
    assert len(orders) == 4


def test_the_first_of_equals_is_chosen(tmp_path: Path) -> None:
    space = space_of("abc", "abcd")
    fake = Fake(uniform(space), lambda probs: Metrics(50.0, 1.0, 1))
    arch = Perturb(interval=0).select(state(free(space), fake, tmp_path))
    assert space.encode(arch) == (0, 0)


def test_the_criterion_says_which_score_counts_and_broken_numbers_are_the_worst(tmp_path: Path) -> None:
    space = space_of("abc")

    good = [Metrics(10.0, 1.0, 1), Metrics(50.0, 2.0, 1), Metrics(20.0, 1.5, 1)]
    broken = [*good[:2], Metrics(20.0, math.nan, 1)]
    for criterion, scores, expected in (("top1", good, 0), ("loss", good, 1), ("top1", broken, 2), ("loss", broken, 2)):

        def score(probs: Sequence[Tensor], scores: list[Metrics] = scores) -> Metrics:
            return scores[int((probs[0] == 0).nonzero())]

        fake = Fake(uniform(space), score)
        arch = Perturb(interval=0, criterion=criterion, max_images=7).select(  # type: ignore[arg-type]
            state(free(space), fake, tmp_path)
        )
        assert space.encode(arch) == (expected,)
        assert fake.images == {7}


# How it goes -----------------------------------------------------------------------------------------------------


def test_one_option_is_removed_at_a_time_and_decided_genes_stay_one_hot(tmp_path: Path) -> None:
    space = space_of("abc", "ab", "x", "abcd", "abc")
    rng = np.random.default_rng(1)
    score = separable([rng.uniform(0, 1, len(gene.options)).tolist() for gene in space.genes])
    fake = Fake(uniform(space), score, drift=1.0)
    arch = Perturb(interval=2).select(state(free(space), fake, tmp_path))
    codes = space.encode(arch)
    genes = list(dict.fromkeys(call.gene for call in fake.calls))
    assert sorted(genes) == [0, 1, 3, 4]
    assert [(call.gene, call.option) for call in fake.calls] == [
        (gene, option) for gene in genes for option in range(len(space.genes[gene].options))
    ]
    drawn = uniform(space)
    epoch = 0
    for place, gene in enumerate(genes):
        for call in (call for call in fake.calls if call.gene == gene):
            for other, vector in enumerate(call.probs):
                expected = drawn[other].softmax(0)
                if other in genes[:place] or other == 2:
                    expected = torch.zeros_like(vector)
                    expected[codes[other]] = 1
                    assert call.support[other] == (codes[other],)
                if other == gene:
                    expected[call.option] = 0  # and the others keep what they had
                    assert call.option not in call.support[other]
                assert torch.equal(vector, expected)
        for _ in range(2):
            noise = np.random.default_rng(epoch)
            drawn = [x + torch.from_numpy(noise.standard_normal(len(x))) for x in drawn]
            epoch += 1
    frozen = [{2: 0} | {gene: codes[gene] for gene in genes[: place + 1]} for place in range(4) for _ in range(2)]
    assert fake.tuned == [(decided, epoch) for epoch, decided in enumerate(frozen)]
    assert Perturb(interval=2).epochs(space) == 8 == len(fake.tuned)


def test_without_a_choice_nothing_is_scored_or_tuned(tmp_path: Path) -> None:
    space = space_of("a", (3,), "b")
    fake = Fake(uniform(space), lambda probs: pytest.fail("scored"))
    assert space.encode(Perturb().select(state(free(space), fake, tmp_path))) == (0, 0, 0)
    assert not fake.tuned
    assert Perturb().epochs(space) == 0


def test_genes_that_no_longer_count_are_not_scored(tmp_path: Path) -> None:
    """Depth 1 is best by far: the second block's kernel, and what depends on that, only count before it is chosen."""
    genes = [
        Gene("depth", None, (1, 2)),
        Gene("kernel", 0, (3, 5)),
        Gene("kernel", 1, (3, 5), parent=0, above=1),
        Gene("expand", None, (4, 6), parent=2, above=3),
    ]
    space = space_of(*genes)
    score = separable([[1.0, 0.0], [0.2, 0.3], [0.2, 0.3], [0.2, 0.3]])
    skipped = set()
    for seed in range(12):
        fake = Fake(uniform(space), score)
        arch = Perturb(interval=1).select(state(free(space), fake, tmp_path, seed))
        assert arch.to_json() == {"depth": 1, "kernel": [5, 3], "expand": 4}
        order = list(dict.fromkeys(call.gene for call in fake.calls))
        assert order[order.index(0) :] == [0, *([1] if order.index(0) < order.index(1) else [])]
        assert len(fake.tuned) == len(order)
        skipped.add(4 - len(order))
    assert skipped == {0, 1, 2}


def test_whether_a_gene_may_count_looks_through_undecided_ancestors() -> None:
    genes = [
        Gene("depth", None, (1, 2)),
        Gene("kernel", None, (3, 5), parent=0, above=1),
        Gene("expand", None, (4, 6), parent=1, above=3),
    ]
    space = space_of(*genes)
    expected = {
        (None, None): True,
        (None, 0): False,
        (None, 1): True,
        (0, None): False,
        (0, 1): False,
        (1, None): True,
        (1, 0): False,
        (1, 1): True,
    }
    for codes, answer in expected.items():
        decided = {gene: code for gene, code in enumerate(codes) if code is not None}
        assert may_count(space, 2, decided) is answer


def test_the_resolution_is_decided_by_probability_and_never_mixed(tmp_path: Path) -> None:
    space = space_of(Gene("choice", None, ("a", "b")), Gene("resolution", None, (8, 12, 16)))
    logits = [torch.zeros(2, dtype=torch.float64), torch.tensor([0.0, 2.0, 1.0], dtype=torch.float64)]
    cost = Additive(space, [Factor((1,), np.array([1, 3, 2])), Factor((0,), np.array([1, 1]))])
    for bound, expected in ((9, 1), (3, 2), (2, 0)):
        fake = Fake(logits, separable([[0.0, 1.0], [0.0, 0.0, 0.0]]))
        budget = Budget(space, {"macs": (-math.inf, bound)}, {"macs": cost})
        arch = Perturb(interval=1).select(state(budget, fake, tmp_path))
        assert space.encode(arch) == (1, expected)
        assert [call.gene for call in fake.calls] == [0, 0]
        assert all(call.support[1] == (expected,) and call.probs[1][expected] == 1 for call in fake.calls)
        assert Perturb(interval=1).epochs(space) == len(fake.tuned) == 1


# Interruptions ---------------------------------------------------------------------------------------------------


def test_an_interrupted_selection_goes_on_and_ends_alike(tmp_path: Path) -> None:
    """Killed at every single step: evaluation, tuning, saving."""
    space = space_of("abc", "abc", "ab", Gene("below", None, (1, 2), parent=0, among=("b",)), "abcd")
    rng = np.random.default_rng(5)
    values = [rng.uniform(0, 1, len(gene.options)).tolist() for gene in space.genes]
    costs = [Factor((i,), rng.integers(1, 9, len(gene.options))) for i, gene in enumerate(space.genes) if i != 3]
    measure = Additive(space, costs)
    rows = np.array(list(product(*(range(len(gene.options)) for gene in space.genes))))
    budget = Budget(space, {"macs": (-math.inf, float(np.quantile(measure.batch(rows), 0.4)))}, {"macs": measure})
    select = Perturb(interval=2)

    def run(fake: Fake, restored: Any = None) -> Arch:
        return select.select(state(budget, fake, tmp_path, 3, restored))

    whole = Fake(uniform(space), separable(values), drift=0.5)
    expected = run(whole)
    assert whole.steps > 20
    for stop_at in range(whole.steps):
        first = Fake(uniform(space), separable(values), drift=0.5, stop_at=stop_at)
        with pytest.raises(KilledError):
            run(first)
        restored, logits = first.saved[-1] if first.saved else (None, uniform(space))
        torch.save(restored, tmp_path / "partial.pt")
        restored = torch.load(tmp_path / "partial.pt", weights_only=True)
        second = Fake(logits, separable(values), drift=0.5)
        assert run(second, restored) == expected
        assert second.tuned == whole.tuned[len(whole.tuned) - len(second.tuned) :]
        assert [partial for partial, _ in first.saved + second.saved] == [partial for partial, _ in whole.saved]
        made = [(call.gene, call.option) for call in second.calls]
        assert made == [(call.gene, call.option) for call in whole.calls][len(whole.calls) - len(made) :]
        assert all(map(torch.equal, second.logits, whole.logits))


# Configs ---------------------------------------------------------------------------------------------------------


def config(name: str) -> dict[str, Any]:
    loaded: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / "algorithm" / "select" / f"{name}.yaml"))
    return loaded


def test_configs_make_selections_and_mistakes_name_their_key() -> None:
    assert isinstance(construct(config("decode"), "algorithm.select"), Decoded)
    made = construct(config("perturb"), "algorithm.select")
    assert vars(made) == vars(Perturb())
    for name, value in (("interval", -1), ("criterion", "top5"), ("max_images", 0)):
        with pytest.raises(UserError, match=f"{name}={value}"):
            construct({**config("perturb"), name: value}, "algorithm.select")
    with pytest.raises(ValueError, match="criterion"):
        Perturb(criterion="top5")  # type: ignore[arg-type]
