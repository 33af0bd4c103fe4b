"""From the specs that a unit can have to one spec with gates: `supernet.specs.union`, with probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from torch import Tensor

from supernet.mixture.gates import COLUMN, RING, ROW, Term, Weights, terms
from supernet.mixture.grid import Grid
from supernet.specs import (
    AttentionSpec,
    BottleneckSpec,
    ConvSpec,
    LinearSpec,
    MBConvSpec,
    ShortcutSpec,
    TokenHeadSpec,
    TransformerSpec,
    union,
)
from supernet.specs.soft import (
    SoftAttentionSpec,
    SoftConvSpec,
    SoftLinearSpec,
    SoftShortcutSpec,
    SoftTokenHeadSpec,
    SoftTransformerSpec,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Support = Sequence[Sequence[int]]
Build = Callable[[Weights], Any]
SIZES = {"in_channels", "out_channels", "kernel", "kernels", "size_in", "size", "pooled", "padding"}


def soften(grid: Grid, support: Support) -> Build:
    """How to make the spec of a mixture from probabilities. What does not depend on these is worked out here.

    Args:
        grid: the specs of all options.
        support: for every gene of the space the options that are run; some of them must have a spec.

    Raises:
        ValueError: if the options differ in something that no gate can express.
    """
    specs = grid.within(support).distinct()
    kind = type(specs[0])
    if len(grid.distinct()) == 1:
        return lambda weights: specs[0]
    if kind in SOFT:
        return SOFT[kind](grid, support, union(specs))
    if not is_dataclass(kind):
        raise ValueError(f"options that differ in {specs} cannot be mixed")
    return _fields(grid, support, union(specs))


def _fields(grid: Grid, support: Support, whole: Any, soft: type | None = None) -> Build:
    """A spec of parts: each is made soft; numbers are those of the largest."""
    kept: dict[str, Any] = {}
    parts: dict[str, Build] = {}
    for entry in fields(whole):
        value = getattr(whole, entry.name)
        if _is_spec(value):
            parts[entry.name] = soften(grid.part(attrgetter(entry.name)), support)
        elif isinstance(value, tuple) and any(map(_is_spec, value)):
            parts[entry.name] = _tuple(grid, support, entry.name, len(value))
        else:
            kept[entry.name] = value
    kind = soft or type(whole)
    return lambda weights: kind(**kept, **{name: build(weights) for name, build in parts.items()})


def _tuple(grid: Grid, support: Support, name: str, length: int) -> Build:
    """A field that is a tuple of specs, as long in all options."""

    def entry(i: int) -> Build:
        return soften(grid.part(lambda spec: getattr(spec, name)[i]), support)

    builds = [entry(i) for i in range(length)]
    return lambda weights: tuple(build(weights) for build in builds)


def _is_spec(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


@dataclass(frozen=True, eq=False)
class _Mask:
    """Factors on a weight whose rows and columns (and kernel) differ among the options."""

    terms: tuple[Term, ...]

    @staticmethod
    def of(grid: Grid, support: Support, axes: dict[str, NDArray[np.int64]]) -> _Mask:
        return _Mask(tuple(terms(grid.genes, axes, grid.present, support)))

    def __call__(self, weights: Weights) -> tuple[Tensor, ...]:
        return tuple(weights.mask(term) for term in self.terms)


def _conv(grid: Grid, support: Support, whole: ConvSpec) -> Build:
    alike = {field.name for field in fields(ConvSpec)} - SIZES
    for spec in grid.distinct():
        for name in alike:
            if getattr(spec, name) != getattr(whole, name):
                raise ValueError(f"convolutions that differ in {name!r} share no weights, so they cannot be mixed")
    axes = {ROW: grid.values(lambda spec: spec.out_channels), RING: grid.values(lambda spec: spec.kernel)}
    if not whole.depthwise:
        axes[COLUMN] = grid.values(lambda spec: spec.in_channels)
    learned = any(spec.kernels for spec in grid.distinct())  # maps between kernels: no rings to gate
    kernels = axes.pop(RING) if learned else None
    mask = _Mask.of(grid, support, axes)
    sizes = () if kernels is None else terms(grid.genes, {RING: kernels}, grid.present, support)
    values = {field.name: getattr(whole, field.name) for field in fields(ConvSpec)}
    if sizes:
        (term,) = sizes
        return lambda weights: SoftConvSpec(**values, gates=mask(weights), sizes=_parts(term, weights))
    return lambda weights: SoftConvSpec(**values, gates=mask(weights))


def _linear(grid: Grid, support: Support, whole: LinearSpec) -> Build:
    axes = {ROW: grid.values(lambda spec: spec.out_features), COLUMN: grid.values(lambda spec: spec.in_features)}
    mask = _Mask.of(grid, support, axes)

    def build(weights: Weights) -> SoftLinearSpec:
        gates = tuple(gate[:, :, 0, 0] for gate in mask(weights))
        return SoftLinearSpec(whole.in_features, whole.out_features, gates)

    return build


def _attention(grid: Grid, support: Support, whole: AttentionSpec) -> Build:
    for spec in grid.distinct():
        if (spec.head_dim, spec.score_scale) != (whole.head_dim, whole.score_scale):
            raise ValueError(
                "options of num_heads that share one width (qkv=fixed) cut the same numbers into other heads, so they "
                "cannot be mixed"
            )
    rows, dims = grid.values(lambda spec: spec.inner), grid.values(lambda spec: spec.dim)
    columns = _Mask.of(grid, support, {ROW: rows, COLUMN: dims})
    projection = soften(grid.part(lambda spec: spec.proj), support)
    scale = _mean(grid, support, lambda spec: spec.output_scale)
    widths = terms(grid.genes, {COLUMN: rows}, grid.present, support) if whole.bias == "flat" else []
    values = {field.name: getattr(whole, field.name) for field in fields(AttentionSpec)}

    def build(weights: Weights) -> SoftAttentionSpec:
        return SoftAttentionSpec(
            **values,
            gates=tuple(gate[:, :, 0, 0] for gate in columns(weights)),
            projection=projection(weights),
            scaled=scale(weights),
            inners=_parts(widths[0], weights) if widths else None,
        )

    return build


def _parts(term: Term, weights: Weights) -> tuple[tuple[int, ...], Tensor]:
    """The lengths of a term's one axis, and their probabilities."""
    (lengths,) = term.lengths.values()
    return tuple(int(length) for length in lengths), term.probabilities(weights)


