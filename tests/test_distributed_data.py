"""What the processes of a training load: shares of the batches that one process would load, augmented alike."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import tiny_config
from torchvision.transforms.v2 import functional as tv

from supernet.build import make_data
from supernet.data import Augment, Batch, Data, MemoryData
from supernet.data import folder as image_folder
from supernet.data.base import Settings
from supernet.distributed import Ranks
from supernet.resume import own_unfinished
from supernet.runs import CHECKPOINT, RESULTS
from supernet.setup import with_defaults

COMMON: dict[str, Any] = {"batch_size": 7, "seed": 3, "split_seed": 0, "val_fraction": 0.2, "search_fraction": 0.1}


def in_memory(folder: Path) -> Data:
    images = torch.randint(0, 256, (40, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return MemoryData(
        images,
        torch.arange(40) % 4,
        name="noise",
        class_names="abcd",
        settings=Settings(**COMMON, eval_batch_size=5, resolution=[12]),
        augment=Augment(shift=2, flip=True, rotate=20.0, scale=0.2, erase=0.5, cutout=4),
        test_fraction=0.1,
    )


def files(folder: Path, **settings: Any) -> Data:
    for name in ("ant", "bee"):
        (folder / name).mkdir()
        for i in range(20):
            noise = torch.randint(0, 256, (3, 30, 40), generator=torch.Generator().manual_seed(i)).to(torch.uint8)
            tv.to_pil_image(noise).save(folder / name / f"{i:02}.png")
    given = {"eval_batch_size": 5, "resolution": [16], "size": 16, "num_workers": 0, "device": torch.device("cpu")}
    return image_folder.load(root=str(folder), **COMMON, **{**given, **settings})


def files_on_device(folder: Path) -> Data:
    return files(folder, augment_on="device", auto_augment="rand-m9-mstd0.5")


@pytest.mark.parametrize("make", [in_memory, files, files_on_device])
@pytest.mark.parametrize("world", [2, 3, 7])
def test_shares_make_up_the_batches_of_one_process(tmp_path: Path, make: Any, world: int) -> None:
    data = make(tmp_path)
    order = torch.randint(0, data.sizes["train"], (data.sizes["train"],), generator=torch.Generator().manual_seed(5))
    for epoch, first, visits in ((0, 0, None), (1, 1, order)):
        whole = list(data.train(epoch, first, visits))
        shares = [list(data.train(epoch, first, visits, Ranks(rank, world))) for rank in range(world)]
        assert len(whole) == data.steps_per_epoch() - first
        assert len(whole) > 1
        for batch, *parts in zip(whole, *shares, strict=True):
            sizes = {len(part.index) for part in parts}
            assert max(sizes) - min(sizes) <= 1
            together = Batch(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
            assert torch.equal(together.index, batch.index)
            assert torch.equal(together.targets, batch.targets)
            torch.testing.assert_close(together.images, batch.images, rtol=0, atol=1e-5)


def test_a_restarted_job_finds_the_run_that_its_settings_have_begun(tmp_path: Path) -> None:
    """The newest of them, and none that is finished, has no checkpoint, or was begun otherwise."""

    def begun(name: str, age: int, *overrides: str, settled: dict[str, Any] | None = None) -> Path:
        config = with_defaults(tiny_config(tmp_path, *overrides))
        config["train"] = {**config["train"], **(settled or {})}
        folder = tmp_path / "runs" / "train" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / CHECKPOINT).write_bytes(b"x")
        os.utime(folder / CHECKPOINT, (1e9 - age, 1e9 - age))
        return folder

    asked = ("optim.lr=0.3", "train.channels_last=auto", "train.micro_batch=auto")
    chosen = {"channels_last": True, "micro_batch": 32, "checkpoint_activations": True}  # at the start of the run
    config = tiny_config(tmp_path, *asked, "resume=auto", "timeout_s=7")
    typed = [*asked, "resume=auto", "timeout_s=7"]
    assert own_unfinished(config, typed) is None
    begun("other settings", 1, "optim.lr=0.2")
    assert own_unfinished(config, typed) is None
    older = begun("older", 50, *asked, settled=chosen)
    assert own_unfinished(config, typed) == older
    newer = begun("newer", 40, *asked, settled={**chosen, "channels_last": False})
    assert own_unfinished(config, typed) == newer
    (newer / RESULTS).write_text("{}")
    assert own_unfinished(config, typed) == older
    (older / CHECKPOINT).unlink()
    assert own_unfinished(config, typed) is None


def test_the_digits_are_shared_too(tmp_path: Path) -> None:
    """Through the configuration: mixing and weights come after, see `test_distributed`."""
    data = make_data(tiny_config(tmp_path, "train.batch_size=9"), torch.device("cpu"))
    whole = next(iter(data.train(0)))
    parts = [next(iter(data.train(0, 0, None, Ranks(rank, 4)))) for rank in range(4)]
    assert [len(part.index) for part in parts] == [2, 2, 2, 3]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
