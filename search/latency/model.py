"""`LatencyModel`: the latency of every subnet of a space as a sum over few genes, with where it comes from.

What a budget needs: `batch` prices whole populations. What gradient-based search needs: `expected` is exact for
independent choices, because the sum is linear in one-hot genes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.constraint import encoded
from supernet.cost import Additive, Factor
from supernet.errors import UserError
from supernet.runs import plain, read_json, write_json
from supernet.space import Arch, Space

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from supernet.mixture.expected import ExpectedCost

FORMAT = "latency-model-1"
PROBES = 16  # subnets whose MACs tell spaces of one name apart
TOLERANCE = 0.03  # of those MACs: another number of classes may differ, other layers may not


@dataclass(frozen=True)
class LatencyModel:
    """Milliseconds of a forward pass. `info` is everything recorded about it: conditions, fit, held-out figures."""

    space: Space
    additive: Additive
    info: Mapping[str, Any] = field(default_factory=dict)

    def batch(self, genes: NDArray[np.integer]) -> NDArray[np.float64]:
        """Predicted milliseconds [N] of subnets given as option indices [N, G]. See `supernet.cost.Measure`."""
        return self.additive.batch(genes)

    def predict(self, arch: Arch) -> float:
        """Predicted milliseconds of one subnet."""
        return float(self.batch(encoded(self.space, [arch]))[0])

    def expected(self, probs: Sequence[Tensor]) -> Tensor:
        """The expected milliseconds where each gene is drawn independently; a differentiable 0-d tensor.

        `probs` has the probabilities [options] of every gene of the space, in its order.
        """
        return self._expected(probs)

    @cached_property
    def _expected(self) -> ExpectedCost:
        from supernet.mixture.expected import ExpectedCost

        return ExpectedCost(self.additive)

    def save(self, path: Path) -> None:
        """Write it as plain JSON, completely or not at all."""
        genes, space = self.space.genes, self.space
        content = {
            "format": FORMAT,
            "space": space.name,
            "genes": [{"name": gene.name, "options": list(gene.options)} for gene in genes],
            "info": self.info,
            "offset_ms": float(self.additive.offset),
            "factors": [
                {"genes": [genes[i].name for i in factor.reads], "ms": factor.table.tolist()}
                for factor in self.additive.factors
            ],
            "probes": _probes(space),
        }
        write_json(path, plain(content))

    @staticmethod
    def load(path: str | Path, space: Space) -> LatencyModel:
        """The model of a file for `space`, which may have fewer options than the one it was made for.

        Raises:
            UserError: if the file is not a latency model, or is one of another space.
        """
        path = Path(path)
        path = path / "latency.json" if path.is_dir() else path
        if not path.is_file():  # a named pipe would be waited for
            raise UserError(f"latency={path} does not exist or is not a file")
        data = read_json(path)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise UserError(f"latency={path}: not a latency model; make one with `python search.py mode=latency`")
        try:
            return _loaded(path, data, space)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            raise UserError(
                f"latency={path}: damaged ({type(error).__name__}: {error}); make one with `python search.py "
                "mode=latency`"
            ) from None


def _loaded(path: Path, data: Mapping[str, Any], space: Space) -> LatencyModel:
    """Raises UserError for another space, and whatever reading wrong JSON raises."""
    if data["space"] != space.name:
        raise UserError(
            f"latency={path}: made for space {data['space']!r}, this one is {space.name!r}; "
            f"make one with `python search.py mode=latency space={space.name}`"
        )
    kept = _kept_options(path, data["genes"], space)
    positions = {gene.name: i for i, gene in enumerate(space.genes)}
    factors = [_factor(entry, kept, positions) for entry in data["factors"]]
    if not all(math.isfinite(ms) for factor in factors for ms in factor.table.flat):
        raise ValueError("a latency is not a number")
    if type(data["offset_ms"]) not in (int, float) or not math.isfinite(data["offset_ms"]):
        raise ValueError(f"offset_ms is {data['offset_ms']!r}")
    if not isinstance(data["info"], dict):
        raise TypeError("info is no mapping")
    _check_probes(path, data["probes"], space)
    return LatencyModel(space, Additive(space, factors, data["offset_ms"]), data["info"])


def figures(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> dict[str, float]:
    """How good predictions [N] are: MAPE (%), RMSE (ms), share within 5% and 10% (%), Kendall τ-b, Spearman ρ.

    The ranks are NaN where one side is constant.
    """
    import numpy as np
    from scipy import stats

    error = np.abs(predicted / measured - 1)
    ranked = len(measured) > 1 and np.ptp(predicted) > 0 and np.ptp(measured) > 0
    return {
        "n": len(measured),
        "mape": 100 * float(error.mean()),
        "rmse_ms": float(np.sqrt(((predicted - measured) ** 2).mean())),
        "within_5": 100 * float((error <= 0.05).mean()),
        "within_10": 100 * float((error <= 0.10).mean()),
        "kendall_tau": float(stats.kendalltau(predicted, measured).statistic) if ranked else float("nan"),
        "spearman_rho": float(stats.spearmanr(predicted, measured).statistic) if ranked else float("nan"),
    }


def _probes(space: Space) -> list[dict[str, Any]]:
    import numpy as np

    drawn = space.sample(np.random.default_rng(0), n=PROBES - 2)
    archs = dict.fromkeys([space.smallest(), space.largest(), *drawn])
    return [{"arch": arch.to_json(), "macs": space.plan(arch).macs} for arch in archs] if space.units else []


def _check_probes(path: Path, probes: Sequence[Mapping[str, Any]], space: Space) -> None:
    for probe in probes:
        try:
            arch = space.from_json(probe["arch"])
        except ValueError:
            continue  # an option that this space does not have
        macs = space.plan(arch).macs
        if abs(macs - probe["macs"]) > TOLERANCE * probe["macs"]:
            raise UserError(
                f"latency={path}: made for a space {space.name!r} of other layers (a subnet of {probe['macs']:,} MACs "
                f"has {macs:,} here); make one with `python search.py mode=latency checkpoint=<run>`"
            )


def _kept_options(path: Path, stored: Sequence[Mapping[str, Any]], space: Space) -> dict[str, list[int]]:
    """By gene, the positions of this space's options among the stored ones."""
    known = {gene["name"]: gene["options"] for gene in stored}
    names = [gene.name for gene in space.genes]
    if sorted(known) != sorted(names):
        odd = sorted(set(known) ^ set(names))
        raise UserError(f"latency={path}: its space {space.name!r} has other genes ({', '.join(odd[:4])})")
    for gene in space.genes:
        if missing := [option for option in gene.options if option not in known[gene.name]]:
            hint = f"restrict the space: +space.{gene.key}={_list(known[gene.name])}"
            raise UserError(
                f"latency={path}: knows nothing about {gene.name}={_list(missing)}; {hint}, or measure this space"
            )
    return {gene.name: [known[gene.name].index(option) for option in gene.options] for gene in space.genes}


def _factor(entry: Mapping[str, Any], kept: Mapping[str, Sequence[int]], positions: Mapping[str, int]) -> Factor:
    import numpy as np

    table = np.array(entry["ms"], dtype=float)[np.ix_(*(kept[name] for name in entry["genes"]))]
    return Factor(tuple(positions[name] for name in entry["genes"]), table)


def _list(values: Sequence[Any]) -> str:
    return f"[{','.join(str(value) for value in values)}]"
