"""Whole training runs: what they write, what they look at, where they start from, and that they repeat."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_space
from tiny_run import assert_same, command, only_run, start, state_of, tiny_config

from supernet import checkpoint, load_subnet, trainer
from supernet.build import make_data, open_run
from supernet.data.base import Settings
from supernet.data.memory import MemoryData
from supernet.data.splits import fingerprint
from supernet.errors import UserError
from supernet.evaluate import evaluate
from supernet.job import main
from supernet.log import read_metrics
from supernet.meter import LossMeter
from supernet.net import Supernet
from supernet.runs import read_json
from supernet.samplers.base import Slot
from supernet.setup import make_net, with_defaults

CPU = torch.device("cpu")
FILES = {"config.json", "environment.json", "splits.json", "metrics.jsonl", "metrics.csv", "log.txt"}
FILES |= {"checkpoint.pt", "checkpoint-1.pt", "best.pt", "results.json", "curves.png", "health.png", ".lock"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Layers this small only lose by sharing their work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than training here."""
    monkeypatch.setattr(trainer, "curves", lambda metrics, path: None)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained")


@pytest.fixture(scope="module")
def finished(root: Path) -> Path:
    """One whole run with a moving average; nobody may change it."""
    main(tiny_config(root, "train.ema_decay=0.9", "train.eval_every=1"))
    return only_run(root)


def all_records(run: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == kind]


def test_a_run_leaves_its_files_and_no_others(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == FILES
    assert finished.parent.name == "train"
    assert finished.name.endswith("-tiny-digits")
    assert read_json(finished / "config.json")["train"]["epochs"] == 3
    assert {"git", "packages", "python", "argv"} <= set(read_json(finished / "environment.json"))
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_splits_are_recorded_and_disjoint(finished: Path, root: Path) -> None:
    """Every image of the original file is in exactly one split, which serves that image and its label."""
    from sklearn.datasets import load_digits

    record = read_json(finished / "splits.json")
    data = make_data(tiny_config(root), CPU)
    assert isinstance(data, MemoryData)
    assert record == json.loads(json.dumps(data.split_record()))
    assert sorted(torch.cat(list(data._index.values())).tolist()) == list(range(1797))
    raw = load_digits()
    for split, index in data._index.items():
        assert record["counts"][split] == len(index) > 0
        assert record["sha256"][split] == fingerprint(index)
        served = data.calibration(8, 1797) if split == "train" else [images for images, _ in data.evaluation(split, 8)]
        pixels = (torch.cat(list(served)).squeeze(1) * data.info.std[0] + data.info.mean[0]) * 16
        torch.testing.assert_close(pixels.double(), torch.from_numpy(raw.images)[index], atol=0.05, rtol=0)
        assert torch.equal(data._targets[split], torch.from_numpy(raw.target)[index])
    trained = {int(i) for batch in data.train(0) for i in data._index["train"][batch.index]}
    assert len(trained) == 1024
    assert not trained & {int(i) for split in ("val", "search", "test") for i in data._index[split]}


def test_metrics_are_complete_and_the_same_in_both_files(finished: Path) -> None:
    losses = all_records(finished, "train")
    assert [row["step"] for row in losses] == list(range(1, 13))
    assert {"loss/largest", "loss/random", "loss/smallest", "lr", "epoch"} <= losses[0].keys()
    evaluations = all_records(finished, "eval")
    assert [row["epoch"] for row in evaluations] == [1, 2, 3]
    assert all({"smallest/top1", "random0/top1", "largest/top1"} <= row.keys() for row in evaluations)
    with (finished / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [
            row["step"] for row in read_metrics(finished / "metrics.jsonl")
        ]


def test_the_first_loss_is_that_of_guessing(finished: Path) -> None:
    """Ten classes and a classifier with tiny weights: log 10."""
    first = all_records(finished, "train")[0]
    for role in ("largest", "random", "smallest"):
        assert first[f"loss/{role}"] == pytest.approx(math.log(10), abs=0.02)


def test_the_learning_rate_follows_the_schedule(finished: Path) -> None:
    rates = [row["lr"] for row in all_records(finished, "train")]
    for step, rate in enumerate(rates):
        cosine = 0.5 * (1 + math.cos(math.pi * step / 12))
        assert rate == pytest.approx(0.1 * cosine * min(1.0, 0.001 + 0.999 * step / 4))


def test_results_describe_the_shipped_weights(finished: Path, root: Path) -> None:
    results = read_json(finished / "results.json")
    assert results["steps"] == 12
    assert results["splits"] == {"train": 1078, "val": 180, "search": 180, "test": 359}
    opened = open_run(finished, CPU)
    data = make_data(opened.config, CPU)
    for name in ("smallest", "random0", "largest"):
        entry = results["subnets"][name]
        arch = opened.net.space.from_json(entry["arch"])
        plan = opened.net.space.plan(arch)
        assert (entry["macs"], entry["params"]) == (plan.macs, plan.params)
        values = trainer.scores(opened.net, {name: arch}, data, ("val", "test"), 64)
        assert entry["top1"] == {split: values[f"{name}/{split}/top1"] for split in ("val", "test")}


def test_the_best_evaluation_is_kept(finished: Path) -> None:
    means = []
    for row in all_records(finished, "eval"):
        top1 = [value for key, value in row.items() if key.endswith("/top1")]
        means.append((sum(top1) / len(top1), -row["step"]))
    best = checkpoint.load(finished / "best.pt")
    assert (best["best"], -best["step"]) == pytest.approx(max(means))


@pytest.mark.parametrize("test", [True, False])
def test_the_test_set_is_seen_once_at_the_end_if_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_plot: None, test: bool
) -> None:
    seen: list[tuple[str, int]] = []
    steps = 0
    original, take_step = MemoryData.evaluation, trainer.Trainer.train_step

    def spy(self: MemoryData, split: str, *args: Any) -> Any:
        seen.append((split, steps))
        return original(self, split, *args)

    def counted(self: trainer.Trainer, batch: Any) -> Any:
        nonlocal steps
        steps += 1
        return take_step(self, batch)

    monkeypatch.setattr(MemoryData, "evaluation", spy)
    monkeypatch.setattr(trainer.Trainer, "train_step", counted)
    main(tiny_config(tmp_path, "train.eval_every=1", f"train.test={test}"))
    assert {split for split, step in seen if step < 12} == {"val"}
    assert [split for split, _ in seen].count("test") == (3 if test else 0)  # once for each watched subnet
    assert {split for split, _ in seen} == ({"val", "test"} if test else {"val"})
    top1 = read_json(only_run(tmp_path) / "results.json")["subnets"]["largest"]["top1"]
    assert set(top1) == ({"val", "test"} if test else {"val"})


@pytest.mark.parametrize("key", ["val", "test"])
def test_a_split_that_will_be_needed_must_hold_images(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=rf"data\.{key}_fraction"):
        main(tiny_config(tmp_path, f"data.{key}_fraction=0"))
    assert not (tmp_path / "runs").exists()


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path: Path, no_plot: None) -> None:
    states = []
    for number, seed in enumerate((1, 1, 2)):
        torch.manual_seed(number)  # the state that the caller left must not matter
        torch.rand(number)
        folder = tmp_path / str(number)
        overrides = ("train.epochs=1", "train.mixup=0.2", "train.dropout=0.2", "train.drop_path=0.2")
        main(tiny_config(folder, f"seed={seed}", *overrides))
        states.append(state_of(only_run(folder))["model"])
    assert_same(states[0], states[1])
    assert all(not torch.equal(states[0][k], v) for k, v in states[2].items() if v.ndim > 1)


