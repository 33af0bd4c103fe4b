"""What a family of spaces is written with: options become genes, and genes become the arguments of layers.

A family asks for a `Choice` for each number that its layers need. Where there is something to choose, the choice
reads a gene; where there is not, it is a constant. `unit` makes a layer of choices without telling the two apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from supernet.construct import shown
from supernet.space import Gene, Option, Unit
from supernet.specs import make_divisible

MOST = 2**20  # of a width, a side, a count: beyond it there is a slip of the keyboard or a damaged file


@dataclass(frozen=True)
class Choice:
    """One number of a plan: a function of the gene at `position`, or, without a position, `value`."""

    position: int | None
    value: Any = None
    function: Callable[[Any], Any] | None = None

    def map(self, function: Callable[[Any], Any]) -> Choice:
        """The choice of `function(value)`: a width from a width multiplier, a boolean from a depth."""
        if self.position is None:
            return Choice(None, function(self.value))
        inner = self.function
        return Choice(self.position, None, function if inner is None else lambda value: function(inner(value)))

    def of(self, genes: Mapping[int, Option]) -> Any:
        """Its value, given those of the genes by position."""
        if self.position is None:
            return self.value
        return genes[self.position] if self.function is None else self.function(genes[self.position])


def fixed(value: Any) -> Choice:
    """A number with nothing to choose."""
    return Choice(None, value)


class Genes(list[Gene]):
    """The genes of a space in their order, while a family adds them."""

    def add(
        self,
        key: str,
        options: Sequence[Option],
        index: int | None = None,
        parent: Choice | None = None,
        above: float = 0,
        among: Sequence[Option] | None = None,
    ) -> Choice:
        """One more gene, see `Gene`. With a `parent` it counts only while its value is > `above`, or one of `among`."""
        position = parent.position if parent else None
        self.append(Gene(key, index, tuple(options), position, above, None if among is None else tuple(among)))
        return Choice(len(self) - 1)


def unit(name: str, choices: Sequence[Choice], spec: Callable[..., Any]) -> Unit:
    """A layer whose spec is `spec(*values of the choices)`; see `Unit`."""
    reads = tuple(dict.fromkeys(choice.position for choice in choices if choice.position is not None))

    def spec_of(*values: Option) -> Any:
        genes = dict(zip(reads, values, strict=True))
        return spec(*(choice.of(genes) for choice in choices))

    return Unit(name, reads, spec_of)


def scaled(base: float) -> Callable[[float], int]:
    """From a width multiplier to a width: `base` times it, rounded to a multiple of 8."""
    return lambda factor: make_divisible(base * factor)


def entries(data: Mapping[str, Any], where: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`data` over `defaults`.

    Raises:
        ValueError: if `data` is no mapping, or has entries that `defaults` lacks; names them.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}={shown(data)}: give a mapping of {', '.join(defaults)}")
    if unknown := set(map(str, data)) - set(defaults):
        raise ValueError(f"{where}: unknown entries {shown(sorted(unknown))}; known are {list(defaults)}")
    return {**defaults, **data}


def options(where: str, values: Any) -> tuple[int | float, ...]:
    """A tuple of positive numbers up to 2^20, ascending and distinct; a single number counts as a list of one.

    Raises:
        ValueError: otherwise, naming `where`.
    """
    if values is None:
        raise ValueError(f"{where} is missing: give a list of options")
    result = tuple(values) if isinstance(values, Sequence) and not isinstance(values, str) else (values,)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and 0 < v <= MOST for v in result)
    if not result or not numbers or list(result) != sorted(set(result)):
        raise ValueError(f"{where}={shown(values)}: give positive numbers up to {MOST:,}, ascending, without repeats")
    return result


def whole(where: str, values: Sequence[Any], odd: bool = False, least: int = 1, most: int = MOST) -> None:
    """Refuse anything but whole numbers from `least` to `most`, odd ones where they are kernels.

    Raises:
        ValueError: naming `where`.
    """
    if any(type(value) is not int or value < least for value in values):
        raise ValueError(f"{where}: whole numbers of at least {least} only, got {shown(list(values))}")
    if any(value > most for value in values):
        raise ValueError(f"{where}: at most {most:,}, got {shown(list(values))}")
    if odd and any(value % 2 == 0 for value in values):
        raise ValueError(f"{where}: kernels must be odd, got {shown(list(values))}")
