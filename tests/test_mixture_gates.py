"""Gates on weights: against sums over all options, for sizes that the genes decide in every way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mixture_reference import cut, expectation, pad_kernel, simplex
from torch import Tensor, nn

from supernet.layers.conv import conv_weight, linear
from supernet.mixture.gates import Weights
from supernet.mixture.grid import Grid
from supernet.mixture.soften import soften
from supernet.specs import ConvSpec, LinearSpec

TIGHT = {"rtol": 0.0, "atol": 1e-12}
Sizes = tuple[int, int, int]
Rule = Callable[[tuple[int, ...]], Sizes | None]


@dataclass(frozen=True)
class Table:
    """Rows, columns and kernel of a layer for every combination of genes; None where there is no layer."""

    options: tuple[int, ...]
    sizes: dict[tuple[int, ...], Sizes | None]

    @staticmethod
    def of(options: Sequence[int], rule: Rule) -> Table:
        return Table(tuple(options), {codes: rule(codes) for codes in product(*map(range, options))})

    def grid(self, spec: Callable[[Sizes], Any]) -> Grid:
        specs = np.empty(self.options, dtype=object)
        for codes, sizes in self.sizes.items():
            specs[codes] = None if sizes is None else spec(sizes)
        return Grid(tuple(range(len(self.options))), specs)

    def largest(self, support: Sequence[Sequence[int]]) -> Sizes:
        found = [self.sizes[codes] for codes in product(*support)]
        rows, columns, kernels = zip(*(sizes for sizes in found if sizes is not None), strict=True)
        return max(rows), max(columns), max(kernels)


ROWS, COLUMNS, KERNELS = (3, 5, 6), (2, 3, 5), (1, 3, 5)
NAMED_TABLES = {
    "independent": Table.of((3, 3, 3), lambda c: (ROWS[c[0]], COLUMNS[c[1]], KERNELS[c[2]])),
    "one gene for all": Table.of((3,), lambda c: (ROWS[c[0]], COLUMNS[c[0]], KERNELS[c[0]])),
    "rows and columns": Table.of((3, 3), lambda c: (ROWS[c[0]], COLUMNS[c[0]], KERNELS[c[1]])),
    "columns against kernel": Table.of((3, 3), lambda c: (ROWS[c[0]], COLUMNS[c[1]], KERNELS[2 - c[1]])),
    "rows a product": Table.of((3, 2), lambda c: (COLUMNS[c[0]] * (c[1] + 1), COLUMNS[c[0]], 3)),
    "skipped": Table.of((3, 3, 3), lambda c: (ROWS[c[0]], COLUMNS[c[1]], 3) if c[2] else None),
    "skipped by a size's own gene": Table.of((3, 3), lambda c: (ROWS[c[1]], COLUMNS[c[0]], 3) if c[0] else None),
}


def random_table(seed: int) -> Table:
    """Each size is any function of some of three genes, and the layer may be missing anywhere."""
    rng = np.random.default_rng(seed)
    options = tuple(int(n) for n in rng.integers(2, 4, 3))
    reads = [sorted(rng.choice(3, rng.integers(0, 4), replace=False)) for _ in range(4)]
    tables = [rng.integers(0, 3, [options[gene] for gene in genes]) for genes in reads]

    def rule(codes: tuple[int, ...]) -> Sizes | None:
        row, column, kernel, hole = (
            int(table[tuple(codes[gene] for gene in genes)]) for genes, table in zip(reads, tables, strict=True)
        )
        there = seed % 3 or hole or codes == (0, 0, 0)
        return (ROWS[row], COLUMNS[column], KERNELS[kernel]) if there else None

    return Table.of(options, rule)


TABLES = {**NAMED_TABLES, **{f"random {seed}": random_table(seed) for seed in range(24)}}
all_tables = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())


def supports(table: Table) -> list[list[tuple[int, ...]]]:
    """All options; all but the first of each gene, where that leaves a layer."""
    whole = [tuple(range(n)) for n in table.options]
    fewer = [options[1:] for options in whole]
    return [whole, fewer] if any(table.sizes[codes] for codes in product(*fewer)) else [whole]


def draws(table: Table, support: Sequence[Sequence[int]], seed: int = 1) -> list[Tensor]:
    """Probabilities of all options, 0 where one is not run."""
    probs = simplex(table.options, seed)
    for p, kept in zip(probs, support, strict=True):
        p[[i for i in range(len(p)) if i not in kept]] = 0.0
    return [p / p.sum() for p in probs]


def soft(grid: Grid, probs: Sequence[Tensor], support: Sequence[Sequence[int]]) -> Any:
    run = [p[list(kept)] for p, kept in zip(probs, support, strict=True)]
    return soften(grid, support)(Weights(run))


def used_rows(table: Table, probs: Sequence[Tensor], support: Sequence[Sequence[int]]) -> Tensor:
    """With what probability each output channel is there, given the layer [rows]."""
    rows = torch.arange(table.largest(support)[0])

    def value(codes: tuple[int, ...]) -> Tensor | None:
        sizes = table.sizes[codes]
        return None if sizes is None else (rows < sizes[0]).double()

    return expectation(probs, support, value)


def padded(table: Table, probs: Sequence[Tensor], support: Sequence[Sequence[int]], weight: Tensor) -> Tensor:
    """The mean of the options' slices of a weight, each padded to its size."""

    def value(codes: tuple[int, ...]) -> Tensor | None:
        sizes = table.sizes[codes]
        return None if sizes is None else pad_kernel(cut(weight, *sizes), weight.shape)

    return expectation(probs, support, value)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv_of(rows: int, columns: int, kernel: int, depthwise: bool = False, bias: bool = False) -> nn.Conv2d:
    layer = nn.Conv2d(columns, rows, kernel, groups=columns if depthwise else 1, bias=bias).double()
    layer.weight.data = random(*layer.weight.shape)
    if layer.bias is not None:
        layer.bias.data = random(rows, seed=1)
    return layer


