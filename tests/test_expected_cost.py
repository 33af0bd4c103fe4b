"""The expected cost of independent genes against the enumeration of all gene rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nets import CONFIGS, space_of
from numpy.typing import NDArray
from tiny import tiny_space
from tiny_cells import toy
from tiny_vit import tiny_vit
from torch import Tensor

import supernet
from supernet.cost import Additive, Factor, macs_of, params_of, size_of
from supernet.mixture.expected import ExpectedCost
from supernet.space import Gene, Space, Unit

SPACES = {
    "stage": lambda: tiny_space(),
    "block": lambda: tiny_space(choose="block", resolution=(8,), head={"width": [16]}),
    "vit": lambda: tiny_vit(),
    "cell": lambda: toy(),
    "nb_macro": lambda: space_of("nb_macro"),
    "conv_macro": lambda: space_of("conv_macro"),
    "slimmable": lambda: space_of("mobilenetv2_slimmable"),
    "resnet": lambda: supernet.build("ofa_resnet50", num_classes=4).space.narrow(
        {"width": "two_largest", "expand": "largest", "resolution": "two_largest"}
    ),
}

DRAWN = 5000


def random_probs(space: Space, seed: int) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.dirichlet(np.ones(len(gene.options)))) for gene in space.genes]


def all_rows(space: Space) -> NDArray[np.int64]:
    lengths = [len(gene.options) for gene in space.genes]
    return np.indices(lengths).reshape(len(lengths), -1).T


def weights(rows: NDArray[np.int64], probs: list[Tensor]) -> NDArray[np.float64]:
    """The probability of every row [N]: the product over all genes, those that do not count included."""
    return np.prod([p.numpy()[rows[:, i]] for i, p in enumerate(probs)], axis=0)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("measure_of", [macs_of, params_of, size_of])
def test_the_expectation_is_that_of_all_rows(name: str, measure_of: Any) -> None:
    space = SPACES[name]()
    rows, measure = all_rows(space), measure_of(space)
    assert 2 <= len(rows) <= 25_000
    expected = ExpectedCost(measure)
    for seed in range(3):
        probs = random_probs(space, seed)
        reference = float(weights(rows, probs) @ measure.batch(rows))
        assert expected(probs).item() == pytest.approx(reference, rel=1e-12)


@pytest.mark.parametrize("name", ["stage", "block", "vit"])
def test_the_expectation_is_that_of_built_plans(name: str) -> None:
    space = SPACES[name]()
    rows, probs = all_rows(space), random_probs(space, 7)
    plans = [space.plan(space.decode(row)) for row in rows.tolist()]
    for measure, costs in ((macs_of(space), [p.macs for p in plans]), (params_of(space), [p.params for p in plans])):
        reference = float(weights(rows, probs) @ np.array(costs))
        assert ExpectedCost(measure)(probs).item() == pytest.approx(reference, rel=1e-12)


@pytest.mark.parametrize("name", ["stage", "block", "vit", "cell"])
def test_certain_choices_cost_what_the_subnet_costs(name: str) -> None:
    space = SPACES[name]()
    expected = ExpectedCost(macs_of(space))
    for arch in space.sample(np.random.default_rng(0), 20):
        codes = space.encode(arch)
        probs = [torch.eye(len(gene.options)).double()[code] for gene, code in zip(space.genes, codes, strict=True)]
        assert expected(probs).item() == space.plan(arch).macs


def test_a_width_on_both_sides_of_a_layer_counts_as_its_square() -> None:
    def square(width: int) -> Any:
        return SimpleNamespace(macs=width * width)

    space = Space("square", [Gene("width", None, (4, 8))], [Unit("conv", (0,), square)], lambda plan: None, {})  # type: ignore[arg-type, return-value]
    probs = [torch.tensor([0.5, 0.5], dtype=torch.float64)]
    assert ExpectedCost(macs_of(space))(probs).item() == (16 + 64) / 2  # and not 6 · 6


@pytest.mark.parametrize("name", ["block", "vit"])
def test_the_gradient_is_the_slope(name: str) -> None:
    space = SPACES[name]()
    expected = ExpectedCost(size_of(space))
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(len(gene.options), generator=generator, dtype=torch.float64) for gene in space.genes]
    for vector in logits:
        vector.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *vectors: expected([vector.softmax(0) for vector in vectors]), tuple(logits), eps=1e-6, atol=1e-6
    )


def test_the_gradient_tells_options_apart_by_their_costs() -> None:
    space = tiny_space()
    probs = [p.requires_grad_() for p in random_probs(space, 1)]
    expected = ExpectedCost(macs_of(space))
    expected(probs).backward()  # type: ignore[no-untyped-call,unused-ignore]
    for i, p in enumerate(probs):
        rest = [q.detach() for q in probs]
        given = [expected([*rest[:i], one, *rest[i + 1 :]]) for one in torch.eye(len(p)).double()]
        assert p.grad is not None
        assert torch.allclose(p.grad - p.grad[0], torch.stack(given) - given[0], rtol=1e-12, atol=1e-6)


def test_offset_unit_and_precision() -> None:
    space = tiny_space()
    table = np.array([3.0, 5.0])
    measure = Additive(space, [Factor((0,), table)], offset=7, unit=4)
    probs = [torch.full((len(gene.options),), 1 / len(gene.options)) for gene in space.genes]
    assert ExpectedCost(measure)(probs) == torch.tensor((7 + 4) / 4)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        result = torch.float32 if dtype == torch.bfloat16 else dtype
        assert ExpectedCost(measure)([p.to(dtype) for p in probs]).dtype == result


def test_vectors_are_counted() -> None:
    space = tiny_space()
    with pytest.raises(ValueError, match="11 genes, got 1 vectors"):
        ExpectedCost(macs_of(space))([torch.ones(2)])


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "space").glob("*.yaml")))
def test_every_space_against_drawn_subnets(name: str) -> None:
    space = space_of(name)
    measure, rng = macs_of(space), np.random.default_rng(0)
    probs = random_probs(space, 0)
    columns = [rng.choice(len(p), size=DRAWN, p=p.numpy()) for p in probs]
    drawn = measure.batch(np.stack(columns, axis=1))
    error = 5 * drawn.std() / DRAWN**0.5 + 1e-9 * drawn.mean()  # five standard errors
    assert abs(ExpectedCost(measure)(probs).item() - drawn.mean()) <= error
