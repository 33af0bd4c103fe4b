"""Training in several processes: the same numbers as in one, and what happens when one is lost."""

from __future__ import annotations

import os
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from shared_training import CASES, as_rank, differences, free_ports, scored, started, trained
from tiny import tiny_space
from tiny_run import only_run, state_of, tiny_config
from tiny_vit import tiny_vit

from supernet.distributed import Ranks, join, joined
from supernet.errors import UserError
from supernet.job import main
from supernet.net import Supernet
from supernet.reduce import Vote, copy_from_first, gathered, mean_over, row_before, sum_over
from supernet.settings import TrainSettings
from supernet.shares import Shares, shares_note
from supernet.space import Space

RUN = ("train.batch_size=250", "train.sync_batch_norm=true", "train.dropout=0", "train.mixup=0.2", "train.epochs=2")
RUN = (*RUN, "train.clip_norm=1", "train.ema_decay=0.9", "data.eval_batch_size=50", "train.save_every=3")
SHORT_S = 20.0


def exchanges(ranks: Ranks) -> None:
    """Sums, means, rows and votes of known numbers."""
    rank, world = ranks.rank, ranks.world
    total = sum(range(1, world + 1))
    kinds = [torch.float32, torch.float64, torch.int64]
    tensors = [torch.full((3, 5), rank + 1, dtype=kind) for kind in kinds] + [torch.full((40,), rank + 1.0)]
    tensors.append(torch.full((2, 3, 4, 4), rank + 1.0).contiguous(memory_format=torch.channels_last))
    sum_over(ranks, tensors, bucket_bytes=64)  # several messages
    assert all((tensor == total).all() for tensor in tensors)
    assert tensors[-1].is_contiguous(memory_format=torch.channels_last)
    share = (rank + 1) / total
    mean = mean_over(ranks, torch.tensor([1.0 + rank]), share)
    assert torch.allclose(mean, torch.tensor([sum((r + 1) ** 2 for r in range(world)) / total]))
    rows = torch.arange(2 * 5).view(5, 2)
    own = rows[ranks.share(5)]
    assert torch.equal(gathered(ranks, own, 5), rows)
    first = ranks.share(5).start
    assert torch.equal(row_before(ranks, own), rows[first - 1 : first] if first else rows[-1:])
    values = [torch.full((4,), 1.0 + rank)]
    copy_from_first(ranks, values)
    assert torch.equal(values[0], torch.ones(4))
    vote = Vote(ranks)
    assert [vote(15 if (step, rank) == (2, world - 1) else 0) for step in range(5)] == [0, 0, 0, 15, 0]
    assert vote.last() == 0
    asked: list[int] = []
    assert ranks.once(lambda: asked.append(rank) or {"chosen": [1, 0.1]}) == {"chosen": [1, 0.1]}
    assert asked == ([0] if ranks.first else [])


def failures(rank: int, world: int, ports: list[int]) -> None:
    """What is said when all fail alike, when one hangs, and when one dies: by one process, in one line."""
    as_rank(rank, world, ports[0])
    outcome = "nothing"
    try:
        with joined(SHORT_S):
            raise UserError("all of them say this")
    except UserError:
        outcome = "spoke"
    except SystemExit as left:
        outcome = f"left with {left.code}"
    as_rank(rank, world, ports[1])
    with joined(SHORT_S) as ranks:
        assert sorted(ranks.gather(outcome)) == ["left with 2", "spoke"]
    as_rank(rank, world, ports[2])
    try:
        with joined(SHORT_S) as ranks:
            if rank == 1:
                raise UserError("only this one knows")
            ranks.barrier()
        raise AssertionError("a process that has failed answered")
    except UserError as error:
        assert (rank, str(error)) == (1, "only this one knows")  # noqa: PT017
    except SystemExit as left:
        assert (rank, left.code) == (0, 2)  # noqa: PT017
    for port, hangs in zip(ports[3:], (True, False), strict=True):
        as_rank(rank, world, port)
        ranks = replace(join(SHORT_S), timeout_s=1.5)
        ranks.barrier()
        if rank == 1:
            if not hangs:
                os._exit(7)
            time.sleep(5.0)
        else:
            begin = time.monotonic()
            with pytest.raises(
                UserError, match=r"^rank 1 \(process \d+ on \S+\) of 2 processes does not answer: ended"
            ):
                ranks.barrier()
            assert time.monotonic() - begin < 4.5
            time.sleep(max(0.0, begin + 5.0 - time.monotonic()) if hangs else 0.0)
        ranks.close()


