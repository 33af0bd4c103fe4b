"""The next training batch is made ready on a GPU while the step of the present one runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from supernet.data.base import Batch


def prepared_ahead(batches: Iterator[Any], prepare: Callable[[Any], Batch], device: torch.device) -> Iterator[Batch]:
    """The batches after `prepare`, which copies one to `device` and augments it there.

    On a GPU, `prepare` runs one batch ahead, on a CUDA stream of its own: copies and augmentation overlap with the
    training step. Elsewhere it runs when the batch is asked for. The batches are the same.
    """
    if device.type != "cuda":
        yield from map(prepare, batches)
        return
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))  # constants of `prepare` were made there
    ready: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(aside):
            coming = prepare(batch), aside.record_event()
        if ready is not None:
            yield _handed_over(*ready)
        ready = coming
    if ready is not None:
        yield _handed_over(*ready)


def _handed_over(batch: Batch, done: torch.cuda.Event) -> Batch:
    """Let the device's present stream wait for the batch; the host does not."""
    stream = torch.cuda.current_stream(batch.images.device)
    stream.wait_event(done)
    for tensor in batch:
        tensor.record_stream(stream)  # the memory was allocated for the other stream
    return batch