def test_training_learns(tmp_path: Path, no_plot: None) -> None:
    """Every watched subnet of a net of 3,000 weights knows most digits after 12 epochs."""
    long = ("train.epochs=12", "train.batch_size=64", "train.eval_every=12", "optim.lr=0.2")
    main(tiny_config(tmp_path, *long))
    results = read_json(only_run(tmp_path) / "results.json")["subnets"]
    assert results["largest"]["top1"]["test"] > 60
    assert results["smallest"]["top1"]["test"] > 40


# Where a run starts from ------------------------------------------------------------------------------------


def test_a_subnet_starts_with_exactly_the_supernet_s_slices(finished: Path, root: Path) -> None:
    """The moving average's, as everywhere."""
    config = tiny_config(root, "arch=smallest", "init=supernet", f"init_from={finished}")
    alone = make_net(config, make_data(config, CPU), CPU)
    supernet = Supernet(open_run(finished, CPU).net.space)
    supernet.load_state_dict(state_of(finished)["ema"])
    assert alone.space.size() == 1
    expected = supernet.extract(supernet.space.smallest())
    assert_same(dict(alone.net.state_dict()), dict(expected.state_dict()))
    state = state_of(finished)
    assert not torch.equal(state["ema"]["net.stem.conv.weight"], state["model"]["net.stem.conv.weight"])


def test_without_a_source_the_newest_finished_run_is_taken(finished: Path, root: Path) -> None:
    assert with_defaults(tiny_config(root, "arch=largest"))["init_from"] == str(finished)
    assert with_defaults(tiny_config(root, "arch=largest", "init=scratch"))["init_from"] is None
    assert with_defaults(tiny_config(root))["init_from"] is None


def test_from_scratch_needs_no_run_and_depends_on_the_seed(tmp_path: Path) -> None:
    nets = []
    for seed in (0, 0, 1):
        config = tiny_config(tmp_path, "arch=largest", "init=scratch", f"seed={seed}")
        nets.append(make_net(config, make_data(config, CPU), CPU).state_dict())
    assert_same(dict(nets[0]), dict(nets[1]))
    assert all(not torch.equal(value, nets[0][key]) for key, value in nets[2].items() if value.ndim > 1)


def test_a_subnet_without_any_run_to_inherit_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished run .*python train\.py"):
        main(tiny_config(tmp_path, "arch=smallest"))
    assert not (tmp_path / "runs").exists()


