"""Architecture parameters: what gradient-based search learns, and what is read from their probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from search.gradient.mixes.base import Draw
from search.gradient.mixes.rows import Rows
from supernet.space import Arch, Space


class ArchParameters(nn.Module):
    """One number per option of every gene, in one vector, so that an optimizer's step is a few operations.

    In float64 and on the CPU: what is drawn and decided with them never waits for a device. They start near zero,
    1e-3 times normal noise (DARTS). A gene without a choice has an entry too, which changes nothing.

    Args:
        space: its genes give the vector's parts.
        seed: of the initial noise.
    """

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__()
        self.sizes = [len(gene.options) for gene in space.genes]
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(sum(self.sizes), generator=generator, dtype=torch.float64)
        self.flat = nn.Parameter(1e-3 * noise)

    def logits(self) -> tuple[Tensor, ...]:
        """One vector [options] per gene: views of `flat`, differentiable."""
        return self.flat.split(self.sizes)


def to(draw: Draw, device: torch.device | str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The draw's probabilities on the network's device, in its precision; one transfer for all genes.

    Gradients flow back to the CPU, also in one transfer.
    """
    sizes = [vector.numel() for vector in draw.probs]
    return torch.cat(draw.probs).to(dtype).to(device, non_blocking=True).split(sizes)


def entropy(probs: Sequence[Tensor], normalised: bool = False) -> Tensor:
    """Entropy of every gene's probabilities, [genes], in nats; 0 once an option is certain.

    Normalised: divided by the logarithm of the number of options, so that 1 is uniform; 0 where there is no choice.
    """
    rows = Rows.of(probs)
    nats = torch.special.entr(rows.pad(torch.cat(tuple(probs)), 0.0)).sum(1)
    if not normalised:
        return nats
    sizes = torch.tensor(rows.sizes, dtype=nats.dtype)
    return torch.where(sizes > 1, nats / sizes.clamp_min(2).log(), 0.0)


def arch(space: Space, probs: Sequence[Tensor]) -> Arch:
    """The subnet of every gene's most probable option; the first of equals. It meets no budget by itself."""
    rows = Rows.of(probs)
    return space.decode(rows.pad(torch.cat(tuple(probs)).detach(), -torch.inf).argmax(dim=1).tolist())


def snapshot(probs: Sequence[Tensor]) -> list[list[float]]:
    """The probabilities of every gene as plain numbers, for logs and files."""
    return [vector.tolist() for vector in probs]
