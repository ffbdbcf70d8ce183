"""Checks of the loss for NaN, which come out the same in every run.

``if math.isnan(loss.item())`` and ``if torch.isnan(loss).any()`` are branches on data. But all values that gradients
pass through have finite bounds in every run, so their checks are known. Those of other values are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from agt_lightning.capture.source import current_line

_CHECKS = {
    getattr(owner, name): name == "isfinite" for owner in (torch, Tensor) for name in ("isnan", "isinf", "isfinite")
}
_COPIES = (Tensor.detach, Tensor.cpu, Tensor.clone, Tensor.to, Tensor.float, Tensor.double, torch.clone)
_REDUCTIONS = (Tensor.any, Tensor.all, torch.any, torch.all)
_NEGATIONS = (Tensor.__invert__, Tensor.logical_not, torch.logical_not)


@dataclass(frozen=True)
class _Check:
    """The result of `torch.isnan` or the like, with the tensor that was checked and the value for finite ones."""

    result: Tensor
    checked: Tensor
    value: bool


@dataclass
class FiniteChecks:
    """The checks for NaN and infinity that one recording makes.

    Attributes:
        made: the tensors that were checked, each with the line.
    """

    made: list[tuple[Tensor | None, str]] = field(default_factory=list)
    _copies: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _checks: dict[int, _Check] = field(default_factory=dict)

    def note(self, checked: Tensor | None) -> None:
        """Note that the code branches on whether a tensor is finite; None if it is unknown which one."""
        self.made.append((checked, current_line()))

    def value_of(self, tensor: object) -> bool | None:
        """Return the value of a check if a tensor is the result of one, and note it; else None."""
        check = self._checks.get(id(tensor))
        if check is None:
            return None
        self.note(check.checked)
        return check.value

    def follow(self, func: object, args: Sequence[Any], result: object) -> None:
        """Remember the result of a call of torch if it is a check, or a copy of what can be checked later."""
        if not isinstance(result, Tensor) or not args:
            return
        source = args[0]
        if func in _COPIES:
            self._copies[id(result)] = (result, source)
        elif func in _CHECKS:
            self._checks[id(result)] = _Check(result, source, _CHECKS[func])
        elif func in (*_REDUCTIONS, *_NEGATIONS) and id(source) in self._checks:
            check = self._checks[id(source)]
            self._checks[id(result)] = _Check(result, check.checked, check.value != (func in _NEGATIONS))

    def problem(self, result: Tensor, nodes: Collection[Node]) -> str | None:
        """Return why a check may come out otherwise in another run; None if all are of values on the gradient's way.

        Args:
            result: the loss.
            nodes: those of its autograd graph.
        """
        for tensor, line in self.made:
            source = self._source(tensor)
            if source is not result and (source is None or source.grad_fn not in nodes):
                return (
                    f"{line} branches on whether a tensor that is not part of the loss is finite; a poisoned run can "
                    "take the other branch, so no bound exists. Check the loss alone."
                )
        return None

    def _source(self, tensor: Tensor | None) -> Tensor | None:
        while id(tensor) in self._copies:
            tensor = self._copies[id(tensor)][1]
        return tensor
