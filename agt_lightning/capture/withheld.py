"""A stand-in for something that code may pass on but must not look at."""

from __future__ import annotations

from collections.abc import Callable


class WithheldError(Exception):
    """Something that was withheld has been looked at."""


def _look(self: object, *args: object, **kwargs: object) -> object:
    name, looked = object.__getattribute__(self, "_withheld")
    looked()
    raise WithheldError(f"{name} has been looked at")


class Withheld:
    """An object that raises if code looks at it, and calls a function even if the code swallows the error.

    Args:
        name: what it stands for, for the message.
        looked: called at each look.

    Example:
        >>> looks = []
        >>> entry = Withheld("batch['names']", lambda: looks.append(1))
        >>> kept = [entry]  # passing it on is no look
        >>> try:
        ...     "bad" in entry
        ... except WithheldError as error:
        ...     print(error)
        batch['names'] has been looked at
        >>> len(looks)
        1
    """

    def __init__(self, name: str, looked: Callable[[], None]) -> None:
        object.__setattr__(self, "_withheld", (name, looked))

    def __deepcopy__(self, memo: object) -> Withheld:
        return self

    __class__ = property(_look)  # `isinstance` is a look


_ARITHMETIC = (
    "add",
    "sub",
    "mul",
    "matmul",
    "truediv",
    "floordiv",
    "mod",
    "divmod",
    "pow",
    "lshift",
    "rshift",
    "and",
    "xor",
)

_OPERATORS = (*_ARITHMETIC, "or", "eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs", "invert", "round", "trunc")

_CONVERSIONS = ("hash", "bool", "int", "float", "complex", "index", "floor", "ceil", "str", "repr", "format", "bytes")

_ACCESSES = ("getattr", "setattr", "delattr", "getitem", "setitem", "delitem", "contains", "iter", "next", "reversed")

_PROTOCOLS = ("len", "length_hint", "call", "enter", "exit", "array", "dir")

_REFLECTED = (prefix + name for name in (*_ARITHMETIC, "or") for prefix in ("r", "i"))

for _name in (*_OPERATORS, *_CONVERSIONS, *_ACCESSES, *_PROTOCOLS, *_REFLECTED):
    setattr(Withheld, f"__{_name}__", _look)
