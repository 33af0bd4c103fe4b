"""Search spaces as data: `Gene` (one choice), `Arch` (what was chosen), `Space` (all that can be chosen).

A space knows nothing about modules. It turns an `Arch`, an immutable value, into a `Plan` through its units:
each unit is one layer of the largest network, names the genes that decide it, and computes its spec from their
values. The same units give plans, cost tables and the supernet's own shape, so nothing is defined twice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any, overload

from supernet.construct import construct_only, shown
from supernet.errors import UserError
from supernet.specs import Plan, union
from supernet.wellformed import check_genes, check_size

if TYPE_CHECKING:  # numpy is not needed to rebuild an exported subnet
    import numpy as np
    from torch import nn

Option = int | float | str
Window = tuple[float, float]
# Other names of the same keys, as the published codes write them (Once-for-All, AttentiveNAS); read, never written.
ALIASES = {
    "ks": "kernel",
    "kernel_size": "kernel",
    "e": "expand",
    "expand_ratio": "expand",
    "d": "depth",
    "w": "width",
    "r": "resolution",
    "image_size": "resolution",
}


@dataclass(frozen=True)
class Gene:
    """One categorical choice.

    With a `parent` it counts only while the gene at that position has a value > `above` (the kernel of block 3 counts
    only while the stage's depth is > 3) or, if `among` is given, one of these (an operation whose edge is chosen).
    """

    key: str
    index: int | None  # position in the list under `key`; None: a single value
    options: tuple[Option, ...]
    parent: int | None = None
    above: float = 0
    among: tuple[Option, ...] | None = None

    @property
    def name(self) -> str:
        return self.key if self.index is None else f"{self.key}[{self.index}]"

    def counts_at(self, value: Option) -> bool:
        """Whether it counts where its parent counts and has this value."""
        return value in self.among if self.among is not None else not isinstance(value, str) and value > self.above


@dataclass(frozen=True)
class Arch:
    """An architecture: an immutable, hashable, canonical value. Made by a `Space`, never by hand."""

    choices: tuple[tuple[str, Option | tuple[Option, ...]], ...]

    def __getitem__(self, key: str) -> Any:
        for name, value in self.choices:
            if name == key:
                return value
        raise KeyError(key)

    def to_json(self) -> dict[str, Any]:
        """Readable form: {"resolution": 224, "depth": [...], "kernel": [...], ...}."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in self.choices}


@dataclass(frozen=True)
class Unit:
    """One layer of the largest network, or a run of them under one name.

    `reads` holds the positions of the genes that decide the layer; `spec` maps their values, in that order,
    to a layer spec, or to None where the layer is skipped. It must be pure.
    """

    name: str
    reads: tuple[int, ...]
    spec: Callable[..., Any]


class Space:
    """All subnets of one supernet.

    Args:
        name: a word for logs and files.
        genes: the choices, parents before their children.
        units: the layers of the largest network, in the order of their execution.
        module: builds the network of a plan (an `nn.Module` whose submodules carry the units' names).
        config: plain data from which `supernet.construct` rebuilds this space; stored in checkpoints.
        lengths: for a key whose readable form is a list as long as another gene's value, that gene's key: with
            {"num_heads": "layer_num"} a subnet of 12 layers shows 12 numbers of heads. A single gene is repeated.

    Raises:
        ValueError: if options are empty, not distinct or (numbers) not ascending, a gene's condition is wrong, or there
            are more combinations than can be looked at.
    """

    def __init__(
        self,
        name: str,
        genes: Sequence[Gene],
        units: Sequence[Unit],
        module: Callable[[Plan], nn.Module],
        config: Mapping[str, Any],
        lengths: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.genes, self.units = name, tuple(genes), tuple(units)
        self.module, self.config, self.lengths = module, dict(config), dict(lengths or {})
        check_genes(self.genes)
        check_size(self.genes, self.units)
        self._option_index = [{option: i for i, option in enumerate(g.options)} for g in self.genes]
        self._entries = Counter(gene.key for gene in self.genes)
        self._unit_spec = [lru_cache(maxsize=None)(unit.spec) for unit in self.units]
        self.plan = lru_cache(maxsize=4096)(self._plan)

    def __deepcopy__(self, memo: dict[int, Any]) -> Space:
        return self  # immutable: copies of a network share their space

    def __repr__(self) -> str:
        return f"Space({self.name!r}, genes={len(self.genes)}, size={self.size():.3g})"

    # Codes and values ------------------------------------------------------------------------------------------

    def encode(self, arch: Arch) -> tuple[int, ...]:
        """The option index of every gene; genes that do not count are 0."""
        return tuple(table[value] for table, value in zip(self._option_index, self._values(arch), strict=True))

    def decode(self, genes: Sequence[int]) -> Arch:
        """The canonical `Arch` of option indices [G]: genes of skipped blocks are set to their first option.

        Raises:
            ValueError: if the length is wrong or an index is out of range; names the gene.
        """
        if len(genes) != len(self.genes):
            raise ValueError(f"space {self.name!r} has {len(self.genes)} genes, got {len(genes)}")
        codes: list[int] = []
        for gene, code in zip(self.genes, genes, strict=True):
            if not 0 <= code < len(gene.options):
                raise ValueError(f"{gene.name}: index {code} is not one of its {len(gene.options)} options")
            codes.append(int(code) if self.counts(gene, codes) else 0)
        grouped: dict[str, Any] = {}
        for gene, code in zip(self.genes, codes, strict=True):
            value = gene.options[code]
            if gene.index is None:
                grouped[gene.key] = value
            else:
                grouped.setdefault(gene.key, []).append(value)
        for key, by in self.lengths.items():
            value, length = grouped[key], int(grouped[by])
            grouped[key] = value[:length] if isinstance(value, list) else [value] * length
        return Arch(tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in grouped.items()))

    def from_json(self, data: Mapping[str, Any]) -> Arch:
        """The arch of a readable dictionary (see `Arch.to_json`).

        Also read: the published codes' names of the keys (`ALIASES`), keys left out where there is nothing to
        choose, lists without the entries of skipped blocks at their end, and a list of equal values for one value.

        Raises:
            ValueError: on unknown, missing or wrongly sized entries and on values that are not options.
        """
        keys = dict.fromkeys(gene.key for gene in self.genes)
        if not isinstance(data, Mapping):
            raise ValueError(f"an arch is a mapping with the keys {list(keys)}, got {shown(data)}")
        data = {key: value for key, value in data.items() if not (key == "wid" and value is None)}  # OFA's, unused
        named = {key if key in keys else ALIASES.get(key, key): value for key, value in data.items()}
        needed = {gene.key for gene in self.genes if len(gene.options) > 1}
        if not needed <= set(named) <= set(keys) or len(named) != len(data):
            raise ValueError(f"an arch of space {self.name!r} has the keys {list(keys)}, got {shown(list(data))}")
        codes: list[int] = []
        for gene, table in zip(self.genes, self._option_index, strict=True):
            value = self._entry(gene, named[gene.key], codes) if gene.key in named else gene.options[0]
            if isinstance(value, list | dict | bool) or value not in table:
                raise ValueError(f"{gene.name}={shown(value)} is not one of {list(gene.options)}")
            codes.append(table[value])
        return self.decode(codes)

    def _entry(self, gene: Gene, value: Any, codes: Sequence[int]) -> Any:
        """What `value`, found under the key of `gene`, says about it; `codes` are those of the genes before it."""
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        if gene.index is None:
            same = is_list and len(value) > 0 and all(entry == value[0] for entry in value)
            return value[0] if same else value
        length = sum(other.key == gene.key for other in self.genes)
        if not is_list or len(value) > length:
            raise ValueError(f"{gene.key} must be a list of {length} values, got {shown(value)}")
        if gene.index < len(value):
            return value[gene.index]
        if self.counts(gene, codes):
            raise ValueError(f"{gene.key} must be a list of {length} values, got {shown(value)}")
        return gene.options[0]

    def counts(self, gene: Gene, codes: Sequence[int]) -> bool:
        """Whether `gene` counts, given the option indices of (at least) the genes before it."""
        if gene.parent is None:
            return True
        parent = self.genes[gene.parent]
        return self.counts(parent, codes) and gene.counts_at(parent.options[codes[gene.parent]])

    def largest(self) -> Arch:
        """Every gene at its last option."""
        return self.decode([len(gene.options) - 1 for gene in self.genes])

    def smallest(self) -> Arch:
        """Every gene at its first option."""
        return self.decode([0] * len(self.genes))

    def size(self) -> int:
        """The exact number of distinct archs, genes that do not count left out.

        Two archs can still have equal layers, where rounding to multiples of 8 makes two ratios the same width.
        """
        return math.prod(self._count(i) for i, gene in enumerate(self.genes) if gene.parent is None)

    # Variation on values ---------------------------------------------------------------------------------------

    @overload
    def sample(self, rng: np.random.Generator) -> Arch: ...
    @overload
    def sample(
        self, rng: np.random.Generator, n: int, macs: Window | None = None, params: Window | None = None
    ) -> list[Arch]: ...
    def sample(
        self,
        rng: np.random.Generator,
        n: int | None = None,
        macs: Window | None = None,
        params: Window | None = None,
    ) -> Arch | list[Arch]:
        """One arch, every gene uniform, or a list of `n`; inside the given cost windows, ends included.

        Inside a window: every gene uniform, given that the subnet is inside; see `supernet.window`.

        Raises:
            UserError: if a window holds no subnet that could be found; gives the reachable range.
        """
        count = 1 if n is None else n
        if macs is None and params is None:
            drawn = [self.decode([int(rng.integers(len(g.options))) for g in self.genes]) for _ in range(count)]
        else:
            from supernet.window import sample_in_window

            drawn = sample_in_window(self, rng, count, {"macs": macs, "params": params})
        return drawn[0] if n is None else drawn

    def mutate(self, arch: Arch, rng: np.random.Generator, prob: float) -> Arch:
        """Each gene that counts changes with probability `prob`, always to a different option.

        Genes that begin to count through the mutation (a deeper stage's new blocks) are drawn uniformly.
        """
        old = self.encode(arch)
        codes = list(old)
        for i, gene in enumerate(self.genes):
            if not self.counts(gene, old):
                codes[i] = int(rng.integers(len(gene.options)))
            elif len(gene.options) > 1 and rng.random() < prob:
                codes[i] = (old[i] + int(rng.integers(1, len(gene.options)))) % len(gene.options)
        return self.decode(codes)

    def crossover(self, first: Arch, second: Arch, rng: np.random.Generator) -> Arch:
        """Each gene from either parent with probability 1/2 (uniform crossover).

        A gene that counts in one parent only comes from that parent.
        """
        a, b = self.encode(first), self.encode(second)
        codes = []
        for i, gene in enumerate(self.genes):
            from_first = rng.random() < 0.5
            if self.counts(gene, a) != self.counts(gene, b):
                from_first = self.counts(gene, a)
            codes.append(a[i] if from_first else b[i])
        return self.decode(codes)

    # What gets built -------------------------------------------------------------------------------------------

    def _plan(self, arch: Arch) -> Plan:
        """The resolved layers of a subnet. Pure; cached as `space.plan`."""
        values = self._values(arch)
        layers = []
        for unit, spec_of in zip(self.units, self._unit_spec, strict=True):
            spec = spec_of(*(values[i] for i in unit.reads))
            if spec is not None:
                layers.append((unit.name, spec))
        return Plan(self.resolution(arch), tuple(layers))

    def resolution(self, arch: Arch) -> int:
        """The side of the square input, px."""
        return int(arch["resolution"])

    @cached_property
    def widest(self) -> Plan:
        """The plan that holds every subnet: what the supernet is built from.

        It differs from the largest subnet's plan where only some smaller subnet needs a layer: a shortcut's
        1x1 conv between stages whose widths can differ, but do not at the largest.
        """
        largest = self._plan(self.largest())
        wide = ((unit.name, union(spec for _, spec in self.specs(i))) for i, unit in enumerate(self.units))
        return Plan(largest.resolution, tuple((name, spec) for name, spec in wide if spec is not None))

    def specs(self, unit: int) -> Iterator[tuple[tuple[int, ...], Any]]:
        """Every (option indices of the genes it reads, spec) of one unit."""
        options = [self.genes[i].options for i in self.units[unit].reads]
        for codes in product(*(range(len(o)) for o in options)):
            yield codes, self._unit_spec[unit](*(o[c] for o, c in zip(options, codes, strict=True)))

    def only(self, arch: Arch) -> Space:
        """The space whose one subnet is `arch`: a supernet of it is that network alone."""
        genes = [replace(gene, options=(value,)) for gene, value in zip(self.genes, self._values(arch), strict=True)]
        config = {"_target_": "supernet.space.restrict", "space": self.config, "arch": arch.to_json()}
        return Space(self.name, genes, self.units, self.module, config, self.lengths)

    def narrow(self, options: Mapping[str, Sequence[Option] | str]) -> Space:
        """The space with fewer options: of every gene under a key of `options` only those that are listed there.

        In place of a list a word: "largest", "two_largest", "three_largest" (of every gene's own options), "all".
        A gene with a single option has nothing to lose and keeps it. The archs are archs of this space too, once
        `self.from_json(arch.to_json())` has made them canonical here.

        Raises:
            ValueError: if a key, an option or a word is unknown, or a gene would have no option left.
        """
        from supernet.narrow import narrow

        return narrow(self, options)

    @property
    def description(self) -> dict[str, Any]:
        """The configuration of the family, also where this space is restricted to one subnet."""
        config = self.config
        while "space" in config:
            config = config["space"]
        return config

    # Internals -------------------------------------------------------------------------------------------------

    def _values(self, arch: Arch) -> list[Option]:
        chosen: dict[str, Any] = dict(arch.choices)
        try:
            values = [self._chosen(gene, chosen[gene.key]) for gene in self.genes]
            entries = {key: len(value) if isinstance(value, tuple) else 1 for key, value in chosen.items()}
            expected = {**self._entries, **{key: int(chosen[by]) for key, by in self.lengths.items()}}
            known = all(value in table for table, value in zip(self._option_index, values, strict=True))
            if known and entries == expected:
                return values
        except (KeyError, IndexError, TypeError, ValueError):
            pass
        raise ValueError(f"the arch {arch.to_json()} does not belong to space {self.name!r}")

    def _chosen(self, gene: Gene, value: Any) -> Option:
        """The value of one gene, from what an arch holds under its key."""
        shown: Option = gene.options[0]  # an entry that is left out does not count
        if gene.key not in self.lengths:
            shown = value if gene.index is None else value[gene.index]
        elif gene.index is None or gene.index < len(value):
            shown = value[gene.index or 0]
        return shown

    def _count(self, position: int) -> int:
        """Distinct settings of a gene together with everything that depends on it."""
        children = [(i, gene) for i, gene in enumerate(self.genes) if gene.parent == position]
        options = self.genes[position].options
        return sum(math.prod(self._count(i) for i, gene in children if gene.counts_at(option)) for option in options)


def load_space(config: Any, **kwargs: Any) -> Space:
    """A space from its plain description, also one read from a checkpoint or an export: nothing else gets built.

    Raises:
        UserError: if the description is wrong or names anything but a family of `supernet.models`.
    """
    allowed = ("supernet.models.", "supernet.space.restrict", "supernet.narrow.narrow")
    space = construct_only(config, "space", allowed, **kwargs)
    if not isinstance(space, Space):
        raise UserError(f"space._target_={config['_target_']}: is not a search space")
    return space


def restrict(space: Space, arch: Mapping[str, Any]) -> Space:
    """`Space.only` with the arch in its readable form; how such a space is rebuilt from a checkpoint."""
    return space.only(space.from_json(arch))