def _transformer(grid: Grid, support: Support, whole: TransformerSpec) -> Build:
    parts = _fields(grid, support, whole, SoftTransformerSpec)
    use, scale = _use(grid, support), _mean(grid, support, lambda spec: spec.mlp_scale)

    def build(weights: Weights) -> SoftTransformerSpec:
        plain = parts(weights)
        values = {field.name: getattr(plain, field.name) for field in fields(TransformerSpec)}
        return SoftTransformerSpec(**values, use=use(weights), scaled=scale(weights))

    return build


def _token_head(grid: Grid, support: Support, whole: TokenHeadSpec) -> Build:
    classifier, use = soften(grid.part(lambda spec: spec.classifier), support), _use(grid, support)
    values = {field.name: getattr(whole, field.name) for field in fields(TokenHeadSpec) if field.name != "classifier"}
    return lambda weights: SoftTokenHeadSpec(**values, classifier=classifier(weights), use=use(weights))


def _use(grid: Grid, support: Support) -> Build:
    """With what probability each number of a token is used [dim]; None where a single width is run."""
    if len({spec.dim for spec in grid.within(support).distinct()}) == 1:
        return lambda weights: None
    mask = _Mask.of(grid, support, {COLUMN: grid.values(lambda spec: spec.dim)})
    return lambda weights: mask(weights)[0].flatten()


def _mean(grid: Grid, support: Support, get: Callable[[Any], float]) -> Build:
    """The expected value of a number, 0-d; None where it is the same in all options."""
    numbers = list(dict.fromkeys(get(spec) for spec in grid.distinct()))
    if len(numbers) == 1:
        return lambda weights: None
    which = grid.values(lambda spec: numbers.index(get(spec)))
    (term,) = terms(grid.genes, {COLUMN: which}, grid.present, support)
    chosen = [numbers[int(i)] for i in term.lengths[COLUMN]]

    def build(weights: Weights) -> Tensor:
        p = term.probabilities(weights)
        return p @ p.new_tensor(chosen)

    return build


def _block(grid: Grid, support: Support, whole: Any) -> Build:
    """A block with a shortcut, whose kind can depend on the options."""
    kinds = list(dict.fromkeys(_kind(spec.shortcut) for spec in grid.distinct()))
    if len(kinds) == 1:
        return _fields(grid, support, whole)
    plain = _fields(grid.part(lambda spec: replace(spec, shortcut=None)), support, replace(whole, shortcut=None))
    rows = grid.values(lambda spec: _last(spec).out_channels)
    paths = []
    for kind in kinds:
        here = grid.only(partial(_is_kind, kind))
        if kind is None or not here.within(support).distinct():
            continue
        has = grid.values(partial(_is_kind, kind))
        (gate,) = terms(grid.genes, {ROW: rows, COLUMN: has}, grid.present, support)
        paths.append((soften(here.part(lambda spec: spec.shortcut), support), gate))
    channels = _last(whole).out_channels

    def build(weights: Weights) -> Any:
        mixed = tuple((path(weights), weights.mask(gate)[:, 0]) for path, gate in paths)
        return replace(plain(weights), shortcut=SoftShortcutSpec(paths=mixed, channels=channels))

    return build


def _is_kind(kind: tuple[int, int, bool] | None, block: MBConvSpec | BottleneckSpec) -> bool:
    return _kind(block.shortcut) == kind


def _kind(shortcut: ShortcutSpec | None) -> tuple[int, int, bool] | None:
    """What tells shortcuts apart but for their widths."""
    return None if shortcut is None else (shortcut.pool, shortcut.pool_padding, shortcut.conv is not None)


def _last(block: MBConvSpec | BottleneckSpec) -> ConvSpec:
    """The convolution that ends the branch."""
    return block.project if isinstance(block, MBConvSpec) else block.conv3


SOFT: dict[type, Callable[[Grid, Support, Any], Build]] = {
    ConvSpec: _conv,
    LinearSpec: _linear,
    AttentionSpec: _attention,
    TransformerSpec: _transformer,
    TokenHeadSpec: _token_head,
    MBConvSpec: _block,
    BottleneckSpec: _block,
}