def gloo_threads() -> list[str]:
    """Threads of groups that were to be closed; Linux only."""
    names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def everything(rank: int, world: int, ports: list[int], folder: str, names: list[str]) -> None:
    """One process of the tests below: all that they compare, so that processes start once."""
    as_rank(rank, world, ports[0])
    own = Path(folder) / str(rank)  # for files that each of them composes
    with joined(SHORT_S) as ranks:
        exchanges(ranks)
        found: dict[str, Any] = {name: trained(name, own, ranks) for name in names}
        found["scores"] = scored(own, ranks)
        torch.save(found, Path(folder) / f"{rank}.pt")
    assert not gloo_threads(), "they crash when Python ends"
    as_rank(rank, world, ports[1])
    os.environ["TORCHELASTIC_RUN_ID"] = "test"  # torchrun sets it
    with (Path(folder) / f"{rank}.txt").open("w") as printed, redirect_stdout(printed), redirect_stderr(printed):
        main({**tiny_config(own, *RUN, "resume=auto"), "runs_dir": f"{folder}/runs"})
    if world == 2:
        failures(rank, world, ports[2:])


def alone(folder: Path, names: list[str]) -> dict[str, Any]:
    """The same in this process."""
    found: dict[str, Any] = {name: trained(name, folder) for name in names}
    found["scores"] = scored(folder)
    main(tiny_config(folder, *RUN))
    return found


def check(folder: Path, world: int) -> dict[str, float]:
    """Train everything in `world` processes and in one, and compare; returns the largest differences."""
    names = list(CASES)
    shared, own = folder / "shared", folder / "own"
    codes = started(everything, world, free_ports(7), str(shared), names)
    assert codes == ([0, 7] if world == 2 else [0] * world)
    assert [bool((shared / f"{rank}.txt").read_text()) for rank in range(world)] == [True] + [False] * (world - 1)
    expected = alone(own, names)
    everyone = [torch.load(shared / f"{rank}.pt") for rank in range(world)]
    assert all(differences(other, everyone[0]) == 0 for other in everyone[1:]), "processes differ"
    gaps = {name: differences(everyone[0][name], expected[name]) for name in names}
    scores, alike = everyone[0]["scores"], expected["scores"]
    assert (scores["top1"], scores["images"]) == (alike["top1"], alike["images"])
    gaps["scores"] = differences(scores, alike)
    ended, undivided = state_of(only_run(shared)), state_of(only_run(own))
    for key in ("model", "ema", "best"):
        gaps[f"run: {key}"] = differences(ended[key], undivided[key])
    return gaps


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("two")
    (folder / "shared").mkdir()
    (folder / "own").mkdir()
    return folder, check(folder, 2)


def assert_equal(gaps: dict[str, float]) -> None:
    for name, gap in gaps.items():
        limit = 1e-10 if name in CASES else 1e-4
        assert gap <= limit, gaps


def test_two_processes_train_what_one_does(two: tuple[Path, dict[str, float]]) -> None:
    """Every part that learns, to 1e-10 in double precision; a whole run in single precision to 1e-4."""
    assert_equal(two[1])


@pytest.mark.exhaustive
def test_four_processes_train_what_one_does(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "own").mkdir()
    assert_equal(check(tmp_path, 4))


def refused(world: int, space: Space | None = None, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        Shares(Ranks(0, world), TrainSettings(epochs=1, **settings), Supernet(space or tiny_space()))
    return str(error.value)


def test_what_does_not_go_with_several_processes_is_refused() -> None:
    assert "too few images for 4 processes" in refused(4, batch_size=3)
    assert "batch norms need at least 2 images in each of 4 processes" in refused(4, batch_size=7)
    assert "drop one" in refused(2, batch_size=8, sync_batch_norm=True, compile="blocks")
    assert "a multiple of the 2 processes" in refused(2, batch_size=9, sync_batch_norm=True, micro_batch=2)
    assert "too few" in refused(2, tiny_vit(), batch_size=1)
    for space, settings in ((tiny_vit(), {"batch_size": 3}), (None, {"batch_size": 3, "sync_batch_norm": True})):
        Shares(Ranks(0, 2), TrainSettings(epochs=1, **settings), Supernet(space or tiny_space()))


def test_the_note_says_whose_images_batch_norms_see() -> None:
    train = {"batch_size": 7}
    net = Supernet(tiny_space())
    assert shares_note({"train": train}, net, Ranks()) is None
    line = shares_note({"train": train}, net, Ranks(0, 2))
    assert line is not None
    assert line.startswith("2 processes, each with 3 or 4 of a batch's 7 images; batch norms see a process's own")
    assert "see all" in str(shares_note({"train": {**train, "sync_batch_norm": True}}, net, Ranks(0, 2)))
    assert "norms" not in str(shares_note({"train": train}, Supernet(tiny_vit()), Ranks(0, 2)))


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [0, 1, 6, 7, 25])
def test_shares_are_everything_once_and_as_equal_as_can_be(world: int, count: int) -> None:
    shares = [Ranks(rank, world).share(count) for rank in range(world)]
    assert [i for share in shares for i in range(count)[share]] == list(range(count))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert Ranks(world - 1, world).part("abcdefg")[-1:] == "g"