@all_tables
def test_gated_weight_is_the_mean_of_padded_slices(table: Table) -> None:
    """The mask is the probability of column and ring given the row; with that of the row, the sum over options."""
    for support in supports(table):
        probs, shape = draws(table, support), table.largest(support)
        layer = conv_of(*shape)
        spec = soft(table.grid(lambda s: ConvSpec(s[1], s[0], 4, s[2], norm_eps=None)), probs, support)
        rows = used_rows(table, probs, support)
        expected = padded(table, probs, support, layer.weight)
        assert spec.weight_shape == (shape[0], shape[1], shape[2], shape[2])
        torch.testing.assert_close(conv_weight(layer, spec) * rows[:, None, None, None], expected, **TIGHT)


@all_tables
def test_gated_depthwise_weight(table: Table) -> None:
    for support in supports(table):
        probs, (rows, _, kernel) = draws(table, support), table.largest(support)
        layer = conv_of(rows, rows, kernel, depthwise=True)
        grid = table.grid(lambda s: ConvSpec(s[0], s[0], 4, s[2], depthwise=True, norm_eps=None))
        slim = Table(table.options, {c: s and (s[0], 1, s[2]) for c, s in table.sizes.items()})
        mixed = conv_weight(layer, soft(grid, probs, support)) * used_rows(table, probs, support)[:, None, None, None]
        torch.testing.assert_close(mixed, padded(slim, probs, support, layer.weight), **TIGHT)


