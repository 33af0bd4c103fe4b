"""A training run from its configuration: build -> resume -> train -> save."""

from __future__ import annotations

from typing import Any

from supernet.build import make_data, open_run, pick_device
from supernet.describe import describe, dry_run, rehearsal
from supernet.export import export_alone
from supernet.layout import with_format
from supernet.log import RunLog
from supernet.memory import keep_freed_memory
from supernet.micro_batch import settled, statistics_note
from supernet.notes import notes
from supernet.resume import check_same_splits, resumed_config
from supernet.runs import RESULTS, environment, lock, write_json
from supernet.settings import check_top_level
from supernet.setup import make_net, new_folder, with_defaults
from supernet.trainer import Trainer


def main(config: dict[str, Any]) -> float:
    """Train what the configuration says; returns the validation top-1 of the largest subnet, in percent.

    `config["overrides"]`, if present, lists what was typed on the command line.
    """
    overrides = config.get("overrides", [])
    config = {key: value for key, value in config.items() if key != "overrides"}
    check_top_level(config)
    folder = None
    if config["resume"] is not None:
        config, folder = resumed_config(config, overrides)
    device = pick_device(config["device"])
    if device.type == "cpu":
        keep_freed_memory()
    data = make_data(config, device)
    resume = folder is not None
    if folder is None:
        config = with_defaults(config)
        typed = any(word.lstrip("+").startswith(("space=", "space.")) for word in overrides)
        net = make_net(config, data, device, own_space=typed)
    else:
        check_same_splits(folder, data)
        net = open_run(folder, device).net
    if config["dry_run"]:
        if folder is not None:
            print(f"would resume {folder}")
        dry_run(config, net, data)
        return 0.0
    if folder is None:
        rehearsal(config, net, data)  # refuses what is wrong before there is a folder
        config = settled(with_format(config, net, data.info.channels), net)
        folder = new_folder(config, net.space.name)
    with lock(folder), RunLog(folder, wandb={**config["logger"], "config": config}) as log:
        trainer = Trainer(config, net, data, folder, log)
        if resume:
            trainer.restore()
            write_json(folder / f"environment-{trainer.step}.json", environment())
        else:
            write_json(folder / "config.json", config)
            write_json(folder / "environment.json", environment())
            write_json(folder / "splits.json", data.split_record())
            log.say(f"run folder {folder}, device {device}")
            if config["init_from"]:
                log.say(f"initial weights from {config['init_from']}")
        log.say(describe(net, data))
        for line in [*notes(config), *filter(None, [statistics_note(config, net)])]:
            log.say(f"note: {line}")
        results = trainer.run()
        if config["arch"] is not None:
            log.say(f"exported to {export_alone(trainer.scored_net, data, folder, results)}")
        write_json(folder / RESULTS, results)  # last: a run that has it is finished
        if config["arch"] is None:
            log.say(f"next: python search.py checkpoint={folder}")
    return float(results["subnets"]["largest"]["top1"]["val"])
