"""Gradient-based search end to end: every algorithm, with and without trained weights, and what its loop must do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_gradient import (
    ALGORITHMS,
    FRESH,
    assert_same_search,
    make_learner,
    random_state,
    read_trace,
    search_config,
    state_of,
)
from tiny_run import tiny_config

from search import runner
from search.gradient.learner import Learner
from search.gradient.problem import Step
from supernet import job
from supernet.checkpoint import load
from supernet.errors import UserError
from supernet.export import load_subnet
from supernet.mixture import Mixture

TIGHT = "constraint.macs=0.6"
COMPOSED = (
    ("darts", "algorithm/mix=gdas", "algorithm/update=second_order", "algorithm/bound=lagrangian"),
    ("darts", "algorithm/mix=sparsemax", "algorithm/update=rarts", "algorithm.update.lam=1.0"),
    ("tangle", "algorithm/select=perturb", "algorithm.select.interval=1", "algorithm/bound=fixed"),
    ("gdas", "algorithm/update=single_level", "algorithm/bound=none", "algorithm.candidates=2"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained supernet of the tiny space."""
    folder = tmp_path_factory.mktemp("trained")
    job.main(tiny_config(folder, "train.epochs=2"))
    (run,) = (folder / "runs" / "train").iterdir()
    return run


def weights_of(run: Path) -> dict[str, Any]:
    return dict(load(run / "checkpoint.pt")["model"])


def check(folder: Path, value: float, epochs: int = 2) -> dict[str, Any]:
    """What every finished search must have; returns its results."""
    results = json.loads((folder / "results.json").read_text())
    bound = results["budget"]["macs"][1]
    assert results["winner"]["metrics"]["val"]["top1"] == value
    assert results["winner"]["macs"] <= bound
    assert "VIOLATED" not in (folder / "log.txt").read_text()
    records = read_trace(folder)
    assert [record["epoch"] for record in records] == list(range(1, epochs + 1))
    assert all(record["costs"]["macs"] <= bound for record in records)
    assert all(abs(sum(vector) - 1) < 1e-9 for record in records for vector in record["probs"])
    for name in ("probabilities.png", "search.png", "front.png", "report.md"):
        assert (folder / name).stat().st_size > 0, name
    subnet = load_subnet(folder / "subnet")
    assert subnet(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    return dict(results)


# Whole searches -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_from_initial_weights(algorithm: str, tmp_path: Path) -> None:
    value = runner.main(search_config(tmp_path, algorithm, FRESH, TIGHT))
    (folder,) = (tmp_path / "runs" / "search").iterdir()
    results = check(folder, value)
    assert folder.name.endswith(algorithm)
    assert results["selected"] == read_trace(folder)[-1]["decoded"]
    own = state_of(folder)["nets"]
    assert len(own) == (2 if algorithm == "rarts" else 1)
    saved = weights_of(folder / "supernet")
    assert saved.keys() == own[0].keys()
    assert all(torch.equal(saved[key], value) for key, value in own[0].items())
    initial = make_learner(tmp_path / "again", algorithm)
    names = {name for name, _ in initial.net.named_parameters()}
    assert any(not torch.equal(saved[name], initial.net.state_dict()[name]) for name in names)
    assert not torch.equal(state_of(folder)["arch"]["flat"], initial.arch.flat)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_on_a_trained_supernet(algorithm: str, trained: Path, tmp_path: Path) -> None:
    before = weights_of(trained)
    words = (f"checkpoint={trained}", TIGHT, "algorithm.warmup_epochs=1", "algorithm.arch_every=2")
    value = runner.main(search_config(tmp_path, algorithm, *words))
    folder = max((trained / "search").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    check(folder, value)
    assert not (folder / "supernet").exists()
    state = state_of(folder)
    assert state["nets"] == state["optimizers"] == []
    after = weights_of(trained)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    # Neither a warm-up of the weights nor their steps are waited for: every step moved the architecture parameters.
    assert state["arch_optimizer"]["state"][0]["step"] == state["step"]


def test_the_weights_of_a_trained_supernet_stay_in_memory_too(trained: Path, tmp_path: Path) -> None:
    kept: list[Learner] = []
    run = Learner.run

    def watched(learner: Learner) -> None:
        kept.append(learner)
        run(learner)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "run", watched)
        words = ("algorithm/select=perturb", "algorithm.select.interval=1")
        runner.main(search_config(tmp_path, "tangle", f"checkpoint={trained}", *words))
    (learner,) = kept
    before = weights_of(trained)
    assert all(torch.equal(value, before[key]) for key, value in learner.net.state_dict().items())
    assert all(parameter.requires_grad for parameter in learner.net.parameters())


@pytest.mark.parametrize("words", COMPOSED, ids=lambda words: "-".join(word.rpartition("=")[2] for word in words))
def test_parts_compose(words: tuple[str, ...], tmp_path: Path) -> None:
    value = runner.main(search_config(tmp_path, words[0], FRESH, TIGHT, *words[1:]))
    (folder,) = (tmp_path / "runs" / "search").iterdir()
    check(folder, value)
    if "algorithm/select=perturb" in words:
        genes = 2  # with something to choose, but for the resolution
        record = read_trace(folder)[-1]
        assert state_of(folder)["step"] == record["step"] + genes * record["step"] // 2


def test_a_trained_supernet_can_learn_on(trained: Path, tmp_path: Path) -> None:
    runner.main(search_config(tmp_path, "darts", f"checkpoint={trained}", "algorithm.weights=train"))
    folder = max((trained / "search").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    before, after = weights_of(trained), weights_of(folder / "supernet")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], value) for key, value in after.items())


