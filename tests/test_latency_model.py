"""Latency models: synthetic truths are recovered, files come back the same, and other spaces are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import big_space, tiny_space

from search.constraint import encoded
from search.latency.features import gene_columns, key_of, layer_columns, summed, work_of
from search.latency.fit import fit_models, held_out, layer_table
from search.latency.measure import FIT, Sample
from search.latency.model import LatencyModel, figures
from supernet.build import build
from supernet.cost import Additive, Factor, macs_of, params_of
from supernet.errors import UserError
from supernet.space import Gene, Space, Unit
from supernet.window import enumerate_archs


def truth_by_layers(space: Space) -> Additive:
    """Every layer costs something for being there, for its MACs, and for its weights."""

    def part(name: str, spec: Any) -> float:
        return 0.01 + 3e-8 * spec.macs + 1e-6 * spec.params

    return Additive.of_units(space, part, float, offset=0.7)


def truth_by_genes(space: Space, seed: int = 0) -> Additive:
    """Every unit has its own random price for its presence and for each of its options."""
    rng = np.random.default_rng(seed)
    factors = []
    for position, unit in enumerate(space.units):
        shape = [len(space.genes[i].options) for i in unit.reads]
        present = np.zeros(shape)
        for codes, spec in space.specs(position):
            present[codes] = spec is not None
        price = np.full(shape, rng.uniform(0.5, 1))
        for axis, length in enumerate(shape):
            price += rng.uniform(0, 0.2, length).reshape([-1 if i == axis else 1 for i in range(len(shape))])
        factors.append(Factor(unit.reads, present * price))
    return Additive(space, factors, 0.3)


def sampled(space: Space, truth: Additive, n: int, seed: int = 0, layers: bool = False) -> list[Sample]:
    archs = list(dict.fromkeys(space.sample(np.random.default_rng(seed), n=n)))
    ms = truth.batch(encoded(space, archs))
    samples = []
    for arch, value in zip(archs, ms.tolist(), strict=True):
        times = None
        if layers:
            times = {name: 0.01 + 3e-8 * spec.macs + 1e-6 * spec.params for name, spec in space.plan(arch).layers}
        samples.append(Sample(arch, FIT, value, layers=times))
    return samples


@pytest.mark.parametrize("truth", [truth_by_layers, truth_by_genes])
@pytest.mark.parametrize("make", [tiny_space, big_space])
def test_synthetic_additive_latencies_are_recovered(truth: Any, make: Any) -> None:
    space = make()
    additive = truth(space)
    best = fit_models(space, sampled(space, additive, 1200 if make is big_space else 300))[0]
    genes = encoded(space, space.sample(np.random.default_rng(5), n=500))
    np.testing.assert_allclose(best.additive.batch(genes), additive.batch(genes), rtol=1e-6)


def test_a_space_without_layers_is_fitted_by_its_genes() -> None:
    genes = [Gene("op", i, (0, 1, 2, 3)) for i in range(5)]
    space = Space("cell", genes, [], lambda plan: torch.nn.Identity(), {})
    rng = np.random.default_rng(0)
    truth = Additive(space, [Factor((i,), rng.uniform(0, 3, 4)) for i in range(5)], 2.0)
    samples = [Sample(space.decode(row), FIT, 0.0) for row in rng.integers(0, 4, (120, 5)).tolist()]
    ms = truth.batch(encoded(space, [sample.arch for sample in samples]))
    samples = [Sample(s.arch, FIT, value) for s, value in zip(samples, ms.tolist(), strict=True)]
    best = fit_models(space, samples)[0]
    everything = np.array(list(np.ndindex(4, 4, 4, 4, 4)))
    np.testing.assert_allclose(best.additive.batch(everything), truth.batch(everything), rtol=1e-6)


def test_the_table_is_the_sum_of_measured_layers() -> None:
    """Where every layer was timed, the table alone is exact, offset and slope included."""
    space = tiny_space()
    samples = sampled(space, truth_by_layers(space), 300, layers=True)
    (table,) = (model for model in fit_models(space, samples) if model.kind == "table")
    genes = encoded(space, list(enumerate_archs(space)))
    np.testing.assert_allclose(table.additive.batch(genes), truth_by_layers(space).batch(genes), rtol=1e-9)
    assert table.mape < 1e-3
    measured = layer_table(space, samples)
    arch = samples[0].arch
    by_hand = sum(np.median(measured[key_of(spec)]) for _, spec in space.plan(arch).layers) + 0.7
    assert table.additive.batch(encoded(space, [arch]))[0] == pytest.approx(by_hand, rel=1e-9)


def test_layers_that_were_not_measured_are_predicted() -> None:
    """From 12 of 384 subnets most layers are missing; the table still ranks and is near."""
    space = tiny_space()
    few = sampled(space, truth_by_layers(space), 12, layers=True)
    distinct = {key_of(spec) for i in range(len(space.units)) for _, spec in space.specs(i) if spec is not None}
    assert len(layer_table(space, few)) < len(distinct)
    (table,) = (model for model in fit_models(space, few) if model.kind == "table")
    result = held_out(table, sampled(space, truth_by_layers(space), 200, seed=1))
    assert result["mape"] < 3
    assert result["kendall_tau"] > 0.8


def test_the_fit_minimises_relative_errors_and_survives_noise() -> None:
    space = big_space()
    truth = truth_by_layers(space)
    rng = np.random.default_rng(0)
    noisy = [Sample(s.arch, FIT, s.ms * rng.normal(1, 0.03)) for s in sampled(space, truth, 150)]
    best = fit_models(space, noisy)[0]
    result = held_out(best, sampled(space, truth, 200, seed=1))
    assert result["mape"] < 1.5, "the noise of 3% is averaged out"
    assert result["kendall_tau"] > 0.95


def test_latency_grows_with_depth() -> None:
    space = big_space()
    best = fit_models(space, sampled(space, truth_by_layers(space), 300))[0]
    codes = list(space.encode(space.smallest()))
    depth = next(i for i, gene in enumerate(space.genes) if gene.key == "depth" and len(gene.options) > 4)
    rows = [[*codes[:depth], code, *codes[depth + 1 :]] for code in range(len(space.genes[depth].options))]
    assert (np.diff(best.additive.batch(np.array(rows))) > 0).all()


def test_too_few_samples_are_refused() -> None:
    space = tiny_space()
    with pytest.raises(UserError, match="only 3 subnets"):
        fit_models(space, sampled(space, truth_by_layers(space), 3))


def test_columns_know_the_work_of_a_subnet() -> None:
    """The MACs of all kinds of layers add up to those of the plan, here and for transformers."""
    for space in (tiny_space(), build("ofa_resnet50", num_classes=10).space):
        plan = space.plan(space.sample(np.random.default_rng(0)))
        works = [work_of(spec) for _, spec in plan.layers]
        macs = sum(value for work in works for name, value in work.items() if name.endswith(":macs"))
        assert macs == pytest.approx(plan.macs / 1e6)
    for space in (tiny_space(), build("autoformer_tiny", num_classes=10).space):
        genes = encoded(space, space.sample(np.random.default_rng(0), n=200))
        matrix, macs = summed(layer_columns(space), genes), macs_of(space).batch(genes) / 1e6
        fitted = matrix @ np.linalg.lstsq(matrix, macs)[0]
        np.testing.assert_allclose(fitted, macs, rtol=1e-6)
    space = tiny_space()
    assert gene_columns(space).matrix(encoded(space, [space.largest()])).shape[0] == 1


# The model and its file ----------------------------------------------------------------------------------------


def model_of(space: Space) -> LatencyModel:
    return LatencyModel(space, truth_by_genes(space), {"kind": "made up", "held_out": {"mape": 1.0}})


def test_a_file_brings_back_the_same_model(tmp_path: Path) -> None:
    space = tiny_space()
    model = model_of(space)
    model.save(tmp_path / "latency.json")
    json.loads((tmp_path / "latency.json").read_text())
    loaded = LatencyModel.load(tmp_path, space)
    genes = encoded(space, list(enumerate_archs(space)))
    np.testing.assert_array_equal(loaded.batch(genes), model.batch(genes))
    assert loaded.info == model.info
    assert loaded.predict(space.largest()) == model.batch(encoded(space, [space.largest()]))[0]


def test_a_space_with_fewer_options_uses_the_same_file(tmp_path: Path) -> None:
    model = model_of(tiny_space())
    model.save(tmp_path / "latency.json")
    fewer = tiny_space(resolution=(12,))
    loaded = LatencyModel.load(tmp_path / "latency.json", fewer)
    for arch in enumerate_archs(fewer):
        assert loaded.predict(arch) == model.predict(model.space.from_json(arch.to_json()))


def test_other_spaces_and_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    model_of(tiny_space()).save(path)
    with pytest.raises(UserError, match="made for space 'tiny', this one is 'big'"):
        LatencyModel.load(path, big_space())
    with pytest.raises(UserError, match=r"knows nothing about resolution=\[16\]; .*space\.resolution=\[8,12\]"):
        LatencyModel.load(path, tiny_space(resolution=(12, 16)))
    with pytest.raises(UserError, match="other layers"):
        LatencyModel.load(path, tiny_space(stem={"width": [8], "kernel": 5, "stride": 1}))
    path.write_text('{"rows": []}')
    with pytest.raises(UserError, match="not a latency model"):
        LatencyModel.load(path, tiny_space())
    with pytest.raises(UserError, match="does not exist"):
        LatencyModel.load(tmp_path / "absent.json", tiny_space())


def test_the_expectation_over_independent_choices_is_exact_and_differentiable() -> None:
    space = tiny_space()
    model = model_of(space)
    rng = np.random.default_rng(0)
    probs = [torch.tensor(rng.dirichlet(np.ones(len(gene.options)))).requires_grad_() for gene in space.genes]
    grid = np.array(list(np.ndindex(*(len(gene.options) for gene in space.genes))))
    weight = np.prod([p.detach().numpy()[grid[:, i]] for i, p in enumerate(probs)], axis=0)
    expected = model.expected(probs)
    assert expected.item() == pytest.approx(float(weight @ model.batch(grid)), rel=1e-12)
    expected.backward()  # type: ignore[no-untyped-call,unused-ignore]
    slope = probs[0].grad
    assert slope is not None
    at = [weight[grid[:, 0] == code] / probs[0].detach().numpy()[code] for code in range(2)]
    by_hand = [float(w @ model.batch(grid[grid[:, 0] == code])) for code, w in enumerate(at)]
    assert (slope[1] - slope[0]).item() == pytest.approx(by_hand[1] - by_hand[0], rel=1e-9)


def test_figures_by_hand() -> None:
    measured = np.array([1.0, 2.0, 3.0, 4.0])
    result = figures(np.array([1.04, 3.0, 2.0, 4.0]), measured)
    assert result["mape"] == pytest.approx(100 * (0.04 + 0.5 + 1 / 3) / 4)
    assert result["rmse_ms"] == pytest.approx(np.sqrt((0.0016 + 1 + 1) / 4))
    assert (result["within_5"], result["within_10"]) == (50.0, 50.0)
    assert result["kendall_tau"] == pytest.approx(2 / 3)
    assert result["spearman_rho"] == pytest.approx(0.8)
    assert np.isnan(figures(np.ones(4), measured)["kendall_tau"])


def test_units_that_read_no_gene_count_in_the_intercept() -> None:
    space = tiny_space()
    fixed = [Unit(unit.name, (), lambda: None) for unit in space.units[:1]]
    odd = Space("odd", space.genes, [*fixed, *space.units[1:]], space.module, {})
    assert gene_columns(odd).count > 0
    assert params_of(odd).batch(encoded(space, [space.smallest()]))[0] < params_of(space).batch(
        encoded(space, [space.smallest()])
    )
