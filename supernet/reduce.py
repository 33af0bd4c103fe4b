"""Tensors over several processes: sums in few large messages, and a vote that no step waits for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from supernet.distributed import Ranks

BUCKET_BYTES = 25 * 2**20  # of one message


@torch.no_grad()
def sum_over(ranks: Ranks, tensors: Sequence[Tensor], bucket_bytes: int = BUCKET_BYTES) -> None:
    """Replace every tensor by its sum over the processes, the same bits in all of them.

    They travel in messages of about `bucket_bytes`; all are under way before the first is waited for. In one process
    nothing happens.
    """
    if ranks.world == 1:
        return
    import torch.distributed as dist

    under_way: list[tuple[list[Tensor], Tensor, Any]] = []
    for bucket in _buckets(tensors, bucket_bytes):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        try:
            under_way.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        except RuntimeError as error:
            raise ranks.lost(error) from error
    for bucket, flat, work in under_way:
        if flat.is_cuda:
            work.wait()  # the device's stream waits, not the host
        else:
            ranks.finish(work)
        parts = flat.split([tensor.numel() for tensor in bucket])
        torch._foreach_copy_(bucket, [part.view(tensor.shape) for part, tensor in zip(parts, bucket, strict=True)])


def mean_over(ranks: Ranks, values: Tensor, share: float) -> Tensor:
    """The weighted mean over the processes of what each has in `values`, any shape; `share`: this one's weight.

    The weights of all processes add up to 1. In one process: `values` itself.
    """
    if ranks.world == 1:
        return values
    total = values * share
    sum_over(ranks, [total])
    return total


def gathered(ranks: Ranks, rows: Tensor, count: int) -> Tensor:
    """`rows` [B, ...] of all processes one after another, [count, ...]; each has its `share` of `count` rows."""
    if ranks.world == 1:
        return rows
    whole = rows.new_zeros(count, *rows.shape[1:])
    whole[ranks.share(count)] = rows
    sum_over(ranks, [whole])  # of one value and zeros: exact
    return whole


def row_before(ranks: Ranks, rows: Tensor) -> Tensor:
    """The last one [1, ...] of the `rows` [B, ...] of the process before; of the last process, before the first."""
    import torch.distributed as dist

    last = rows[-1:].contiguous()
    everyone = [torch.empty_like(last) for _ in range(ranks.world)]
    if rows.is_cuda:
        dist.all_gather(everyone, last)
    else:
        ranks.exchange(dist.all_gather, everyone, last)
    return everyone[ranks.rank - 1]


@torch.no_grad()
def copy_from_first(ranks: Ranks, tensors: Sequence[Tensor]) -> None:
    """Replace every tensor by that of the first process."""
    if ranks.world == 1:
        return
    if not ranks.first:
        torch._foreach_zero_(list(tensors))
    sum_over(ranks, tensors)


class Vote:
    """The largest number that any process gives, asked at every step: what a step gives is answered at the next.

    So no step waits for the slowest process's present one, nor the host for a GPU: numbers travel between hosts while
    the step is computed. All processes get the same answers at the same steps. In one process answers are immediate.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._asked: tuple[Tensor, Any] | None = None

    def __call__(self, number: int) -> int:
        """Give `number`, at least 0; returns the largest of the step before."""
        if self._ranks.world == 1:
            return number
        import torch.distributed as dist

        answer = self.last()
        sent = torch.tensor([number])
        try:
            self._asked = sent, dist.all_reduce(sent, op=dist.ReduceOp.MAX, async_op=True)
        except RuntimeError as error:
            raise self._ranks.lost(error) from error
        return answer

    def last(self) -> int:
        """The answer to what was given last."""
        if self._asked is None:
            return 0
        sent, work = self._asked
        self._ranks.finish(work)
        self._asked = None
        return int(sent)


def _buckets(tensors: Sequence[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """In order, by type and device."""
    kinds: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for alike in kinds.values():
        bucket: list[Tensor] = []
        size = 0
        for tensor in alike:
            if bucket and size + tensor.nbytes > limit:
                yield bucket
                bucket, size = [], 0
            bucket.append(tensor)
            size += tensor.nbytes
        yield bucket