@all_tables
def test_gated_linear_weight(table: Table) -> None:
    for support in supports(table):
        probs, (rows, columns, _) = draws(table, support), table.largest(support)
        layer = nn.Linear(columns, rows).double()
        layer.weight.data = random(rows, columns)
        spec = soft(table.grid(lambda s: LinearSpec(s[1], s[0])), probs, support)
        x, flat = random(4, columns, seed=2), {c: s and (*s[:2], 1) for c, s in table.sizes.items()}
        weight = padded(Table(table.options, flat), probs, support, layer.weight[..., None, None])[..., 0, 0]
        used = used_rows(table, probs, support)
        torch.testing.assert_close(linear(layer, x, spec) * used, F.linear(x, weight, layer.bias * used), **TIGHT)


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_one_convolution_instead_of_one_for_each_option(stride: int, depthwise: bool) -> None:
    """Each option with its own kernel, padding and bias, its missing channels as zeros."""
    table, support = NAMED_TABLES["independent"], [(0, 1, 2)] * 3
    probs, x = draws(table, support), random(2, 6 if depthwise else 5, 7, 7, seed=3)
    layer = conv_of(6, 6 if depthwise else 5, 5, depthwise, bias=True)
    assert layer.bias is not None
    rest: dict[str, Any] = {"stride": stride, "depthwise": depthwise, "bias": True, "norm_eps": None}
    grid = table.grid(lambda s: ConvSpec(s[0] if depthwise else s[1], s[0], 4, s[2], **rest))

    def value(codes: tuple[int, ...]) -> Tensor:
        sizes = table.sizes[codes]
        assert sizes is not None
        assert layer.bias is not None
        rows, columns, kernel = sizes
        columns = 1 if depthwise else columns
        seen = rows if depthwise else columns
        weight, groups = cut(layer.weight, rows, columns, kernel), rows if depthwise else 1
        out = F.conv2d(x[:, :seen], weight, layer.bias[:rows], stride, kernel // 2, groups=groups)
        return F.pad(out, (0, 0, 0, 0, 0, 6 - rows))

    spec = soft(grid, probs, support)
    mixed = F.conv2d(x, conv_weight(layer, spec), layer.bias, spec.stride, spec.pad, groups=spec.groups)
    used = used_rows(table, probs, support)
    torch.testing.assert_close(mixed * used[:, None, None], expectation(probs, support, value), **TIGHT)


def test_width_and_ratio_make_a_mask_that_is_no_outer_product() -> None:
    """int(e * r) rows and e columns: wide rows tell that the embedding is wide."""
    dims, ratios = (4, 6, 9), (1.5, 2.0, 3.5)
    table = Table.of((3, 3), lambda c: (int(dims[c[0]] * ratios[c[1]]), dims[c[0]], 1))
    support = [(0, 1, 2)] * 2
    spec = soft(table.grid(lambda s: LinearSpec(s[1], s[0])), draws(table, support), support)
    (mask,) = spec.gates
    assert torch.linalg.matrix_rank(mask) > 1
    assert mask[0, 8] < 0.9
    assert mask[-1, 8] == pytest.approx(1.0)
    assert (mask[:, :4] - 1).abs().max() < 1e-12  # those that every option has


def chain(layers: Sequence[tuple[nn.Linear, Any]], x: Tensor) -> Tensor:
    for layer, spec in layers:
        x = linear(layer, x, spec)
    return x


def linears(*widths: int) -> list[nn.Linear]:
    found = [nn.Linear(a, b).double() for a, b in pairwise(widths)]
    for i, layer in enumerate(found):
        layer.weight.data, layer.bias.data = random(*layer.weight.shape, seed=i), random(len(layer.bias), seed=9 + i)
    return found


@pytest.mark.parametrize("free", ["input", "output"])
def test_linear_layers_in_a_row_give_the_sum_over_subnets(free: str) -> None:
    """fc1 to int(e * r), fc2 back: both know e and r, yet the sum over (e, r) needs both together.

    `free`: the end whose width e does not decide.
    """
    dims, ratios, support = (3, 4, 6), (1.0, 1.5, 2.5), [(0, 1, 2)] * 2
    widths = [(5 if free == "input" else e, int(e * r), e if free == "input" else 5) for e in dims for r in ratios]
    first, second = linears(*map(max, zip(*widths, strict=True)))
    by_codes = dict(zip(product(range(3), range(3)), widths, strict=True))
    grids = [
        Table.of((3, 3), lambda c, i=i: (by_codes[c][i + 1], by_codes[c][i], 1)).grid(lambda s: LinearSpec(s[1], s[0]))
        for i in range(2)
    ]
    probs, x = simplex((3, 3), 4), random(7, first.in_features, seed=5)
    longest = second.out_features

    def value(codes: tuple[int, ...]) -> Tensor:
        a, b, c = by_codes[codes]
        hidden = F.linear(x[:, :a], first.weight[:b, :a], first.bias[:b])
        return F.pad(F.linear(hidden, second.weight[:c, :b], second.bias[:c]), (0, longest - c))

    mixed = chain([(layer, soft(grid, probs, support)) for layer, grid in zip((first, second), grids, strict=True)], x)
    ends = torch.tensor([by_codes[codes][2] for codes in by_codes])
    joint = (probs[0][:, None] * probs[1]).flatten()
    used = (joint[:, None] * (torch.arange(longest) < ends[:, None])).sum(0)
    torch.testing.assert_close(mixed * used, expectation(probs, support, value), **TIGHT)


def test_expanding_and_projecting_give_the_sum_over_subnets() -> None:
    """1x1, k x k, 1x1 with widths w, w * e, w * e, v and kernel k, without norms and activations."""
    width, expand, kernel, out = (2, 3, 5), (1, 2, 3), (1, 3, 5), (3, 4, 7)
    support, probs = [(0, 1, 2)] * 4, simplex((3, 3, 3, 3), 6)
    x = random(2, 5, 6, 6, seed=7)
    layers = [conv_of(15, 5, 1), conv_of(15, 15, 5, depthwise=True), conv_of(7, 15, 1)]

    def sizes(codes: tuple[int, ...]) -> tuple[int, int, int, int]:
        w = width[codes[0]]
        return w, w * expand[codes[1]], kernel[codes[2]], out[codes[3]]

    def specs(codes: tuple[int, ...]) -> list[ConvSpec]:
        w, middle, k, v = sizes(codes)
        plain = ConvSpec(w, middle, 6, norm_eps=None)
        return [plain, replace(plain, in_channels=middle, kernel=k, depthwise=True), ConvSpec(middle, v, 6)]

    def value(codes: tuple[int, ...]) -> Tensor:
        w, middle, k, v = sizes(codes)
        y = F.conv2d(x[:, :w], cut(layers[0].weight, middle, w, 1))
        y = F.conv2d(y, cut(layers[1].weight, middle, 1, k), padding=k // 2, groups=middle)
        y = F.conv2d(y, cut(layers[2].weight, v, middle, 1))
        return F.pad(y, (0, 0, 0, 0, 0, 7 - v))

    mixed = x
    for i, layer in enumerate(layers):
        grid = np.empty((3, 3, 3, 3), dtype=object)
        for codes in product(range(3), repeat=4):
            grid[codes] = specs(codes)[i]
        spec = soft(Grid((0, 1, 2, 3), grid), probs, support)
        mixed = F.conv2d(mixed, conv_weight(layer, spec), padding=spec.pad, groups=spec.groups)
    used = (probs[3][:, None] * (torch.arange(7) < torch.tensor(out)[:, None])).sum(0)
    torch.testing.assert_close(mixed * used[:, None, None], expectation(probs, support, value), rtol=0.0, atol=1e-11)


def test_an_option_of_probability_0_gets_its_gradient() -> None:
    """The mixture is linear in every vector before normalisation, so the gradient at 0 is what the option adds."""
    table, support = NAMED_TABLES["independent"], [(0, 1, 2)] * 3
    probs = [torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).requires_grad_() for _ in range(3)]
    layer = conv_of(6, 5, 5)
    spec = soft(table.grid(lambda s: ConvSpec(s[1], s[0], 4, s[2], norm_eps=None)), probs, support)
    conv_weight(layer, spec)[0].sum().backward()
    columns, kernels = probs[1].grad, probs[2].grad
    assert columns is not None
    assert kernels is not None
    small, weight = cut(layer.weight, 1, 2, 1).sum(), layer.weight
    wider = [cut(weight, 1, n, 1).sum() for n in COLUMNS]
    larger = [cut(weight, 1, 2, k).sum() for k in KERNELS]
    assert small == wider[0] == larger[0]
    torch.testing.assert_close(columns, torch.stack(wider).detach(), **TIGHT)
    torch.testing.assert_close(kernels, torch.stack(larger).detach(), **TIGHT)


def test_no_row_and_no_option_leave_finite_weights() -> None:
    """Rows that no option uses, and a layer that none has, are as if all options that have them were as probable."""
    table, support = NAMED_TABLES["one gene for all"], [(0, 1, 2)]
    grid = table.grid(lambda s: ConvSpec(s[1], s[0], 4, s[2], norm_eps=None))
    layer = conv_of(6, 5, 5)
    for values in ([1.0, 0.0, 0.0], [0.0, 0.0, 0.0]):
        p = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        weight = conv_weight(layer, soft(grid, [p], support))
        weight.sum().backward()
        assert weight.isfinite().all()
        assert p.grad is not None
        assert p.grad.isfinite().all()
        uniform = conv_weight(layer, soft(grid, [torch.full_like(p, 1 / 3)], support))
        unused = slice(ROWS[0], None) if any(values) else slice(None)
        torch.testing.assert_close(weight[unused], uniform[unused])
