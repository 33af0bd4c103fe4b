"""Sections `syncs`, `training` and `determinism`: steps that wait for nothing, a run with a restart, the same again."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from benchmarks import arms
from benchmarks.gpu_report import Clock, Report, Setting, deterministic, one_line, random_images
from benchmarks.gpu_syncs import METHODS, QUIET, unexpected, watched
from supernet import checkpoint
from supernet.data.base import Batch
from supernet.describe import rehearsal
from supernet.job import main as train
from supernet.runs import CHECKPOINT, RESULTS, config_dir, read_json
from supernet.setup import make_net, with_defaults
from supernet.trainer import Trainer

CLASSES = 10
SMALL = (16, 192, 32)  # of random images: side in px, number, batch size; 4 steps an epoch
LARGE = (28, 4096, 512)
FIRST = 9  # step that is watched: in the third epoch every method has learned something
CHANCE = 10.0  # % of digits


def syncs(setting: Setting, report: Report, clock: Clock) -> None:
    """A training step of every method: on a GPU PyTorch says where it waits, on a CPU that is simulated."""
    quiet: list[str] = []
    names = [name for name in METHODS if name != "groups"]  # which divide small spaces only; see the tests
    for position, name in enumerate(names):
        if clock.spent(2.0):
            report.add(", ".join(names[position:]), "left out: no time")
            break
        try:
            found = waits_of(setting, METHODS[name])
        except Exception as error:
            report.add(f"a step with {name}", one_line(error), "never waits", False)
            continue
        if found:
            report.add(f"a step with {name}", "; ".join(found)[:300], "never waits", False)
        else:
            quiet.append(name)
    how = "PyTorch's sync debug mode" if setting.cuda else "simulated"
    report.add(f"steps that never wait ({how})", ", ".join(quiet), "", bool(quiet))


def waits_of(setting: Setting, overrides: tuple[str, ...]) -> list[str]:
    """What a late step waits for without being meant to; on a GPU also what making its batch waits for."""
    trainer = _trainer(setting, SMALL, ("train.epochs=3", *overrides))
    batches = trainer._batches()
    while trainer.step < FIRST:
        trainer.train_step(next(batches))
    assert trainer.step % trainer.steps_per_epoch  # an epoch may begin with a look at what was learned
    if setting.cuda:
        with watched(trainer) as found:
            trainer.train_step(next(batches))
    else:
        batch = next(batches)
        with watched(trainer, *batch) as found:
            trainer.train_step(batch)
    return unexpected(found)


def _trainer(setting: Setting, images: tuple[int, int, int], overrides: tuple[str, ...]) -> Trainer:
    """A trainer that writes nowhere, on random images (side, number, batch size)."""
    side, count, batch_size = images
    data = random_images(setting.device, count, side, batch_size, CLASSES)
    shared = ("space=mbv3_tiny", f"space.resolution=[{side}]", f"device={setting.device}", *QUIET)
    config = with_defaults(arms.composed((*shared, f"train.batch_size={batch_size}", *overrides)))
    trainer = rehearsal(config, make_net(config, data, setting.device), data)
    trainer.net.train()
    return trainer


def determinism(setting: Setting, report: Report, clock: Clock) -> None:
    """The same seed twice: the same weights, bit for bit, with deterministic kernels; and without, for information."""
    first = _weights(setting)
    again = _difference(first, _weights(setting))
    report.add("the same run twice, default kernels", "bit for bit" if again == 0 else f"differ by {again:.1e}")
    with deterministic():
        one, other = _weights(setting), _weights(setting)
    again = _difference(one, other)
    value = "bit for bit" if again == 0 else f"differ by {again:.1e}"
    report.add("the same run twice, deterministic kernels", value, "bit for bit", again == 0)


def _weights(setting: Setting, steps: int = 4) -> dict[str, Tensor]:
    """After a few steps with dropout and mixing."""
    trainer = _trainer(setting, SMALL if setting.quick else LARGE, ("train.dropout=0.2", "train.mixup=0.2"))
    for batch in trainer._batches():
        trainer.train_step(batch)
        if trainer.step == steps:
            break
    return {name: tensor.detach().cpu() for name, tensor in trainer.net.state_dict().items()}


def training(setting: Setting, report: Report, clock: Clock) -> None:
    """A short run, the same run interrupted and resumed, and a search in the first."""
    epochs = 2 if setting.quick else 8
    overrides = (*_data(setting), f"train.epochs={epochs}", f"device={setting.device}", "train.ema_decay=0.9")
    with deterministic():
        whole = _run(arms.composed((*overrides, f"runs_dir={setting.folder / 'whole'}")))
        results = read_json(whole / RESULTS)
        top1 = results["subnets"]["largest"]["top1"]["val"]
        learnt = top1 > 5 * CHANCE if setting.limited and _has_digits() else None
        value = f"{results['steps']} steps in {results['seconds']:.0f} s, largest {top1:.1f}% top-1"
        report.add("training", value, "> 50%" if learnt is not None else "", learnt, results=results)
        config = arms.composed((*overrides, f"runs_dir={setting.folder / 'parts'}"))
        with _stopped_at(results["steps"] // 2):
            stopped = _run(config, interrupted=True)
        train({**config, "resume": str(stopped)})
    one, other = (checkpoint.load(folder / CHECKPOINT) for folder in (whole, stopped))
    gap = max(_difference(one[key], other[key]) for key in ("model", "ema"))
    value = "bit for bit" if gap == 0 else f"differ by {gap:.1e}"
    report.add("interrupted and resumed against not", value, "bit for bit", gap == 0)
    if clock.spent(5.0):
        report.add("search", "left out: no time")
        return
    found = _search(whole, setting)
    report.add("search", f"{len(found['trials'])} subnets, winner {found['top1']:.1f}%", "", bool(found["trials"]))


def _has_digits() -> bool:
    return importlib.util.find_spec("sklearn") is not None


def _data(setting: Setting) -> tuple[str, ...]:
    """Digits, which come with scikit-learn; where it is missing, files of random images."""
    if _has_digits():
        return ("data=digits",)
    root, rng = setting.folder / "images", np.random.default_rng(0)
    for number in range(400):
        file = root / f"class{number % 4}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(file)
    small = ("data.size=28", "data.resolution=[20,28]", "data.num_workers=0")
    return ("data=folder", f"data.root={root}", *small)


def _run(config: dict[str, Any], interrupted: bool = False) -> Path:
    """Train; the run's folder."""
    try:
        train(config)
    except KeyboardInterrupt:
        if not interrupted:
            raise
    (folder,) = (Path(config["runs_dir"]) / "train").iterdir()
    return folder


@contextmanager
def _stopped_at(step: int) -> Iterator[None]:
    """Ctrl-C after training step number `step`."""
    original = Trainer.train_step

    def stopping(trainer: Trainer, batch: Batch) -> dict[str, float]:
        values = original(trainer, batch)
        if trainer.step == step:
            signal.raise_signal(signal.SIGINT)
        return values

    with mock.patch.object(Trainer, "train_step", stopping):
        yield


def _search(run: Path, setting: Setting) -> dict[str, Any]:
    """A search of a few subnets: their number, and the winner's top-1 on the validation split."""
    from search.runner import main as search

    few = 4 if setting.quick else 24
    overrides = (f"checkpoint={run}", "algorithm=random", f"evaluations={few}", "finalists=2")
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config: Any = OmegaConf.to_container(
            compose("search", [*overrides, f"device={setting.device}"]), resolve=True, throw_on_missing=True
        )
    top1 = search(config)
    (folder,) = (run / "search").iterdir()
    return {"trials": (folder / "trials.jsonl").read_text().splitlines()[1:], "top1": top1}


def _difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest difference of two state dicts."""
    assert one.keys() == other.keys()
    return max(float((one[key].double() - other[key].double()).abs().max()) for key in one if one[key].numel())
