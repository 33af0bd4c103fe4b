"""Faults, built into a training process before it begins. Each function changes one thing for good."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import time
import zlib
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import torch

from supernet import checkpoint, job, log, runs, trainer

FULL = "/dev/full"  # every write to it fails: no space left on device


def draw_nothing() -> None:
    """No curves: drawing takes longer than training here."""
    trainer.curves = trainer.health = lambda metrics, path: None  # type: ignore[assignment]


def die(*arguments: object) -> NoReturn:
    """As a power failure would end this process."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def at_step(step: int, act: Callable[[trainer.Trainer, Any], object]) -> None:
    """Call `act` with the trainer and the batch when training step `step` (from 1) begins."""
    original = trainer.Trainer.train_step

    def train_step(self: trainer.Trainer, batch: Any) -> Any:
        if self.step == step - 1:
            act(self, batch)
        return original(self, batch)

    trainer.Trainer.train_step = train_step  # type: ignore[method-assign]


def kill_in_step(step: int) -> None:
    """Die in the middle of a step: in its first pass."""

    def act(self: trainer.Trainer, batch: Any) -> None:
        self._label_loss = die  # type: ignore[method-assign]

    at_step(step, act)


def kill_in_write(name: str, count: int, place: str) -> None:
    """Die in the `count`-th writing of the file `name`.

    `place`: "bytes", with half of it in the temporary file; "check", when all is there; "shift", when the one before
    the last has given up its name; "rename", before the file gets its name.
    """
    ours: set[int] = set()
    opened, sync, replace, seen = Path.open, os.fsync, os.replace, [0]

    def open_counted(self: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        file = opened(self, mode, *rest, **more)
        if mode == "wb" and self.name.startswith(f".{name}."):
            seen[0] += 1
            if seen[0] == count:
                ours.add(file.fileno())
        return file

    def sync_half(handle: int) -> None:
        if handle in ours and place == "bytes":
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            die()
        sync(handle)

    def replace_not(source: Any, target: Any) -> None:
        if Path(target).name == name and seen[0] == count and place == "rename":
            die()
        replace(source, target)

    def now(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: die() if seen[0] == count else original(*given)

    Path.open = open_counted  # type: ignore[assignment,method-assign]
    os.fsync, os.replace = sync_half, replace_not  # type: ignore[assignment]
    if place == "check":
        checkpoint._digest_of = now(checkpoint._digest_of)
    elif place == "shift":
        os.link = now(os.link)


def kill_in_metrics(step: int) -> None:
    """Die with half of a record in metrics.jsonl."""

    def act(self: trainer.Trainer, batch: Any) -> None:
        self.log._metrics.write('{"kind": "train", "st')
        self.log._metrics.flush()
        die()

    at_step(step, act)


def signals_in_step(step: int, *names: str) -> None:
    """These signals arrive while a step runs."""
    at_step(step, lambda self, batch: [os.kill(os.getpid(), getattr(signal, name)) for name in names])


def signal_before(place: str, name: str) -> None:
    """A signal arrives at the start-up ("data") or when the last step is done ("scores")."""
    owner: Any = job if place == "data" else trainer.Trainer
    attribute = "make_data" if place == "data" else "_finish"
    original = getattr(owner, attribute)

    def then(*given: Any) -> Any:
        os.kill(os.getpid(), getattr(signal, name))
        return original(*given)

    setattr(owner, attribute, then)


def full_disk(name: str, count: int) -> None:
    """The disk is full when `name` is written for the `count`-th time."""
    opened, seen = Path.open, [0]

    def open_full(self: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if mode == "wb" and self.name.startswith(f".{name}."):
            seen[0] += 1
            if seen[0] == count:
                opened(self, mode, *rest, **more).close()
                return open(FULL, mode)
        return opened(self, mode, *rest, **more)

    Path.open = open_full  # type: ignore[assignment,method-assign]


def full_disk_for_metrics(step: int) -> None:
    """The disk is full when the record of a step is written."""

    def act(self: trainer.Trainer, batch: Any) -> None:
        self.log._metrics.close()
        self.log._metrics = open(FULL, "a")  # noqa: SIM115

    at_step(step, act)


def no_permission() -> None:
    """No run folder can be made, also where the tests run as root, whom no permission stops."""
    original = Path.mkdir

    def refused(self: Path, *rest: Any, **more: Any) -> None:
        if "runs" in self.parts:
            raise PermissionError(13, "Permission denied", str(self))
        original(self, *rest, **more)

    Path.mkdir = refused  # type: ignore[assignment,method-assign]


def forgetful_disk(count: int) -> None:
    """What is read back after the `count`-th checkpoint was written is not what was written."""
    original, seen = checkpoint._digest_of, [0]

    def digest_of(path: Path) -> bytes:
        seen[0] += 1
        if seen[0] == count:
            with path.open("r+b") as file:
                file.seek(path.stat().st_size // 2)
                file.write(b"\x55\xaa" * 8)
        return original(path)

    checkpoint._digest_of = digest_of


def folder_deleted(step: int) -> None:
    """Somebody deletes the run folder."""
    at_step(step, lambda self, batch: shutil.rmtree(self.folder))


def not_finite_loss(step: int, value: str) -> None:
    """The losses of a step are NaN or infinite, and with them its gradients."""

    def act(self: trainer.Trainer, batch: Any) -> None:
        original = self._label_loss
        self._label_loss = lambda logits, targets: original(logits, targets) * float(value)  # type: ignore[method-assign]

    at_step(step, act)


def not_finite_image(step: int, value: str) -> None:
    """One pixel of a batch is NaN or infinite."""

    def act(self: trainer.Trainer, batch: Any) -> None:
        batch.images[0, 0, 3, 3] = float(value)

    at_step(step, act)


def not_finite_weight(step: int, value: str) -> None:
    """One weight becomes NaN or infinite, as with a defect in memory."""

    def act(self: trainer.Trainer, batch: Any) -> None:
        with torch.no_grad():
            next(self.net.parameters()).view(-1)[0] = float(value)

    at_step(step, act)


def bad_image(kind: str) -> None:
    """One of many training images is bad when training begins: "text", "cut", "empty", "gone" or "bomb"."""

    def act(self: trainer.Trainer, batch: Any) -> None:
        files = self.data._splits["train"]  # type: ignore[attr-defined]
        path = files.root / files.names[-1]
        whole = path.read_bytes()
        if kind == "gone":
            path.unlink()
        else:
            path.write_bytes({"text": b"hello", "cut": whole[: len(whole) // 2], "empty": b"", "bomb": bomb()}[kind])

    at_step(1, act)


def bomb() -> bytes:
    """A PNG file of a hundred bytes that claims 40,000 × 40,000 pixels."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0), b"IDAT": zlib.compress(bytes(64))}
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in {**chunks, b"IEND": b""}.items()
    )
    return b"\x89PNG\r\n\x1a\n" + body


def worker_killed(step: int) -> None:
    """The system kills one of the processes that load images, as it does when memory is full."""

    def act(self: trainer.Trainer, batch: Any) -> None:
        torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.2  # seconds; so often torch looks, 5 by default
        loader = self.data._train_loader  # type: ignore[attr-defined]
        os.kill(loader._iterator._workers[0].pid, signal.SIGKILL)

    at_step(step, act)


def clock_runs_backwards() -> None:
    """Every look at a clock shows an hour earlier than the one before; also those that Python promises not to."""
    hours = [0]

    def earlier(*arguments: object) -> float:
        hours[0] += 1
        return 1.8e9 - 3600.0 * hours[0]

    class Backwards(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2027, 1, 15, tzinfo=tz) - timedelta(seconds=1.8e9 - earlier())

    fake = SimpleNamespace(time=earlier, perf_counter=earlier, monotonic=earlier, strftime=time.strftime)
    runs.datetime = log.datetime = Backwards  # type: ignore[misc]
    trainer.time = log.time = fake  # type: ignore[assignment]


def wait_in_step(step: int, file: str) -> None:
    """Go on with a step only when `file` exists; `file`.here says that it is waiting."""

    def act(self: trainer.Trainer, batch: Any) -> None:
        Path(f"{file}.here").touch()
        deadline = time.monotonic() + 60
        while not Path(file).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    at_step(step, act)


def one_of(rank: int, world: int, port: int) -> None:
    """This process is one of several, as torchrun would start it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def stand_still_in_step(step: int) -> None:
    """Stop without a word when a step begins."""
    at_step(step, lambda self, batch: os.kill(os.getpid(), signal.SIGSTOP))
