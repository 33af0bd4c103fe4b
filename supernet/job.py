"""A training run from its configuration: build -> resume -> train -> save, in one process or in several."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from supernet.build import make_data, open_run, pick_device
from supernet.data import Data
from supernet.describe import describe, dry_run, rehearsal
from supernet.distributed import TIMEOUT_S, Ranks, joined
from supernet.errors import UserError
from supernet.export import export_alone
from supernet.layout import with_format
from supernet.log import RunLog
from supernet.memory import keep_freed_memory
from supernet.micro_batch import settled, statistics_note
from supernet.net import Supernet
from supernet.notes import notes
from supernet.rescue import saying_what_is_kept
from supernet.restart import ENVIRONMENT, begun_before, launcher
from supernet.resume import check_same_splits, own_unfinished, resumed_config
from supernet.runs import RESULTS, environment, lock, read_json, write_json
from supernet.settings import LONGEST_S, check_top_level
from supernet.setup import make_net, new_folder, with_defaults
from supernet.shares import shares_note
from supernet.trainer import Trainer


def main(config: dict[str, Any]) -> float:
    """Train what the configuration says; returns the validation top-1 of the largest subnet, in percent.

    `config["overrides"]`, if present, lists what was typed on the command line. Under torchrun all processes train one
    supernet; the first one prints and writes.
    """
    overrides = config.get("overrides", [])
    config = {key: value for key, value in config.items() if key != "overrides"}
    limit = config.get("timeout_s")
    with joined(limit if isinstance(limit, int | float) and 0 < limit <= LONGEST_S else TIMEOUT_S) as ranks:
        check_top_level(config)
        with ExitStack() as stack:
            if (top1 := ranks.once(lambda: _done_before(config))) is not None:
                return float(top1)
            trainer = _prepared(config, overrides, ranks, stack)
            return 0.0 if trainer is None else _trained(trainer)


def _done_before(config: dict[str, Any]) -> float | None:
    """The result, if an earlier start by the same launcher has finished: a process may fail when all is done."""
    for kind in ("train", "subnet"):
        folder = begun_before(Path(config["runs_dir"]) / kind)
        if folder is not None and (folder / RESULTS).exists():
            print(f"{folder} was finished before this restart")
            return float(read_json(folder / RESULTS)["subnets"]["largest"]["top1"]["val"])
    return None


def _prepared(config: dict[str, Any], overrides: Sequence[str], ranks: Ranks, stack: ExitStack) -> Trainer | None:
    """The trainer of a new or resumed run in its folder, which `stack` holds; None once a dry run is done."""
    with _muted(not ranks.first):
        config, folder = _resumed(config, overrides, ranks)
        check_top_level(config)  # a stored configuration can be damaged, or somebody else's
        device = _device(config["device"], ranks)
        if device.type == "cpu":
            keep_freed_memory()
        data = make_data(config, device)
        if folder is None:
            config = ranks.once(lambda: with_defaults(config))
            typed = any(word.lstrip("+").startswith(("space=", "space.")) for word in overrides)
            net = make_net(config, data, device, own_space=typed)
        else:
            check_same_splits(folder, data)
            net = open_run(folder, device, earlier=True).net
        if config["dry_run"]:
            ranks.once(lambda: _dry_run(config, net, data, folder))
            return None
        resume = folder is not None
        if folder is None:
            rehearsal(config, net, data, ranks)  # refuses what is wrong before there is a folder
            config = ranks.once(lambda: settled(with_format(config, net, data.info.channels), net, ranks.world))
            folder = Path(ranks.once(lambda: str(new_folder(config, net.space.name))))
        log = _opened(folder, config, ranks, stack)
        trainer = Trainer(config, net, data, folder, log, ranks)
    if resume:
        trainer.restore()
    ranks.once(lambda: _recorded(trainer, device, resume))
    for line in (shares_note(config, net, ranks), *notes(config), statistics_note(config, net)):
        if line is not None:
            log.say(f"note: {line}")
    return trainer


def _trained(trainer: Trainer) -> float:
    """Run it to its end and export what is to be exported."""
    config, folder, log = trainer.config, trainer.folder, trainer.log
    results = trainer.run()

    def conclude() -> None:
        if config["arch"] is not None:
            log.say(f"exported to {export_alone(trainer.scored_net, trainer.data, folder, results)}")
        write_json(folder / RESULTS, results)  # last: a run that has it is finished
        if config["arch"] is None:
            log.say(f"next: python search.py checkpoint={folder}")

    trainer.ranks.once(conclude)
    return float(results["subnets"]["largest"]["top1"]["val"])


def _resumed(config: dict[str, Any], overrides: Sequence[str], ranks: Ranks) -> tuple[dict[str, Any], Path | None]:
    """The configuration of the run to continue and its folder, the same in all processes; no folder: a new run.

    A launcher such as torchrun starts the same command again after a failure. With `resume=auto` it then goes on with
    the run that these settings have begun, and begins one where there is none.
    """

    def find() -> list[Any]:
        asked = config
        if asked["resume"] == "auto" and "TORCHELASTIC_RUN_ID" in os.environ:
            own = own_unfinished(asked, overrides)
            asked = {**asked, "resume": None if own is None else str(own)}
        if asked["resume"] is None:
            return [asked, None]
        stored, folder = resumed_config(asked, overrides)
        return [stored, str(folder)]

    found, folder = ranks.once(find)
    return found, None if folder is None else Path(folder)


def _device(name: str, ranks: Ranks) -> torch.device:
    device = ranks.device(pick_device(name))
    if device.type == "cuda" and ranks.world > 1 and ranks.local >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"device={name}: process {ranks.local} of a machine with {count} GPUs; start one for each GPU")
    return device


def _dry_run(config: dict[str, Any], net: Supernet, data: Data, folder: Path | None) -> None:
    """On one process, which takes whole batches."""
    if folder is not None:
        print(f"would resume {folder}")
    dry_run(config, net, data)


def _opened(folder: Path, config: dict[str, Any], ranks: Ranks, stack: ExitStack) -> RunLog:
    """Hold the folder, and open its log."""
    ranks.once(lambda: stack.enter_context(lock(folder)))
    log = stack.enter_context(RunLog(folder, quiet=not ranks.first, wandb={**config["logger"], "config": config}))
    stack.enter_context(saying_what_is_kept(folder, log))
    return log


def _recorded(trainer: Trainer, device: torch.device, resume: bool) -> None:
    """What a run is, in its folder and on the screen."""
    config, folder, log = trainer.config, trainer.folder, trainer.log
    started = {**environment(), "launcher": launcher()}
    if resume:
        write_json(folder / f"environment-{trainer.step}.json", started)
    else:
        write_json(folder / "config.json", config)
        write_json(folder / ENVIRONMENT, started)
        write_json(folder / "splits.json", trainer.data.split_record())
        log.say(f"run folder {folder}, device {device}")
        if config["init_from"]:
            log.say(f"initial weights from {config['init_from']}")
    log.say(describe(trainer.net, trainer.data))


@contextmanager
def _muted(mute: bool) -> Iterator[None]:
    """Whether what is printed goes nowhere; errors are printed later, outside."""
    if not mute:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
