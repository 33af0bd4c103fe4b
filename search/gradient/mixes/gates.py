"""Binary gates: one option is drawn, the gradient is that of its probability (Cai et al. 2019, ProxylessNAS)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from search.gradient.mixes.base import Draw
from search.gradient.mixes.rows import Rows, gumbel, logit_rows, positions, softmax_rows, straight_through


class Gates:
    """Gates g ~ Categorical(p), p = softmax(logits), exactly one-hot.

    Logit i gets the sum over j of dL/dg_j p_j (delta_ij - p_i) (ProxylessNAS, section 3.2 and its equation 4).
    A pass for the weights runs the drawn option only.

    Args:
        paths: options run on a pass for the architecture parameters. "all". "two": two options are drawn from p
            without replacement; their p is the softmax over the two, by which one of them gets the gate; after the
            optimizer's step both are shifted, so that the other options keep their probabilities. That holds exactly
            if the step moved only these two: an optimizer without momentum or weight decay.
    """

    def __init__(self, paths: Literal["all", "two"] = "two") -> None:
        self.paths = paths

    def draw(self, logits: Sequence[Tensor], generator: torch.Generator, progress: float, for_weights: bool) -> Draw:
        """The support is the drawn option, all, or the two."""
        rows, matrix = logit_rows(logits)
        run = rows.mask
        if self.paths == "two" and not for_weights:
            # The largest two of logits plus Gumbel noise are two draws without replacement.
            scores = (matrix + gumbel(rows, generator, matrix.dtype)).detach()
            two = scores.topk(min(2, scores.shape[1]), dim=1).indices
            run = torch.zeros_like(rows.mask).scatter_(1, two, True) & rows.mask
            matrix = matrix.masked_fill(~run, -torch.inf)
        index = (matrix + gumbel(rows, generator, matrix.dtype)).argmax(dim=1)
        probs = rows.split(straight_through(matrix.softmax(dim=1), index))
        return Draw(probs, tuple((i,) for i in index.tolist()) if for_weights else positions(run))

    def mean(self, logits: Sequence[Tensor]) -> list[Tensor]:
        """Softmax of the logits."""
        return list(softmax_rows(logits))

    def penalty(self, logits: Sequence[Tensor]) -> Tensor:
        """Zero."""
        return torch.zeros((), dtype=torch.float64)

    @torch.no_grad()
    def after_step(self, logits: Sequence[Tensor], before: Sequence[Tensor], draw: Draw) -> None:
        """With two paths: subtract log(sum of exp, new / old) over the two, in place; their sum of exp stays."""
        if self.paths != "two":
            return
        rows = Rows.of(logits)
        flags = [len(run) == 2 and i in run for run, n in zip(draw.support, rows.sizes, strict=True) for i in range(n)]
        pair = rows.pad(torch.tensor(flags), False)
        new, old = (
            rows.pad(torch.cat(tuple(values)), 0.0).masked_fill(~pair, -torch.inf).logsumexp(dim=1)
            for values in (logits, before)
        )
        offset = torch.where(pair, (new - old)[:, None], 0.0)  # NaN in a row without a pair is not taken
        for vector, change in zip(logits, rows.split(offset), strict=True):
            vector.sub_(change)
