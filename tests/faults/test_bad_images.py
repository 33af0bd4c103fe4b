"""Folders of images in which something is wrong, before or during training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import injections
import pytest
import torch
from documented import as_documented
from faulty import resuming, training
from test_data_folder import write_class
from tiny_run import assert_same_training, only_run, state_of
from zygote import Zygote

from supernet.data import folder
from supernet.errors import UserError

MORE = pytest.mark.exhaustive
SMALL = ("data=folder", "data.size=8", "train.batch_size=8", "train.epochs=2", "train.test=false")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three classes of twelve images."""
    for hue, name in enumerate(("ant", "bee", "cat")):
        write_class(tmp_path / "images" / name, 12, 50 * hue)
    return tmp_path / "images"


def run_on(images: Path, *overrides: str) -> list[str]:
    return training(images.parent, *SMALL, f"data.root={images}", "data.num_workers=0", *overrides)


@pytest.mark.parametrize("kind", ["cut", "gone", "bomb", *(pytest.param(k, marks=MORE) for k in ("text", "empty"))])
def test_one_bad_image_among_many(zygote: Zygote, images: Path, kind: str) -> None:
    name = {
        "text": "unreadable",
        "cut": "truncated",
        "empty": "empty",
        "gone": "missing",
        "bomb": "a decompression bomb",
    }
    ended = zygote.run(run_on(images, "train.save_every=1"), ("bad_image", kind))
    as_documented(f"an image file is {name[kind]}", ended)
    assert str(images) in ended.err


def test_a_run_goes_on_when_the_image_is_back_or_skipped(zygote: Zygote, images: Path) -> None:
    before = {path: path.read_bytes() for path in images.rglob("*.png")}
    whole = zygote.run(run_on(images, "name=whole"))
    assert whole.code == 0, whole.text
    undisturbed = only_run(images.parent)
    assert zygote.run(run_on(images, "name=stopped", "train.save_every=1"), ("bad_image", "cut")).code == 2
    (run,) = (found for found in undisturbed.parent.iterdir() if found != undisturbed)
    (bad,) = (path for path, data in before.items() if path.read_bytes() != data)
    done = state_of(run)["step"]
    skipped = zygote.run(resuming(images.parent, run, "+data.on_bad_image=skip", "dry_run=true"))
    assert skipped.code == 0, skipped.text
    bad.write_bytes(before[bad])
    resumed = zygote.run(resuming(images.parent, run))
    assert (resumed.code, resumed.err) == (0, ""), resumed.text
    assert f"at step {done} of" in resumed.out
    assert_same_training(run, undisturbed)


def test_bad_images_are_skipped_where_asked(zygote: Zygote, images: Path) -> None:
    ended = zygote.run(run_on(images, "data.on_bad_image=skip"), ("bad_image", "text"))
    as_documented("an image file is unreadable, data.on_bad_image=skip", ended)


def test_what_takes_the_place_of_a_bad_image(images: Path, capsys: Any) -> None:
    """Another image of the split, the same at each visit; every other image is as it would have been."""

    def loaded(**options: Any) -> Any:
        shares = {"split_seed": 0, "val_fraction": 0.2, "search_fraction": 0.2, "num_workers": 0}
        return folder.load(
            root=images, batch_size=6, eval_batch_size=5, seed=0, resolution=[8], size=8, **shares, **options
        )

    data = loaded()
    whole = [list(data.train(epoch)) for epoch in (0, 1)]
    names = data._splits["train"].names
    (images / names[3]).write_bytes(b"hello")
    with pytest.raises(UserError, match="cannot be read"):
        [list(loaded().train(epoch)) for epoch in (0, 1)]
    found, again = loaded(on_bad_image="skip"), loaded(on_bad_image="skip")
    seen = 0
    for epoch in (0, 1):
        for batch, same, before in zip(found.train(epoch), again.train(epoch), whole[epoch], strict=True):
            assert torch.equal(batch.images, same.images)
            bad = before.index == 3
            seen += int(bad.sum())
            assert torch.equal(batch.images[~bad], before.images[~bad])
            assert torch.equal(batch.index[~bad], before.index[~bad])
            assert (batch.index != 3).all()
            classes = [sorted(data.info.class_names).index(Path(names[i]).parts[0]) for i in batch.index]
            assert batch.targets.tolist() == classes
    assert seen > 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # one for each of the two loaders
    assert "skipped, 1 so far" in lines[0]


def test_too_many_bad_images_stop_even_so(images: Path) -> None:
    data = folder.load(
        root=images, batch_size=6, eval_batch_size=5, seed=0, resolution=[8], size=8, split_seed=0, num_workers=0,
        val_fraction=0.2, search_fraction=0.2, on_bad_image="skip",
    )  # fmt: skip
    for path in images.rglob("*.png"):
        path.write_bytes(injections.bomb())
    with pytest.raises(UserError, match="as were 8 others"):
        list(data.train(0))


def test_an_empty_class_folder(zygote: Zygote, images: Path) -> None:
    (images / "dog").mkdir()
    as_documented("an empty class folder", zygote.run(run_on(images)))
    assert not (images.parent / "runs").exists()


def test_a_changed_folder(zygote: Zygote, images: Path) -> None:
    ended = zygote.run(run_on(images, "train.save_every=1"), ("kill_in_step", 3))
    assert ended.code == 137
    (images / "ant" / "00.png").rename(images / "ant" / "new.png")
    as_documented(
        "the data has changed since the run began", zygote.run(resuming(images.parent, only_run(images.parent)))
    )


def test_a_worker_that_is_killed(zygote: Zygote, images: Path) -> None:
    argv = [word for word in run_on(images, "train.save_every=1") if not word.startswith("data.num_workers")]
    ended = zygote.run([*argv, "data.num_workers=1"], ("worker_killed", 2))
    as_documented("a process that loads images is killed", ended)
    assert state_of(only_run(images.parent))["step"] >= 1


def test_a_read_only_data_folder(zygote: Zygote, images: Path) -> None:
    def snapshot() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in [images, *images.rglob("*")]}

    for path in [*images.rglob("*"), images]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = snapshot()
    ended = zygote.run(run_on(images))
    for path in [images, *images.iterdir()]:
        path.chmod(0o755)
    as_documented("a read-only data folder", ended)
    assert snapshot() == before
