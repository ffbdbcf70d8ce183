"""Stand-ins in place of what earlier steps have written, to see that the code does the same whatever they hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agt_lightning.capture.numbers import remembered_number
from agt_lightning.capture.traces import namespaces
from agt_lightning.capture.withheld import Unknown, WithheldError
from agt_lightning.capture.written import OUTSIDE, Name, are_compared_by_identity, are_numbers, are_real, are_tensors

_OTHER = 0.73105857863
"""What fills a tensor in place of another one."""


@dataclass(frozen=True)
class Memory:
    """Attributes that hold what earlier steps have written.

    Args:
        values: all values of each attribute that are known, as comparable values.
    """

    values: Mapping[Name, Sequence[object]]

    def withhold(self, module: nn.Module, looks: list[str], probe: int) -> None:
        """Put stand-ins in place of all attributes.

        Numbers and tensors are replaced by others; anything else by an object that can be written to, but not looked
        at. Attributes whose values are compared by ``is`` may not be read at all.

        Args:
            module: a replica.
            looks: to which the name of each attribute is appended that the code looks at.
            probe: which numbers the code reads.
        """
        spaces = namespaces(module)
        for (path, name), tokens in self.values.items():
            holders = spaces if path == OUTSIDE else [vars(module.get_submodule(path))]
            holders = [space for space in holders if path != OUTSIDE or name in space]
            looked = _noting(name, looks)
            if not holders or path == OUTSIDE and are_compared_by_identity(tokens):
                looks.append(name)
            elif are_compared_by_identity(tokens):
                _forbid(module.get_submodule(path), name, looked)
            for space in holders:
                space[name] = _stand_in(name, space.get(name), tokens, looked, probe)


def _noting(name: str, looks: list[str]) -> Callable[[], None]:
    return lambda: looks.append(name)


def _stand_in(name: str, value: object, tokens: Sequence[object], looked: Callable[[], None], probe: int) -> object:
    if are_numbers(tokens):
        return remembered_number(probe, real=are_real(tokens))
    if isinstance(value, Tensor) and are_tensors(tokens):
        return torch.full_like(value.detach(), _OTHER if value.is_floating_point() else 1)
    return Unknown(f"`{name}`", looked)


def _forbid(part: nn.Module, name: str, looked: Callable[[], None]) -> None:
    """Let reading an attribute be a look; it can still be set."""

    def read(self: nn.Module) -> object:
        looked()
        raise WithheldError(f"`{name}` has been looked at")

    def write(self: nn.Module, value: Any) -> None:
        vars(self)[name] = value

    kind = type(part)
    part.__class__ = type(kind.__name__, (kind,), {name: property(read, write), "__module__": kind.__module__})