def test_selecting_again_from_what_was_learned(trained: Path, tmp_path: Path) -> None:
    words = (f"checkpoint={trained}", "algorithm.epochs=3")
    runner.main(search_config(tmp_path, "tangle", *words))
    first = max((trained / "search").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    again = (f"checkpoint={trained}", f"algorithm.arch_from={first}", "algorithm.epochs=0")
    runner.main(search_config(tmp_path, "darts", *again))
    second = max((trained / "search").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert torch.equal(state_of(second)["arch"]["flat"], state_of(first)["arch"]["flat"])
    one, other = (json.loads((folder / "results.json").read_text()) for folder in (first, second))
    assert other["steps"] == 0
    assert other["selected"] == one["selected"]
    with pytest.raises(UserError, match="no gradient search is there"):
        runner.main(search_config(tmp_path, "tangle", f"checkpoint={trained}", f"algorithm.arch_from={tmp_path}"))


def test_parameters_of_another_space_are_refused(tmp_path: Path) -> None:
    learner = make_learner(tmp_path / "one", "tangle")
    learner.save_state()
    with pytest.raises(UserError, match="a search of another space than 'tiny'"):
        make_learner(tmp_path / "two", "tangle", f"algorithm.arch_from={tmp_path / 'one'}", "space.resolution=[8]")


# Randomness -----------------------------------------------------------------------------------------------------


def test_the_seed_alone_decides(tmp_path: Path) -> None:
    """Not the state of the global generator; dropout's numbers follow the seed too."""
    found: list[Path] = []
    for place, seed, other in (("a", 0, 1), ("b", 0, 2), ("c", 1, 1)):
        torch.manual_seed(other)
        runner.main(search_config(tmp_path / place, "tangle", FRESH, f"seed={seed}", "algorithm.dropout=0.3"))
        found += (tmp_path / place / "runs" / "search").iterdir()
    assert_same_search(found[1], found[0])
    assert not torch.equal(state_of(found[2])["arch"]["flat"], state_of(found[0])["arch"]["flat"])


def test_dropout_differs_from_step_to_step_and_not_within_a_draw(tmp_path: Path) -> None:
    """And the global generator is left as it was found."""
    learner = make_learner(tmp_path, "darts", "algorithm.dropout=0.5")
    train, arch = next(learner.halves.epoch(0))
    learner.frozen = {learner.side or 0: 0}
    step, next_step = Step(learner, 0, train, arch, 0.0), Step(learner, 1, train, arch, 0.0)
    before = random_state()
    with step.same_draw():
        one, same = step.train_loss(), step.train_loss()
    assert torch.equal(one, same)
    assert random_state() == before
    losses = [one, step.train_loss(), next_step.train_loss()]
    assert len({loss.item() for loss in losses}) == 3


# The loop -------------------------------------------------------------------------------------------------------


def spy(patch: pytest.MonkeyPatch, learner: Learner) -> list[tuple[float, bool, bool]]:
    """(progress, whether weights moved, whether architecture parameters moved), filled at every step."""
    seen: list[tuple[float, bool, bool]] = []
    one = Learner.one

    def watched(self: Learner, *args: Any, **named: Any) -> None:
        progress, arch = self.progress, self.arch.flat.detach().clone()
        weights = [parameter.detach().clone() for parameter in self.net.parameters()]
        one(self, *args, **named)
        moved = any(not torch.equal(a, b) for a, b in zip(weights, self.net.parameters(), strict=True))
        seen.append((progress, moved, not torch.equal(arch, self.arch.flat)))

    patch.setattr(Learner, "one", watched)
    return seen


def test_warm_up_interval_and_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("algorithm.epochs=4", "algorithm.warmup_epochs=1", "algorithm.arch_every=3")
    learner = make_learner(tmp_path, "darts", *words)
    seen = spy(monkeypatch, learner)
    learner.run()
    per_epoch, total = learner.halves.steps_per_epoch, learner.total_steps
    assert len(seen) == total == 4 * per_epoch
    progress = [entry[0] for entry in seen]
    assert progress == pytest.approx([step / (total - 1) for step in range(total)])
    assert all(moved for _, moved, _ in seen)
    assert [moved for *_, moved in seen] == [step >= per_epoch and step % 3 == 0 for step in range(total)]


def test_a_decided_gene_is_certain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner(tmp_path, "tangle")
    learner.run()
    learner.settings.select.epochs = lambda space: 1  # type: ignore[method-assign]
    plans: list[Mixture] = []
    forward = learner.net.forward

    def watched(images: Any, mixture: Any, **named: Any) -> Any:
        plans.append(mixture)
        return forward(images, mixture, **named)

    monkeypatch.setattr(learner.net, "forward", watched)
    space = learner.space
    decided = {next(i for i, gene in enumerate(space.genes) if gene.key == key): 1 for key in ("resolution", "depth")}
    learner.tune(decided, 0)
    assert len(plans) == 2 * learner.halves.steps_per_epoch
    for mixture in plans:
        for gene, option in decided.items():
            assert mixture.support[gene] == (option,)
            assert mixture.probs[gene].tolist() == [0.0, 1.0]
    probabilities = learner.probabilities()
    assert all(probabilities[gene].tolist() == [0.0, 1.0] for gene in decided)
    assert all(0 < p.min() < 1 for gene, p in enumerate(probabilities) if gene not in decided and len(p) > 1)
    largest = learner.budget.costs(space.largest())["macs"]
    assert learner.expected()["macs"].item() < largest


def test_the_dual_bound_draws_the_expected_cost_down(tmp_path: Path) -> None:
    words = ("constraint.macs=0.4", "algorithm.epochs=20", "algorithm.batch_size=512", "algorithm.arch_lr=0.1")
    learner = make_learner(tmp_path, "darts", *words, "algorithm.bound.rate=1.0")
    learner.run()
    bound = learner.budget.windows["macs"][1]
    costs = [record.expected["macs"] for record in learner.trace.records]
    assert costs[0] > 1.2 * bound
    assert costs[-1] < bound * 1.02
    free = make_learner(tmp_path / "free", "darts", *words, "algorithm/bound=none")
    free.run()
    assert free.trace.records[-1].expected["macs"] > 1.1 * costs[-1]


# What is learned ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def largest_only(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights of a supernet whose largest subnet is trained and whose other subnets never were."""
    learner = make_learner(tmp_path_factory.mktemp("largest"), "darts", "space.resolution=[8]")
    net = learner.net.requires_grad_(True).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for epoch in range(30):
        for batch in learner.data.train(epoch):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(batch.images, learner.space.largest()), batch.targets)
            loss.backward()
            optimizer.step()
    assert loss.item() < 1.2
    return net.state_dict()


# Mixes that draw one option see the loss's slope there alone, which here leads to the noise: not asked of them.
@pytest.mark.parametrize(
    ("algorithm", "damaged"),
    [*((name, False) for name in ("tangle", "darts", "gdas", "proxyless")), ("tangle", True), ("darts", True)],
)
def test_the_better_option_is_found(
    algorithm: str, damaged: bool, largest_only: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Where only the largest subnet was trained it wins; where its second block is noise, that is left out."""
    words = ("space.resolution=[8]", "algorithm.epochs=32", "algorithm/bound=none")
    learner = make_learner(tmp_path, algorithm, *words, learn_weights=False)
    weights = {key: value.clone() for key, value in largest_only.items()}
    noise = torch.Generator().manual_seed(0)
    if damaged:
        for name in [name for name in weights if "stages.0.1.project.norm" in name]:
            weights[name] = 30 * torch.randn(weights[name].shape, generator=noise)
    learner.net.load_state_dict(weights)
    learner.run()
    depth = next(i for i, gene in enumerate(learner.space.genes) if gene.key == "depth")
    found = learner.probabilities()[depth]
    assert found[0 if damaged else 1] > 0.6, found


def at_every_resolution(learner: Learner, held: bool) -> dict[int, tuple[float, torch.Tensor]]:
    """By the position of the drawn resolution: the loss, and the gradient that the resolution's logits get."""
    train, arch = next(learner.halves.epoch(0))
    assert learner.side == 0
    found: dict[int, tuple[float, torch.Tensor]] = {}
    number = 0
    while len(found) < 2:
        step = Step(learner, number, train, arch, 0.0)
        sides: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            watch(patch, learner, sides)
            if held:
                with step.same_draw():
                    step.train_loss()
                    loss = step.val_loss()
            else:
                loss = step.val_loss()
        (gradient,) = torch.autograd.grad(loss, step.arch())
        found[(6, 8).index(sides[-1])] = (loss.item(), gradient[:2])
        number += 1
    return found


def watch(patch: pytest.MonkeyPatch, learner: Learner, sides: list[int]) -> None:
    forward = learner.net.forward

    def watched(images: Any, mixture: Any, **named: Any) -> Any:
        assert images.shape[-1] == mixture.resolution
        sides.append(mixture.resolution)
        return forward(images, mixture, **named)

    patch.setattr(learner.net, "forward", watched)


@pytest.mark.parametrize("held", [False, True])
def test_the_resolution_learns_the_gradient_of_the_expected_loss(held: bool, tmp_path: Path) -> None:
    """Averaged over the draws, by their probabilities: that of sum p(r) loss(r), also after a pass of the same draw."""
    learner = make_learner(tmp_path, "darts")
    with torch.no_grad():
        learner.arch.flat[:2] = torch.tensor([0.7, -0.4], dtype=torch.float64)
        dict(learner.net.named_parameters())["net.head.classifier.weight"].mul_(20)  # for losses that differ
    learner.baseline = torch.tensor(2.0)
    found = at_every_resolution(learner, held)
    logits = learner.arch.flat.detach()[:2].requires_grad_()
    p = logits.softmax(0)
    losses = torch.tensor([found[r][0] for r in range(2)], dtype=torch.float64)
    (exact,) = torch.autograd.grad((p * losses).sum(), logits)
    assert exact.abs().min() > 1e-3
    average = sum(p[r].item() * found[r][1] for r in range(2))
    assert torch.allclose(torch.as_tensor(average), exact, rtol=1e-3, atol=0.0)


def test_resolutions_are_drawn_by_their_probabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner(tmp_path, "darts")
    with torch.no_grad():
        learner.arch.flat[:2] = torch.tensor([1.0, 0.0], dtype=torch.float64)
    train, arch = next(learner.halves.epoch(0))
    sides: list[int] = []

    def forward(images: Any, mixture: Any, dropout: float) -> torch.Tensor:
        sides.append(mixture.resolution)
        return torch.zeros(len(images), 10)

    monkeypatch.setattr(learner.net, "forward", forward)
    for number in range(400):
        Step(learner, number, train, arch, 0.0).train_loss(for_weights=True)
    share = learner.probabilities()[0][0].item()
    assert share == pytest.approx(1 / (1 + torch.tensor(-1.0).exp().item()))
    assert sides.count(6) / 400 == pytest.approx(share, abs=0.08)  # 3.6 standard deviations


def test_the_mean_that_resolutions_are_compared_with_follows_the_losses(tmp_path: Path) -> None:
    learner = make_learner(tmp_path, "darts")
    train, arch = next(learner.halves.epoch(0))
    first = Step(learner, 0, train, arch, 0.0)
    loss = first.val_loss()
    (gradient,) = torch.autograd.grad(loss, first.arch())
    assert gradient[:2].tolist() == [0.0, 0.0]  # nothing to compare with yet
    assert learner.baseline is None
    first.end()
    assert learner.baseline is not None
    assert torch.equal(learner.baseline, loss.detach())
    second = Step(learner, 1, train, arch, 0.0)
    value = second.val_loss().item()
    second.train_loss(for_weights=True)  # does not count
    second.end()
    assert learner.baseline.item() == pytest.approx(loss.item() + 0.05 * (value - loss.item()), abs=1e-6)
