"""Stand-ins for what code may pass on, or change, but must not look at."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from agt_lightning.capture.source import LIGHTNING

_LIBRARIES = ("torch", *LIGHTNING, "copy", "agt_lightning")


class WithheldError(Exception):
    """Something that was withheld has been looked at."""


def _look(self: Any, *args: object, **kwargs: object) -> object:
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


_MOST_USES = 10_000
"""Uses of an unknown object after which code is taken to walk along it for ever, as ``while node.next is not None``."""


def _absorb(self: Unknown, *args: object, **kwargs: object) -> Unknown:
    uses = object.__getattribute__(self, "_uses") + 1
    object.__setattr__(self, "_uses", uses)
    if uses > _MOST_USES:
        _look(self)
    return self


def _class_for_libraries(self: Unknown) -> object:
    """Return the class to libraries, which look at it when an attribute is set or a module is copied."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") == "abc":  # of `isinstance` with an abstract class
        frame = frame.f_back
    caller = "" if frame is None else str(frame.f_globals.get("__name__"))
    return Unknown if caller.partition(".")[0] in _LIBRARIES else _look(self)


class Unknown(Withheld):
    """A withheld object that can be written to and computed with: every result is unknown as well.

    Example:
        >>> count = Unknown("`count`", lambda: None)
        >>> count += 1
        >>> type(2 * count + 1) is Unknown, type(count.append(3)) is Unknown
        (True, True)
        >>> count > 3
        Traceback (most recent call last):
        ...
        agt_lightning.capture.withheld.WithheldError: `count` has been looked at
    """

    def __init__(self, name: str, looked: Callable[[], None]) -> None:
        super().__init__(name, looked)
        object.__setattr__(self, "_uses", 0)

    __class__ = property(_class_for_libraries)


_BINARY = "add sub mul matmul truediv floordiv mod divmod pow lshift rshift and xor or"

_COMPUTING = "neg pos abs invert getattr setattr delattr getitem setitem delitem call " + _BINARY

_LOOKING = (
    "eq ne lt le gt ge hash bool int float complex index round trunc floor ceil str repr format bytes contains iter "
    "next reversed len length_hint enter exit array dir"
)

_REFLECTED = [prefix + name for name in _BINARY.split() for prefix in ("r", "i")]

for _name in (*_COMPUTING.split(), *_REFLECTED, *_LOOKING.split()):
    setattr(Withheld, f"__{_name}__", _look)
for _name in (*_COMPUTING.split(), *_REFLECTED):
    setattr(Unknown, f"__{_name}__", _absorb)
