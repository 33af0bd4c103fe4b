"""Once-for-All's MobileNetV3 space with its accuracy predictor and its latency table of a Samsung Note10.

Both were published with the paper (Cai et al., ICLR 2020). The predictor is an MLP 128-400-400-400-1; a subnet's
latency is the sum of its blocks'.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from benchmarks.tables.table import Table
from search.constraint import Budget
from supernet.cost import Additive, Factor, macs_of, params_of
from supernet.runs import config_dir
from supernet.space import Space, load_space

RESOLUTIONS = (160, 176, 192, 208, 224)
CONFIG = "space/ofa_mbv3_w12.yaml"


def tables(data: Path) -> dict[str, Table]:
    """25 and 30 ms, by name."""
    space = load_space(yaml.safe_load((config_dir() / CONFIG).read_text()), resolution=list(RESOLUTIONS))
    latency, predictor = note10(space, data), Predictor(space, data / "ofa_accuracy_predictor.pth")
    measures = {"macs": macs_of(space), "params": params_of(space), "latency_ms": latency}
    return {
        f"ofa-note10-{bound}ms": Table(Budget(space, {"latency_ms": (-np.inf, bound)}, measures), predictor)
        for bound in (25, 30)
    }


class Predictor:
    """Predicted ImageNet top-1 (percent) of rows of option indices [N, G]."""

    def __init__(self, space: Space, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        arrays = {name: tensor.double().numpy() for name, tensor in state.items()}
        self.layers = [(arrays[f"{i}.weight"].T, arrays[f"{i}.bias"]) for i in (0, 2, 4, 6)]
        self.space = space
        self.columns = _columns(space)

    def __call__(self, genes: NDArray[np.integer]) -> NDArray[np.float64]:
        hidden = self.encode(genes)
        for weight, bias in self.layers[:-1]:
            hidden = np.maximum(hidden @ weight + bias, 0)
        weight, bias = self.layers[-1]
        return (hidden @ weight + bias)[:, 0] * 100

    def encode(self, genes: NDArray[np.integer]) -> NDArray[np.float64]:
        """[N, 128]: kernels and expand ratios of 20 blocks (3 each; zeros where skipped), then 8 resolutions."""
        inputs = np.zeros((len(genes), 128))
        for position, (first, depth, index) in self.columns.items():
            counts = np.ones(len(genes), dtype=bool)
            if depth is not None:
                counts = np.array(self.space.genes[depth].options)[genes[:, depth]] > index
            rows = np.flatnonzero(counts)
            inputs[rows, first + genes[rows, position]] = 1
        return inputs


def _columns(space: Space) -> dict[int, tuple[int, int | None, int]]:
    """By position of a gene: its first column, and the depth that must be above an index for it to count."""
    columns: dict[int, tuple[int, int | None, int]] = {}
    blocks = {"kernel": 0, "expand": 0}
    for position, gene in enumerate(space.genes):
        if gene.key == "resolution":
            columns[position] = (120 + (int(gene.options[0]) - 112) // 16, None, 0)
        elif gene.key in blocks and len(gene.options) == 3:
            offset = 60 if gene.key == "expand" else 0
            columns[position] = (offset + 3 * blocks[gene.key], gene.parent, int(gene.above))
            blocks[gene.key] += 1
    assert blocks == {"kernel": 20, "expand": 20}
    return columns


def note10(space: Space, data: Path) -> Additive:
    """Latency in ms: the sum of a subnet's blocks, from the table of its resolution.

    Raises:
        KeyError: if a block is not in the table.
    """
    genes = [gene.key for gene in space.genes]
    position = genes.index("resolution")
    entries = {side: _entries(data / "ofa_note10_latency_tables" / f"{side}_lookup_table.yaml") for side in RESOLUTIONS}
    ends = ("Conv", "AvgPool2D", "Conv_1", "Conv_2", "Logits")
    fixed = [sum(value for key, value in entries[side].items() if key.split("-")[0] in ends) for side in RESOLUTIONS]
    factors = [Factor((position,), np.array(fixed))]
    for i, unit in enumerate(space.units):
        table = np.zeros([len(space.genes[j].options) for j in unit.reads])
        for codes, spec in space.specs(i):
            if hasattr(spec, "project"):
                side = space.genes[position].options[codes[unit.reads.index(position)]]
                table[codes] = entries[int(side)][_key(spec)]
        factors.append(Factor(unit.reads, table))
    return Additive(space, factors)


def _entries(path: Path) -> dict[str, float]:
    return {key: float(entry["mean"]) for key, entry in yaml.safe_load(path.read_text()).items()}


def _key(spec: Any) -> str:
    """The name of an inverted residual block in the published tables."""
    inner, outer = spec.depthwise, spec.project
    side = inner.size * inner.stride if spec.expand is None else spec.expand.size
    channels = inner.in_channels if spec.expand is None else spec.expand.in_channels
    flags = f"idskip:{int(spec.shortcut is not None)}-se:{int(spec.se is not None)}-hs:{int(inner.act == 'hswish')}"
    return (
        f"expanded_conv-input:{side}x{side}x{channels}-output:{outer.size}x{outer.size}x{outer.out_channels}"
        f"-expand:{inner.out_channels}-kernel:{inner.kernel}-stride:{inner.stride}-{flags}"
    )
