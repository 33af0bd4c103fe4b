"""What a subnet costs on average, where every gene is drawn on its own: exact, and differentiable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from supernet.cost import Additive


class ExpectedCost:
    """The expectation of a sum of factors under independent genes, in the unit of the measure.

    Every factor's table is contracted with the probabilities of the genes that it reads. That is exact also where two
    sides of a layer share one width, which needs E[C²] and not E[C]², and where a block can be skipped, because the
    table is joint over all genes of a layer and 0 where there is no layer. The result is linear in each single vector:
    its gradient is the cost given an option, less what does not depend on the gene.
    """

    def __init__(self, measure: Additive) -> None:
        self.measure = measure
        self._reads = [factor.reads for factor in measure.factors]
        self._tables: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}

    def __call__(self, probs: Sequence[Tensor]) -> Tensor:
        """The expected cost, 0-d, of probabilities [options] for every gene of the space, in its order.

        It has the device of `probs` and their precision, but fp32 at least.

        Raises:
            ValueError: if there are not as many vectors as genes.
        """
        genes = self.measure.space.genes
        if len(probs) != len(genes):
            raise ValueError(f"space {self.measure.space.name!r} has {len(genes)} genes, got {len(probs)} vectors")
        dtype = torch.promote_types(probs[0].dtype, torch.float32)
        vectors = [vector.to(dtype) for vector in probs]
        total = vectors[0].new_tensor(float(self.measure.offset / self.measure.unit))
        for reads, table in zip(self._reads, self._of(total.device, dtype), strict=True):
            for gene in reversed(reads):
                table = table @ vectors[gene]
            total = total + table
        return total

    def _of(self, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """The tables in units of the measure; made once for each device and dtype."""
        key = (device, dtype)
        if key not in self._tables:
            factors, unit = self.measure.factors, self.measure.unit
            exact = [torch.as_tensor(factor.table).double() / unit for factor in factors]
            self._tables[key] = [table.to(device, dtype) for table in exact]
        return self._tables[key]
