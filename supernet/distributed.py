"""Several processes that work on one thing: who they are, what they exchange, and what happens when one is lost.

Started by torchrun, on one machine or on several. Each process has its own copy of everything; what must be the same in
all of them is a function of (seed, step), or is exchanged here.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch

from supernet.errors import UserError
from supernet.explain import explain

T = TypeVar("T")

TIMEOUT_S = 600.0
LOOK_S = 1.0  # how often a waiting process looks whether another one has given up
GRACE_S = 5.0  # how long those that are left wait for each other, to tell who is missing
STOPPED = 2  # exit code of a process that leaves because another one said why
# What gloo and nccl say when a process on the other side is gone.
LOST = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out")


@dataclass(frozen=True)
class Ranks:
    """This process among `world` ones; number `rank` counts from 0, `local` within its machine.

    All exchanges are collective: every process has to make the same calls in the same order. Plain values travel as
    JSON, so nothing that arrives can run code; floats arrive bit for bit. None waits longer than `timeout_s`.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    timeout_s: float = field(default=TIMEOUT_S, compare=False)
    store: Any = field(default=None, compare=False, repr=False)  # torch's; where processes leave notes

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """The device of this process: "cuda" without a number becomes the GPU of its local rank."""
        is_open = device.type == "cuda" and device.index is None and self.world > 1
        return torch.device("cuda", self.local) if is_open else device

    def share(self, count: int) -> slice:
        """Which of `count` things are this process's: neighbours, as many for each as can be."""
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of `items`, which are the same in every process."""
        return items if self.world == 1 else items[self.share(len(items))]

    # Plain values ------------------------------------------------------------------------------------------------

    def gather(self, value: Any) -> list[Any]:
        """The plain `value` of every process, by rank, in every process."""
        if self.world == 1:
            return [_plain(value)]
        import torch.distributed as dist

        mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        self.exchange(dist.all_gather, sizes, torch.tensor([len(mine)]))
        longest = int(torch.stack(sizes).max())
        padded = torch.nn.functional.pad(mine, (0, longest - len(mine)))
        texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world)]
        self.exchange(dist.all_gather, texts, padded)
        return [json.loads(text[: int(n)].numpy().tobytes()) for text, n in zip(texts, sizes, strict=True)]

    def broadcast(self, value: Any) -> Any:
        """The plain `value` of the first process, in every process."""
        return self.gather(value if self.first else None)[0]

    def map(self, function: Callable[[T], Any], items: Sequence[T]) -> list[Any]:
        """Plain `function(item)` of every item, in order, in every process; each computes its share of them.

        Process r takes items r, r + world, ...; no item is left out where they do not divide evenly. The same in
        any number of processes, if `function` is the same everywhere.
        """
        shares = self.gather([function(item) for item in items[self.rank :: self.world]])
        return [shares[i % self.world][i // self.world] for i in range(len(items))]

    def once(self, function: Callable[[], Any]) -> Any:
        """The plain value of `function()`, which the first process alone calls, in every process.

        If it fails, it raises in the first process, and the others leave without a word.
        """
        if self.world == 1:
            return _plain(function())
        if not self.first:
            done = self.broadcast(None)
            if done is None:
                raise SystemExit(STOPPED)
            return done["value"]
        try:
            value = function()
        except BaseException:
            self.broadcast(None)
            raise
        return self.broadcast({"value": value})["value"]

    def barrier(self) -> None:
        """Wait for all processes."""
        self.gather(None)

    # Waiting, and giving up --------------------------------------------------------------------------------------

    def exchange(self, collective: Callable[..., Any], *given: Any, **how: Any) -> None:
        """One of torch's collectives, to its end.

        Raises:
            UserError: if a process is lost; it names that process.
            SystemExit: if one has left and has said why.
        """
        try:
            work = collective(*given, **how, async_op=True)
        except RuntimeError as error:
            raise self.lost(error) from error
        self.finish(work)

    def finish(self, work: Any) -> None:
        """Wait for an exchange that is under way. Raises as `exchange` does."""
        deadline = time.monotonic() + self.timeout_s
        while not work.is_completed():
            try:
                work.wait(timedelta(seconds=min(LOOK_S, self.timeout_s)))
            except RuntimeError as error:
                if not work.is_completed() and (time.monotonic() >= deadline or self._given_up()):
                    raise self.lost(error) from error
        try:
            work.wait()
        except RuntimeError as error:
            raise self.lost(error) from error

    def lost(self, error: BaseException) -> BaseException:
        """What to raise after a failed exchange. Asks those that are left who is still there."""
        self.leave_note("")
        missing, said = [rank for rank in range(self.world) if rank != self.rank], False
        deadline = time.monotonic() + min(GRACE_S, self.timeout_s)
        while missing and not said and time.monotonic() < deadline:
            notes = {rank: self._note(rank) for rank in missing}
            missing = [rank for rank, note in notes.items() if note is None]
            said = any(notes.values())
            time.sleep(0.05)
        if said:
            return SystemExit(STOPPED)
        if not missing:
            return UserError(f"the processes have lost each other ({_first_line(error)})")
        names = " or ".join(self._name(rank) for rank in missing)  # one that is only busy has not heard of this either
        return UserError(
            f"{names} of {self.world} processes does not answer: ended, stuck, or longer at work than "
            f"timeout_s={self.timeout_s:g}"
        )

    def leave_note(self, line: str) -> None:
        """Tell the others that this process gives up. `line`: what it says to the user; empty: nothing yet."""
        with suppress(RuntimeError):
            self.store.set(f"left/{self.rank}", line)
            self.store.set("left", "")

    def says_first(self, line: str) -> bool:
        """Whether no other process has said this line yet."""
        with suppress(RuntimeError):
            return bool(self.store.add(f"said/{line}", 1) == 1)
        return True

    def close(self) -> None:
        """Leave the group; afterwards nothing can be exchanged."""
        if self.world > 1:
            import torch.distributed as dist

            if dist.is_initialized():
                dist.destroy_process_group()

    def _given_up(self) -> bool:
        with suppress(RuntimeError):
            return bool(self.store.check(["left"]))
        return True  # the process that holds the notes is gone

    def _note(self, rank: int) -> str | None:
        """What a process that gave up has said; None: nothing is known of it."""
        with suppress(RuntimeError):
            if self.store.check([f"left/{rank}"]):
                return str(self.store.get(f"left/{rank}").decode())
        return None

    def _name(self, rank: int) -> str:
        with suppress(RuntimeError):
            if self.store.check([f"host/{rank}"]):
                return f"rank {rank} ({self.store.get(f'host/{rank}').decode()})"
        return f"rank {rank}"


ALONE = Ranks()


def join(timeout_s: float = TIMEOUT_S) -> Ranks:
    """Join the processes that torchrun started; `ALONE` where it did not start this one.

    Plain data goes through gloo on the CPU, tensors on GPUs through nccl where there is one.

    Args:
        timeout_s: how long an exchange may take, in seconds.

    Raises:
        UserError: if the environment variables that torchrun sets are incomplete, or processes are missing.
    """
    given = os.environ
    if given.get("WORLD_SIZE", "1") == "1":
        return ALONE
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in given]
    if missing:
        raise UserError(f"WORLD_SIZE={given['WORLD_SIZE']}, but {missing[0]} is not set: start it with torchrun")
    # Optimizers import it some time. Imported beside a group, it keeps that alive beyond its end, and gloo's threads,
    # which then crash when Python ends.
    import torch._dynamo
    import torch.distributed as dist

    has_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    limit = timedelta(seconds=timeout_s)
    try:
        rank, world = int(given["RANK"]), int(given["WORLD_SIZE"])
        shared, rank, world = next(dist.rendezvous("env://", rank, world, timeout=limit))
        store = dist.PrefixStore(_meet(shared, rank, world, timeout_s), shared)
        # nccl ends a process without a word after its time-out: exchanges on the CPU, at every step, notice before.
        later = limit + timedelta(seconds=60) if has_gpus else limit
        backend = "cpu:gloo,cuda:nccl" if has_gpus else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=later)
        store.set(f"host/{rank}", f"process {os.getpid()} on {socket.gethostname()}")
    except (RuntimeError, ValueError) as error:
        where = f"{given['MASTER_ADDR']}:{given['MASTER_PORT']}"
        raise UserError(
            f"rank {given['RANK']} of {given['WORLD_SIZE']} processes could not join the others at {where} in "
            f"timeout_s={timeout_s:g} ({_first_line(error)})"
        ) from error
    ranks = Ranks(rank, world, int(given.get("LOCAL_RANK", rank)), timeout_s, store)
    if has_gpus:
        torch.cuda.set_device(ranks.local % torch.cuda.device_count())
    return ranks


def _meet(store: Any, rank: int, world: int, timeout_s: float) -> str:
    """A name that all processes of this group agree on, and no group before it has had.

    A launcher that starts processes again keeps its store, with the addresses that dead ones have left in it. The first
    process offers a name; what others answer counts if it tells them so, which no dead one can.
    """
    me, end = uuid.uuid4().hex, time.monotonic() + timeout_s
    answers = [f"answer/{me}/{other}" for other in range(1, world)]
    if rank == 0:
        store.set("name", me)
    while time.monotonic() < end:
        if rank == 0 and store.check(answers):
            store.set(f"met/{me}", " ".join(store.get(key).decode() for key in answers))
            return me
        if rank > 0 and store.check(["name"]):
            name = str(store.get("name").decode())
            store.set(f"answer/{name}/{rank}", me)
            if store.check([f"met/{name}"]) and me in store.get(f"met/{name}").decode().split():
                return name
        time.sleep(0.02)
    missing = [str(other) for other, key in enumerate(answers, 1) if rank == 0 and not store.check([key])]
    raise RuntimeError(f"rank {', '.join(missing)} did not come" if missing else "rank 0 did not come")


@contextmanager
def joined(timeout_s: float = TIMEOUT_S) -> Iterator[Ranks]:
    """`join` for the work inside, after which the processes part.

    Of processes that fail for the same reason one raises, the others leave without a word; so do those that cannot go
    on without a process that has failed. Where a process is lost, a `UserError` names it.
    """
    ranks = join(timeout_s)
    if ranks.world == 1:
        yield ranks
        return
    try:
        yield ranks
    except KeyboardInterrupt:
        ranks.leave_note("interrupted")
        raise
    except Exception as error:
        failure = _explained(ranks, error)
        if failure is error:
            raise
        raise failure from error
    finally:
        if sys.exception() is None or not torch.cuda.is_available():  # nccl would wait for those that do not answer
            ranks.close()


def _explained(ranks: Ranks, error: Exception) -> BaseException:
    """What a process raises that fails; it tells the others."""
    failure = ranks.lost(error) if _is_lost(error) else error
    if not isinstance(failure, Exception):
        return failure
    line = str(failure) if isinstance(failure, UserError) else explain(failure)
    ranks.leave_note(line or type(failure).__name__)
    return failure if line is None or ranks.says_first(line) else SystemExit(STOPPED)


def _is_lost(error: Exception) -> bool:
    """Whether an exchange inside of torch failed: that of gradients on a GPU, or of a norm's statistics."""
    import torch.distributed as dist

    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        type(error) is RuntimeError and any(word in text for word in LOST) and explain(error) is None
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _plain(value: Any) -> Any:
    """As it would arrive from another process."""
    return json.loads(json.dumps(value))
