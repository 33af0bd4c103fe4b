"""An interrupted gradient-based search ends as an undisturbed one does, bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_gradient import FRESH, assert_same_search, search_config, state_of

from search import runner
from search.gradient.learner import Learner, differences
from supernet.errors import UserError

STEPS = 4  # two epochs of two
TUNED = STEPS + 4  # and one epoch after each of two decisions
# Two networks; parameters that a mix changes after the optimizer; a multiplier; dropout; tuning between decisions.
KINDS: dict[str, tuple[str, ...]] = {
    "rarts": ("rarts", "algorithm.update.beta=5.0"),
    "proxyless": ("proxyless", "algorithm.warmup_epochs=1", "algorithm.arch_every=1"),
    "tangle": ("tangle", "algorithm.dropout=0.2", "algorithm.bound.rate=1.0", "constraint.macs=0.5"),
    "perturb": ("darts", "algorithm/select=perturb", "algorithm.select.interval=1", "constraint.macs=0.7"),
}


def run(folder: Path, kind: str, *words: str) -> Path:
    runner.main(search_config(folder, KINDS[kind][0], FRESH, *KINDS[kind][1:], *words))
    return only(folder)


def only(folder: Path) -> Path:
    (found,) = (folder / "runs" / "search").iterdir()
    return found


def stopped_after(patch: pytest.MonkeyPatch, method: str, calls: int, number: signal.Signals) -> None:
    """Send this process a signal inside the method's call of this number."""
    original, made = getattr(Learner, method), []

    def interrupted(self: Learner, *args: Any, **named: Any) -> Any:
        made.append(1)
        if len(made) == calls:
            signal.raise_signal(number)
        return original(self, *args, **named)

    patch.setattr(Learner, method, interrupted)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: run(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.mark.parametrize(
    ("kind", "method", "calls", "step"),
    [
        ("rarts", "one", 1, 1),  # in mid-epoch
        ("proxyless", "one", 3, 3),
        ("tangle", "one", 3, 3),
        ("tangle", "one", 2, 2),  # at an epoch's end
        ("tangle", "one", STEPS, STEPS),  # at the very last step
        ("perturb", "one", STEPS + 1, STEPS),  # while tuning: that epoch is done again
        ("perturb", "one", STEPS + 2, STEPS + 2),  # the last step of it
        ("perturb", "evaluate", 1, STEPS),  # while deciding
        ("perturb", "save", 1, STEPS),  # between a decision and its tuning
        ("perturb", "save", 3, STEPS + 2),
    ],
)
def test_interrupted_and_resumed(
    kind: str, method: str, calls: int, step: int, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stopped_after(patch, method, calls, signal.SIGTERM if calls % 2 else signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, kind)
    folder = only(tmp_path)
    assert state_of(folder)["step"] == step
    assert not (folder / "results.json").exists()
    text = (folder / "log.txt").read_text()
    assert "interrupted; what was scored and learned is saved. To go on:" in text
    assert f"resume={folder}" in text
    run(tmp_path, kind, "resume=auto")
    assert_same_search(folder, undisturbed[kind])
    assert state_of(folder)["step"] == (TUNED if kind == "perturb" else STEPS)


def test_interrupted_at_every_step(undisturbed: dict[str, Path], tmp_path: Path) -> None:
    words: tuple[str, ...] = ()
    for _ in range(STEPS):
        with pytest.MonkeyPatch.context() as patch:
            stopped_after(patch, "one", 1, signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path, "tangle", *words)
        words = (f"resume={only(tmp_path)}",)
    run(tmp_path, "tangle", *words)
    assert_same_search(only(tmp_path), undisturbed["tangle"])


def test_resumed_while_the_winner_was_scored(
    undisturbed: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("search.gradient.study.ship", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, "tangle")
    assert (only(tmp_path) / "supernet" / "checkpoint.pt").exists()
    run(tmp_path, "tangle", "resume=auto")
    assert_same_search(only(tmp_path), undisturbed["tangle"])


# Mistakes -------------------------------------------------------------------------------------------------------


def begun(folder: Path, *words: str) -> Path:
    """A search that was stopped after one step."""
    with pytest.MonkeyPatch.context() as patch:
        stopped_after(patch, "one", 1, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            run(folder, "tangle", *words)
    return only(folder)


def test_handlers_are_put_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    begun(tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_finished_search_is_not_resumed(undisturbed: dict[str, Path]) -> None:
    folder = undisturbed["tangle"]
    with pytest.raises(UserError, match="that search is finished"):
        run(folder.parents[2], "tangle", f"resume={folder}")


def test_other_settings_are_named_and_change_nothing(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".pt", ".json", ".jsonl")}
    with pytest.raises(UserError, match=r"algorithm\.arch_lr was 0\.05, now 0\.1; constraint.*: repeat its settings$"):
        run(tmp_path, "tangle", f"resume={folder}", "algorithm.arch_lr=0.1", "constraint.macs=0.6")
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".pt", ".json", ".jsonl")}
    assert after == before


@pytest.mark.parametrize("damage", ["truncated", "emptied", "foreign", "without a part"])
def test_a_damaged_state_is_one_clear_line(damage: str, tmp_path: Path) -> None:
    from supernet import checkpoint

    folder = begun(tmp_path)
    file = folder / "search.pt"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "emptied":
        file.write_bytes(b"")
    elif damage == "foreign":
        torch.save({"model": {}}, file)
    else:
        state = checkpoint.load(file)
        checkpoint.save(file, {key: value for key, value in state.items() if key != "arch_optimizer"})
    with pytest.raises(UserError) as caught:
        run(tmp_path, "tangle", f"resume={folder}")
    assert str(file) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_where_settings_differ() -> None:
    before = {"a": {"b": 1, "c": [1, 2]}, "d": "x" * 100, "e": 0}
    after = {"a": {"b": 2, "c": [1, 2]}, "d": "y" * 100, "f": 0}
    assert differences(before, before) == []
    assert differences(before, after) == ["a.b was 1, now 2", "d differs", "e was 0, now None", "f was None, now 0"]
