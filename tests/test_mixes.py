"""Mixes: every rule against its closed form, its law, and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.autograd.functional import jacobian

from search.gradient.mixes.base import AfterStep, Draw, Mix
from search.gradient.mixes.dirichlet import Dirichlet, concentrations
from search.gradient.mixes.gates import Gates
from search.gradient.mixes.gumbel import Gumbel
from search.gradient.mixes.softmax import Softmax
from search.gradient.mixes.sparsemax import Sparsemax
from search.gradient.mixes.uniform import Uniform

SIZES = (3, 1, 5, 2, 4)
CONFIGS = Path(__file__).parents[1] / "configs" / "algorithm" / "mix"
MIXES: dict[str, Mix] = {
    "softmax": Softmax(),
    "sparsemax": Sparsemax(),
    "dirichlet": Dirichlet(),
    "gdas": Gumbel(hard=True, tau_max=10.0, tau_min=0.1),
    "snas": Gumbel(hard=False, tau_max=1.0, tau_min=0.1),
    "gates": Gates("all"),
    "gates_two": Gates("two"),
    "uniform": Uniform(),
}
HARD = ("gdas", "gates", "gates_two", "uniform")
RANDOM = ("dirichlet", "snas", *HARD)


def logits_of(seed: int, sizes: Sequence[int] = SIZES, scale: float = 1.5) -> list[Tensor]:
    noise = torch.Generator().manual_seed(seed)
    flat = [scale * torch.randn(n, generator=noise, dtype=torch.float64) for n in sizes]
    return [vector.requires_grad_() for vector in flat]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def repeated(mix: Mix, logits: Tensor, n: int, progress: float = 0.5, for_weights: bool = False) -> tuple[Tensor, Draw]:
    """`n` independent draws [n, options] of a gene: it is given `n` times, every second time with another between."""
    other = torch.zeros(logits.numel() + 2, dtype=torch.float64)
    draw = mix.draw([logits, other] * n, rng(7), progress, for_weights)
    return torch.stack(draw.probs[::2]), draw


def plausible(counts: Sequence[float], expected: Tensor) -> bool:
    shares = expected.double() / expected.double().sum()
    return bool(stats.chisquare(list(counts), (shares * sum(counts)).tolist()).pvalue > 1e-3)


def near(samples: Tensor, expected: Tensor) -> bool:
    """Whether the mean of independent rows [n, k] is within four standard errors of what is expected."""
    error = samples.std(0) / len(samples) ** 0.5
    return bool(((samples.mean(0) - expected).abs() < 4 * error).all())


@pytest.mark.parametrize("for_weights", [False, True])
@pytest.mark.parametrize("name", MIXES)
def test_probabilities_and_support(name: str, for_weights: bool) -> None:
    mix = MIXES[name]
    for seed in range(40):
        logits = logits_of(seed, scale=4.0)
        draw = mix.draw(logits, rng(seed), seed / 39, for_weights)
        assert [len(vector) for vector in draw.probs] == list(SIZES)
        for vector, run in zip(draw.probs, draw.support, strict=True):
            assert vector.dtype == torch.float64
            assert vector.min() >= 0
            assert abs(vector.sum().item() - 1) < 1e-12
            assert list(run) == sorted(set(run))
            assert set(vector.nonzero().flatten().tolist()) <= set(run)
            if name in HARD:
                assert sorted(vector.tolist()) == [0.0] * (len(vector) - 1) + [1.0]
                assert not for_weights or len(run) == 1
            elif name != "sparsemax" or not for_weights:
                assert run == tuple(range(len(vector)))
        for vector, n in zip(mix.mean(logits), SIZES, strict=True):
            assert vector.shape == (n,)
            assert vector.min() >= 0
            assert abs(vector.sum().item() - 1) < 1e-12


@pytest.mark.parametrize("name", MIXES)
def test_only_the_given_generator_decides(name: str) -> None:
    mix, logits = MIXES[name], logits_of(0, sizes=(4,) * 30)
    state = torch.get_rng_state()
    first, again, other = (torch.cat(mix.draw(logits, rng(seed), 0.5, False).probs) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name not in RANDOM)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ["softmax", "dirichlet", "gdas", "snas", "gates"])
def test_every_logit_learns(name: str) -> None:
    logits = logits_of(3)
    draw = MIXES[name].draw(logits, rng(5), 0.5, False)
    sum((vector * torch.randn(len(vector), generator=rng(6))).sum() for vector in draw.probs).backward()  # type: ignore[union-attr]
    for vector in logits:
        assert vector.grad is not None
        assert vector.grad.isfinite().all()
        assert (vector.grad != 0).all() == (len(vector) > 1)


def test_uniform_has_no_gradient_and_means_are_softmax() -> None:
    logits = logits_of(1)
    assert not any(vector.requires_grad for vector in MIXES["uniform"].draw(logits, rng(), 0.5, False).probs)
    for name in ("softmax", "gdas", "snas", "gates"):
        for mean, vector in zip(MIXES[name].mean(logits), logits, strict=True):
            assert torch.allclose(mean, vector.softmax(0), rtol=0, atol=1e-15)


def test_genes_together_are_as_one_by_one() -> None:
    """Noise is one Exp(1) number per option, gene after gene; from there each gene is computed alone."""
    logits = logits_of(2)
    noise = torch.empty(sum(SIZES), dtype=torch.float64).exponential_(generator=rng(9)).split(SIZES)
    soft = MIXES["snas"].draw(logits, rng(9), 0.5, False).probs
    gates = MIXES["gates"].draw(logits, rng(9), 0.5, False).probs
    uniform = MIXES["uniform"].draw(logits, rng(9), 0.5, False).probs
    for i, (vector, e) in enumerate(zip(logits, noise, strict=True)):
        expected = ((vector.log_softmax(0) - e.log()) / 0.55).softmax(0)
        assert torch.allclose(soft[i], expected, rtol=0, atol=1e-14)
        assert gates[i].argmax() == (vector - e.log()).argmax()
        assert uniform[i].argmax() == e.argmin()
        assert torch.equal(Softmax().draw(logits, rng(), 0, False).probs[i], vector.softmax(0))
        alone = Sparsemax().draw([vector], rng(), 0, False).probs[0]
        assert torch.allclose(Sparsemax().draw(logits, rng(), 0, False).probs[i], alone, rtol=0, atol=1e-15)


# Sparsemax ---------------------------------------------------------------------------------------------------------


def projection(z: Tensor) -> Tensor:
    """The nearest point of the simplex, by trying every support."""
    found = []
    for size in range(1, len(z) + 1):
        for support in combinations(range(len(z)), size):
            p = torch.zeros_like(z)
            p[list(support)] = z[list(support)] - (z[list(support)].sum() - 1) / size
            if p.min() >= 0:
                found.append(p)
    return min(found, key=lambda p: float((p - z).square().sum()))


@pytest.mark.parametrize("scale", [0.1, 0.6, 3.0])
def test_sparsemax_is_the_projection_with_its_jacobian(scale: float) -> None:
    for seed in range(10):
        logits = [vector.detach() for vector in logits_of(seed, scale=scale)]
        draw = Sparsemax().draw(logits, rng(), 0.0, for_weights=True)
        for i, z in enumerate(logits):
            expected = projection(z)
            assert torch.allclose(draw.probs[i], expected, rtol=0, atol=1e-14)
            assert draw.support[i] == tuple(expected.nonzero().flatten().tolist())
            inside = (expected > 0).double()
            found = jacobian(lambda *vectors, i=i: Sparsemax().mean(vectors)[i], tuple(logits))[i]
            assert torch.allclose(found, inside.diag() - inside.outer(inside) / inside.sum(), rtol=0, atol=1e-14)


def test_sparsemax_ties() -> None:
    cases = {(0.5, 0.5, 0.5): [1 / 3] * 3, (1.0, 0.0): [1.0, 0.0], (2.0, 2.0, 0.0): [0.5, 0.5, 0.0]}
    for logits, expected in cases.items():
        assert Sparsemax().mean([torch.tensor(logits, dtype=torch.float64)])[0].tolist() == pytest.approx(expected)


# Dirichlet ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [(-0.5, 0.3, 1.2), (-3.0, -2.5, 0.0), (0.0, 0.0)])
def test_dirichlet_moments_and_their_gradients(values: tuple[float, ...]) -> None:
    """The second case has concentrations below 0.1, which are drawn by their logarithms."""
    n = 8000
    logits = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    copies = logits.detach().repeat(n, 1).requires_grad_()
    draws = torch.stack(Dirichlet().draw(copies.unbind(), rng(7), 0.5, False).probs)
    a = torch.nn.functional.elu(logits) + 1
    total = a.sum()
    mean = a / total
    square = a * (a + 1) / (total * (total + 1))
    assert torch.allclose(Dirichlet().mean([logits])[0], mean, rtol=0, atol=1e-15)
    assert near(draws, mean)
    assert near((draws - mean).square(), mean * (1 - mean) / (total + 1))
    for sampled, exact in ((draws, mean), (draws.square(), square)):
        for i in range(len(values)):
            (estimates,) = torch.autograd.grad(sampled[:, i].sum(), copies, retain_graph=True)
            (gradient,) = torch.autograd.grad(exact[i], logits, retain_graph=True)
            assert near(estimates, gradient), (i, estimates.mean(0), gradient)


def test_dirichlet_entries_have_beta_laws() -> None:
    for values in ((-3.0, -2.5, 0.0), (0.5, 1.0, -1.0)):
        logits = torch.tensor(values, dtype=torch.float64)
        a = concentrations(logits)
        draws, _ = repeated(Dirichlet(), logits, 5000)
        for i in range(3):
            law = stats.beta(float(a[i]), float(a.sum() - a[i]))
            assert stats.kstest(draws[:, i].numpy(), law.cdf).pvalue > 1e-3


def test_tiny_concentrations_give_one_hot_draws_by_the_mean() -> None:
    logits = torch.tensor([-14.0, -14.0 + 2.0**0.5, -14.5], dtype=torch.float64, requires_grad=True)
    draws, _ = repeated(Dirichlet(), logits, 5000)
    assert (draws.max(1).values > 1 - 1e-9).double().mean() > 0.999
    assert plausible(draws.argmax(1).bincount(minlength=3).tolist(), logits.detach().softmax(0))


def test_extreme_logits_stay_finite() -> None:
    for values in ([-800.0] * 3, [-40.0, 0.0, 50.0], [-20.0, -20.0], [1e6, -1e6, 0.0]):
        logits = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        draws, _ = repeated(Dirichlet(), logits, 200)
        assert draws.isfinite().all()
        assert torch.allclose(draws.sum(1), torch.ones(200, dtype=torch.float64))
        draws.square().sum().backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


def test_kl_anchor_is_the_divergence() -> None:
    logits = logits_of(4)
    mix = Dirichlet(anchor="kl", weight=0.25)
    concentration = [torch.nn.functional.elu(vector) + 1 for vector in logits]
    pairs = [
        (torch.distributions.Dirichlet(a), torch.distributions.Dirichlet(torch.ones_like(a))) for a in concentration
    ]
    expected = 0.25 * torch.stack([torch.distributions.kl_divergence(p, q) for p, q in pairs]).sum()
    assert mix.penalty(logits).item() == pytest.approx(expected.item(), rel=1e-12)
    found = torch.autograd.grad(mix.penalty(logits), logits)
    for gradient, reference in zip(found, torch.autograd.grad(expected, logits), strict=True):
        assert torch.allclose(gradient, reference, rtol=0, atol=1e-12)
    zeros = [torch.zeros(n, dtype=torch.float64) for n in SIZES]
    assert abs(mix.penalty(zeros).item()) < 1e-14


def test_l2_anchor_is_adams_weight_decay() -> None:
    ends = []
    for anchored in (True, False):
        (vector,) = logits_of(0, sizes=(6,))
        optimizer = torch.optim.Adam([vector], lr=0.01, weight_decay=0.0 if anchored else 0.3)
        mix = Dirichlet("l2", 0.3) if anchored else Dirichlet("none", 0.3)
        for step in range(5):
            optimizer.zero_grad()
            (vector.cos().sum() * step + mix.penalty([vector])).backward()
            optimizer.step()
        ends.append(vector.detach())
    assert torch.allclose(ends[0], ends[1], rtol=0, atol=1e-12)


def test_only_dirichlet_has_a_penalty() -> None:
    for mix in (*(MIXES[name] for name in MIXES if name != "dirichlet"), Dirichlet("none")):
        assert mix.penalty(logits_of(0)).item() == 0.0


# Hard draws --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("for_weights", [False, True])
@pytest.mark.parametrize("name", ["gdas", "gates"])
@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_options_are_drawn_by_their_probabilities(name: str, for_weights: bool, progress: float) -> None:
    logits = torch.tensor([0.2, -1.0, 1.1, 0.0], dtype=torch.float64)
    draws, _ = repeated(MIXES[name], logits, 8000, progress, for_weights)
    assert plausible(draws.sum(0).tolist(), logits.softmax(0))


def test_uniform_draws_are_uniform() -> None:
    draws, _ = repeated(Uniform(), torch.tensor([5.0, -5.0, 0.0], dtype=torch.float64), 8000)
    assert plausible(draws.sum(0).tolist(), torch.ones(3))


def test_gdas_has_the_gradient_of_the_soft_draw_and_names_what_it_drew() -> None:
    logits = logits_of(8)
    upstream = [torch.randn(n, generator=rng(3), dtype=torch.float64) for n in SIZES]
    gradients = []
    for hard in (True, False):
        draw = Gumbel(hard, 10.0, 0.1).draw(logits, rng(4), 0.9, False)
        loss = torch.stack([vector @ g for vector, g in zip(draw.probs, upstream, strict=True)]).sum()
        gradients.append(torch.autograd.grad(loss, logits))
        assert draw.support == tuple(tuple(range(n)) for n in SIZES)
        assert draw.drawn == (tuple(int(vector.argmax()) for vector in draw.probs) if hard else None)
    for first, second in zip(*gradients, strict=True):
        assert torch.allclose(first, second, rtol=0, atol=1e-15)
    weights = Gumbel(True, 10.0, 0.1).draw(logits, rng(4), 0.9, True)
    assert weights.support == tuple((int(vector.argmax()),) for vector in weights.probs)


def test_temperature_is_linear_and_exact_at_its_ends() -> None:
    mix = Gumbel(False, 10.0, 0.1)
    assert [mix.temperature(progress) for progress in (0.0, 1.0)] == [10.0, 0.1]
    assert mix.temperature(0.25) == pytest.approx(10 - 9.9 * 0.25)
    (logits,) = logits_of(0, sizes=(4,), scale=0.1)
    scaled = []
    for progress, tau in ((0.0, 10.0), (0.25, 7.525), (1.0, 0.1)):
        logs = mix.draw([logits], rng(), progress, False).probs[0].log() * tau
        scaled.append(logs - logs[0])
    assert torch.allclose(scaled[0], scaled[1], rtol=0, atol=1e-10)
    assert torch.allclose(scaled[0], scaled[2], rtol=0, atol=1e-10)


# Gates -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paths", ["all", "two"])
def test_gradient_of_gates_is_the_published_formula(paths: str) -> None:
    """dL/da_i = sum over the options j that are run of dL/dg_j p_j (delta_ij - p_i)."""
    for seed in range(5):
        logits = logits_of(seed)
        mix = Gates("two" if paths == "two" else "all")
        draw = mix.draw(logits, rng(seed), 0.5, False)
        upstream = [torch.randn(n, generator=rng(seed + 1), dtype=torch.float64) for n in SIZES]
        loss = torch.stack([vector @ g for vector, g in zip(draw.probs, upstream, strict=True)]).sum()
        for a, g, run, found in zip(logits, upstream, draw.support, torch.autograd.grad(loss, logits), strict=True):
            assert len(run) == (min(2, len(a)) if paths == "two" else len(a))
            exp = {j: a[j].exp().item() for j in run}
            p = {j: value / sum(exp.values()) for j, value in exp.items()}
            for i in range(len(a)):
                expected = sum(g[j].item() * p[j] * ((i == j) - p[i]) for j in run) if i in run else 0.0
                assert found[i].item() == pytest.approx(expected, abs=1e-14)
            assert abs(found.sum().item()) < 1e-14


def test_law_of_two_paths() -> None:
    """Two without replacement from p, then one of them by the softmax over the two."""
    logits = torch.tensor([0.2, -1.0, 1.1, 0.0], dtype=torch.float64)
    p = logits.softmax(0)
    draws, draw = repeated(Gates("two"), logits, 8000)
    counts: dict[tuple[int, ...], int] = {}
    for gate, run in zip(draws.argmax(1).tolist(), draw.support[::2], strict=True):
        other = next(i for i in run if i != gate)
        counts[(gate, other)] = counts.get((gate, other), 0) + 1
    cases = list(permutations(range(4), 2))
    pair = [p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j]) for i, j in cases]
    expected = torch.stack([both * p[i] / (p[i] + p[j]) for both, (i, j) in zip(pair, cases, strict=True)])
    assert expected.sum().item() == pytest.approx(1)
    assert plausible([counts.get(case, 0) for case in cases], expected)


@torch.no_grad()
def test_two_paths_leave_the_other_probabilities() -> None:
    flat = torch.nn.Parameter(torch.cat([vector.detach() for vector in logits_of(11)]))
    with torch.enable_grad():
        logits = flat.split(SIZES)
    before = [vector.clone() for vector in logits]
    draw = Gates("two").draw(logits, rng(1), 0.5, False)
    for vector, run in zip(logits, draw.support, strict=True):
        for i in run:
            vector[i] += 0.7 * (i + 1)
    moved = [vector.clone() for vector in logits]
    Gates("all").after_step(logits, before, draw)
    assert all(torch.equal(a, b) for a, b in zip(logits, moved, strict=True))
    mix = Gates("two")
    assert isinstance(mix, AfterStep)
    mix.after_step(logits, before, draw)
    for new, old, step, run in zip(logits, before, moved, draw.support, strict=True):
        others = [i for i in range(len(new)) if i not in run]
        assert torch.equal(new[others], old[others])
        if len(run) < 2:  # a gene without a choice keeps what the optimizer did
            assert torch.equal(new, step)
            continue
        assert torch.allclose(new.softmax(0)[others], old.softmax(0)[others], rtol=0, atol=1e-12)
        i, j = run
        assert (new[i] - new[j]).item() == pytest.approx((step[i] - step[j]).item(), abs=1e-12)
        assert (new.softmax(0)[i] - old.softmax(0)[i]).abs() > 1e-3
    assert torch.equal(flat, torch.cat(logits))


def test_after_step_runs_on_live_parameters() -> None:
    """As a search does it: views of a leaf that needs a gradient, changed in place after the optimizer's step."""
    flat = torch.nn.Parameter(torch.cat([vector.detach() for vector in logits_of(12)]))
    optimizer = torch.optim.Adam([flat], lr=0.5, betas=(0.0, 0.999))
    mix = Gates("two")
    for step in range(3):
        optimizer.zero_grad()
        before = [vector.detach().clone() for vector in flat.split(SIZES)]
        draw = mix.draw(flat.split(SIZES), rng(step), 0.5, False)
        torch.cat([vector * torch.arange(len(vector)) for vector in draw.probs]).sum().backward()
        optimizer.step()
        mix.after_step(flat.split(SIZES), before, draw)
        for new, old, run in zip(flat.detach().split(SIZES), before, draw.support, strict=True):
            others = [i for i in range(len(new)) if i not in run]
            assert torch.allclose(new.softmax(0)[others], old.softmax(0)[others], rtol=0, atol=1e-12)
