"""The time of a training step, which is the same in every run, and what a recording of the step has looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields


@dataclass(frozen=True)
class Clock:
    """The time at which a training step runs.

    Args:
        epoch: number of the pass over the data set.
        step: number of optimizer steps made before.
        batch: number of the batch in its epoch.
    """

    epoch: int = 0
    step: int = 0
    batch: int = 0

    def moved(self, name: str, value: int) -> Clock:
        """Return the same time with another value in one field."""
        return Clock(**{each.name: value if each.name == name else getattr(self, each.name) for each in fields(self)})


@dataclass
class Reads:
    """What the code of a recorded step has looked at besides tensors; mutable, since it is noted while the code runs.

    Args:
        clock: fields of `Clock` whose value was looked at.
        offered: fields of `Clock` that the code has got hold of. It may have used one without being noticed.
        attributes: names of attributes of the module itself.
        entries: whether batch entries that are no tensors were looked at.
        live: by name, functions that return other values that the code has looked at, such as learning rates.
    """

    clock: set[str] = field(default_factory=set)
    offered: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    entries: bool = False
    live: dict[str, Callable[[], object]] = field(default_factory=dict)

    def ticks(self, clock: Clock, name: str) -> Tick:
        """Return the value of a field of the clock, as a number that notes here if it is used."""
        self.offered.add(name)
        return Tick(getattr(clock, name), lambda: self.clock.add(name))


class Tick(int):
    """An integer that calls a function if Python code uses it; code that only passes it on does not.

    Compiled code, such as ``tensor * tick``, uses it without notice.

    Example:
        >>> used = []
        >>> tick = Tick(3, lambda: used.append("used"))
        >>> kept = {"batch_idx": tick}
        >>> len(used), tick % 2, len(used)
        (0, 1, 1)
    """

    _use: Callable[[], None]

    def __new__(cls, value: int, use: Callable[[], None]) -> Tick:
        """Make the number, with the function that is called at each use."""
        tick = super().__new__(cls, value)
        tick._use = use
        return tick

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        self._use()
        return int, (int.__int__(self),)


def _noting(name: str) -> Callable[..., object]:
    operation = getattr(int, name)

    def used(self: Tick, *args: object) -> object:
        self._use()
        return operation(self, *args)

    return used


_ARITHMETIC = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "divmod",
    "pow",
    "lshift",
    "rshift",
    "and",
    "xor",
    "or",
)

_UNARY = ("hash", "bool", "int", "float", "index", "round", "trunc", "floor", "ceil", "neg", "pos", "abs", "invert")

_OTHERS = ("eq", "ne", "lt", "le", "gt", "ge", "str", "repr", "format")

for _name in (*_OTHERS, *_UNARY, *_ARITHMETIC, *(f"r{name}" for name in _ARITHMETIC)):
    setattr(Tick, f"__{_name}__", _noting(f"__{_name}__"))