def test_training_one_subnet_exports_it(finished: Path, tmp_path: Path, no_plot: None) -> None:
    main(tiny_config(tmp_path, "arch=random:1", f"init_from={finished}", "train.epochs=1"))
    run = only_run(tmp_path, "subnet")
    results = read_json(run / "results.json")
    assert list(results["subnets"]) == ["largest"]
    entry = results["subnets"]["largest"]
    config = tiny_config(tmp_path)
    batches = make_data(config, CPU).evaluation("test", entry["arch"]["resolution"])
    subnet = load_subnet(run / "subnet").to(memory_format=torch.channels_last)
    assert evaluate(subnet, batches).top1 == pytest.approx(entry["top1"]["test"])
    assert read_json(run / "subnet" / "arch.json") == entry["arch"]
    assert sum(p.numel() for p in subnet.parameters()) == entry["params"]


def test_one_subnet_alone_is_trained_by_labels_only(tmp_path: Path, no_plot: None) -> None:
    main(tiny_config(tmp_path, "arch=smallest", "init=scratch", "train.epochs=1"))
    run = only_run(tmp_path, "subnet")
    rows = all_records(run, "train")
    assert {key for row in rows for key in row if key.startswith("loss/")} == {"loss/largest"}


def test_init_from_starts_a_new_run_with_the_old_weights(finished: Path, tmp_path: Path, no_plot: None) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    config = tiny_config(tmp_path, f"init_from={finished}")
    started = make_net(config, make_data(config, CPU), CPU)
    assert_same(dict(started.state_dict()), dict(state_of(finished)["ema"]))
    main(config)
    assert only_run(tmp_path) != finished
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_a_source_for_other_classes_is_refused(finished: Path, root: Path) -> None:
    images = torch.zeros(60, 1, 8, 8, dtype=torch.uint8)
    settings = Settings(8, 8, 0, 0, 0.1, 0.1, (6, 8))
    names = ("a", "b", "c")
    other = MemoryData(
        *(images, torch.arange(60) % 3),
        **{"name": "three", "class_names": names, "mean": (0.5,), "std": (0.5,)},
        settings=settings,
    )
    with pytest.raises(UserError, match=r"10 classes .*'three' has 3"):
        make_net(tiny_config(root, f"init_from={finished}"), other, CPU)


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(tiny_config(tmp_path, "dry_run=true"))
    assert [path.name for path in tmp_path.iterdir()] == ["configs"]
    shown = capsys.readouterr().out
    for words in ("8 subnets", "MMACs", "M parameters", "12 steps", " min ", "MB", "train 1,078"):
        assert words in shown


@pytest.mark.parametrize(
    "override", ["optim.lr=-1", "schedule.warmup_epochs=-1", "sampler.num_random=-1", "distill.temperature=0"]
)
def test_a_refused_setting_leaves_no_run_folder(tmp_path: Path, override: str) -> None:
    with pytest.raises(UserError):
        main(tiny_config(tmp_path, override))
    assert not list((tmp_path / "runs").glob("*/*"))


def test_a_diverging_run_ends_in_one_line_with_a_checkpoint_that_is_good(tmp_path: Path) -> None:
    process = start(*command(tmp_path, "optim.lr=1e25", "train.save_every=1", "train.eval_every=1"))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "NaN or infinite" in err
    assert "optim.lr" in err
    run = only_run(tmp_path)
    assert not (run / "results.json").exists()
    for file in run.glob("*.pt"):
        state = checkpoint.load(file)
        assert all(torch.isfinite(value).all() for value in state["model"].values()), file.name


@pytest.mark.parametrize("at", [6, 4])
def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The loss of a step may be finite when its update is not; step 4 ends an epoch, before the first evaluation."""
    take_step = trainer.Trainer.train_step

    def overflows(self: trainer.Trainer, batch: Any) -> Any:
        values = take_step(self, batch)
        if self.step == at:
            with torch.no_grad():
                next(self.net.parameters()).view(-1)[3] = math.inf
        return values

    monkeypatch.setattr(trainer.Trainer, "train_step", overflows)
    with pytest.raises(UserError, match=rf"before step {at}: lower optim\.lr"):
        main(tiny_config(tmp_path, "train.save_every=1", "train.eval_every=1"))
    run = only_run(tmp_path)
    assert state_of(run)["step"] == at - 1
    for file in run.glob("*.pt"):
        assert all(value.isfinite().all() for value in checkpoint.load(file)["model"].values())
    assert (run / "best.pt").exists() == (at == 6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_reported_with_its_role(bad: float) -> None:
    meter = LossMeter()
    arch = tiny_space().largest()
    slots = [Slot(arch, "largest"), Slot(arch, "random"), Slot(arch, "random")]
    meter.add(slots, [torch.tensor(value) for value in (1.0, 2.0, 4.0)])
    meter.add(slots, [torch.tensor(value) for value in (3.0, 2.0, 4.0)])
    assert meter.read(2) == {"loss/largest": 2.0, "loss/random": 3.0}
    assert meter.read(2) == {}
    meter.add(slots, [torch.tensor(value) for value in (1.0, bad, 4.0)])
    with pytest.raises(UserError, match="loss/random became NaN or infinite before step 3"):
        meter.read(3)
